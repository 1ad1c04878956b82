// The same products as plainly as a GPU can compute them: one output a thread, no threadgroup memory, no operations of
// simdgroups. For what a faster kernel cannot do, or does wrongly on some device. Grid [outputs / 128, rows of x].
template <class W, bool BIAS>
FN void simple_linear(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const float *bias, DEVICE const float *x,
                      DEVICE float *y, CONSTANT GemvArgs &a) {
  const uint n = at.group.x * 128 + at.thread_, m = at.group.y;
  if (n >= a.w.rows) return;
  float sum = 0.0f;
  for (uint chunk = 0; chunk * W::CHUNK < a.w.cols; chunk++) {
    Raw raw;
    float v[W::CHUNK];
    W::load(words, a.w, n, chunk, raw);
    W::decode(factors, a.w, n, chunk, raw, v);
    UNROLL for (int i = 0; i < W::CHUNK; i++)
      if (chunk * W::CHUNK + i < a.w.cols) sum += v[i] * x[m * a.w.cols + chunk * W::CHUNK + i];
  }
  y[m * a.w.rows + n] = BIAS ? sum + bias[n] : sum;
}

// Each state is put together from its bits' places in the tile's stream.
template <int K, int CODEBOOK>
FN void simple_trellis(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE float *y, CONSTANT TrellisArgs &a) {
  const uint n = at.group.x * 128 + at.thread_, m = at.group.y, across = a.rows / 16;
  if (n >= a.rows) return;
  float sum = 0.0f;
  for (uint k = 0; k < a.cols; k++) {
    DEVICE const uint *tile = words + ((k / 16) * across + n / 16) * 8 * K;
    const uint input = k % 16, output = n % 16;
    const uint code = 8 * (((output & 7u) << 2) | ((input & 7u) >> 1)) + 4 * (output >> 3) + 2 * (input >> 3) + (input & 1u);
    const uint end = (code + 1) * K + 256 * K, last = (end - 1) / 32;  // a turn later, so that nothing is before the beginning
    const uint state = shift_right_64(tile[(last - 1) % (8 * K)], tile[last % (8 * K)], 32 * (last + 1) - end) & 0xFFFFu;
    sum += state_value<CODEBOOK>(state) * x[m * a.cols + k];
  }
  y[m * a.rows + n] = sum;
}
