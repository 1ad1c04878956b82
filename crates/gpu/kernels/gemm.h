// y[m][n] = sum over k of x[m][k] * W[n][k] (+ bias[n]) for many rows: 64 x 64 outputs to a threadgroup of four simdgroups, 32 inputs
// at a time. Weights are decoded once for the threadgroup into threadgroup memory. Grid [outputs / 64, rows of x / 64].
enum { PANEL = 64, DEPTH = 32, LINE = DEPTH + 4 };

// Inputs k .. k + 31 of outputs n0 .. n0 + 63, as [64][LINE].
template <class W>
FN void fill_panel(uint thread_, DEVICE const uint *words, DEVICE const uchar *factors, CONSTANT WeightArgs &a, uint n0, uint k, THREADGROUP float *b) {
  enum { CHUNKS = DEPTH / W::CHUNK };
  for (uint i = thread_; i < uint(PANEL * CHUNKS); i += 128) {
    const uint n = i / CHUNKS, chunk = k / W::CHUNK + i % CHUNKS;
    Raw raw;
    float v[W::CHUNK];
    W::load(words, a, n0 + n, chunk, raw);
    W::decode(factors, a, n0 + n, chunk, raw, v);
    UNROLL for (int j = 0; j < W::CHUNK; j++) b[n * LINE + i % CHUNKS * W::CHUNK + j] = v[j];
  }
}

template <int K, int CODEBOOK>
FN void fill_trellis_panel(uint thread_, DEVICE const uint *words, uint rows, uint cols, uint n0, uint k, THREADGROUP float *b) {
  const uint across = rows / 16, down = cols / 16;
  // Eight tiles of eight lanes each: two rows of tiles, four tiles across. The first 64 threads are two whole simdgroups.
  if (thread_ < 64) {
    const uint g = thread_ % 8, tile = thread_ / 8, tile_row = k / 16 + tile / 4, tile_col = n0 / 16 + tile % 4;
    const bool good = tile_row < down && tile_col < across;
    DEVICE const uint *p = words + (tile_row * across + tile_col) * 8 * K;
    uint w[K + 1];
    w[0] = good ? p[(g + 7) % 8 * K + K - 1] : 0u;
    UNROLL for (int i = 0; i < K; i++) w[i + 1] = good ? p[g * K + i] : 0u;
    THREADGROUP float *out = b + (tile % 4 * 16 + g) * LINE + tile / 4 * 16;
    UNROLL for (int c = 0; c < 32; c++)
      out[trellis_second(c) * 8 * LINE + trellis_input(c)] = good ? state_value<CODEBOOK>(trellis_state<K>(w, c)) : 0.0f;
  }
}

FN void fill_inputs(uint thread_, DEVICE const float *x, uint batch, uint cols, uint m0, uint k, THREADGROUP float *a) {
  for (uint i = thread_; i < uint(PANEL * DEPTH); i += 128) {
    const uint m = i / DEPTH, c = i % DEPTH;
    a[m * LINE + c] = m0 + m < batch && k + c < cols ? x[(m0 + m) * cols + k + c] : 0.0f;
  }
}

// One simdgroup's 32 x 32 part of the tile from a panel of inputs and one of weights.
FN void multiply_panels(THREAD MatTile &acc, THREADGROUP const float *a, THREADGROUP const float *b, uint simd, uint lane) {
  const uint m = simd / 2 * 32, n = simd % 2 * 32;
  UNROLL for (int k = 0; k < DEPTH; k += 8) acc.multiply(a + m * LINE + k, b + n * LINE + k, LINE, lane);
}

template <bool BIAS>
FN void store_tile(uint thread_, uint simd, uint lane, THREAD MatTile &acc, DEVICE const float *bias, DEVICE float *y, uint batch, uint rows, uint m0, uint n0, THREADGROUP float *mem) {
  group_barrier();  // nobody reads the panels any more
  acc.store(mem + simd / 2 * 32 * 64 + simd % 2 * 32, 64, lane);
  group_barrier();
  for (uint i = thread_; i < 64 * 64; i += 128) {
    const uint m = m0 + i / 64, n = n0 + i % 64;
    if (m < batch && n < rows) y[m * rows + n] = BIAS ? mem[i] + bias[n] : mem[i];
  }
}

template <class W, bool BIAS>
FN void gemm(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const float *bias, DEVICE const float *x, DEVICE float *y,
             CONSTANT GemvArgs &a, THREADGROUP float *mem) {
  const uint n0 = at.group.x * PANEL, m0 = at.group.y * PANEL;
  MatTile acc;
  acc.clear();
  for (uint k = 0; k < a.w.cols; k += DEPTH) {
    group_barrier();
    fill_inputs(at.thread_, x, a.batch, a.w.cols, m0, k, mem);
    fill_panel<W>(at.thread_, words, factors, a.w, n0, k, mem + PANEL * LINE);
    group_barrier();
    multiply_panels(acc, mem, mem + PANEL * LINE, at.simd, at.lane);
  }
  store_tile<BIAS>(at.thread_, at.simd, at.lane, acc, bias, y, a.batch, a.w.rows, m0, n0, mem);
}

template <int K, int CODEBOOK>
FN void trellis_gemm(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE float *y, CONSTANT TrellisArgs &a, THREADGROUP float *mem) {
  const uint n0 = at.group.x * PANEL, m0 = at.group.y * PANEL;
  MatTile acc;
  acc.clear();
  for (uint k = 0; k < a.cols; k += DEPTH) {
    group_barrier();
    fill_inputs(at.thread_, x, a.batch, a.cols, m0, k, mem);
    fill_trellis_panel<K, CODEBOOK>(at.thread_, words, a.rows, a.cols, n0, k, mem + PANEL * LINE);
    group_barrier();
    multiply_panels(acc, mem, mem + PANEL * LINE, at.simd, at.lane);
  }
  store_tile<false>(at.thread_, at.simd, at.lane, acc, x, y, a.batch, a.rows, m0, n0, mem);
}
