// Latent attention's projections, head by head. w is a dense [heads * each, rank] matrix in T of which head h has rows
// h * each + first ...

// Queries into the latent space: y[row][head][r] = sum over n < inner of w[n][r] * x[row][head][n], r < rank; behind it the rest of the
// query, turned by the row's position if ROPE is 1 (pairs are halves) or 2 (neighbours). A threadgroup makes 64 values of
// one head, its eight simdgroups taking turns with n. Grid [ceil(y_head / 64), heads, rows].
template <class T, int ROPE>
FN void latent_in(Where at, DEVICE const float *x, DEVICE const uchar *w, DEVICE const uint *positions, DEVICE const float *table, DEVICE float *y,
                  CONSTANT LatentArgs &a, THREADGROUP float *part) {
  const uint head = at.group.y, row = at.group.z, from = head * a.each + a.first, r = at.group.x * 64 + 2 * at.lane;
  DEVICE const float *in = x + (row * a.heads + head) * a.x_head;
  DEVICE float *out = y + (row * a.heads + head) * a.y_head;
  float first = 0.0f, second = 0.0f;
  if (at.group.x * 64 < a.rank) {
    UNROLL_SOME for (uint n = at.simd; n < a.inner; n += 8) {
      const float v = in[n];
      if (r < a.rank) first += T::get(w, (from + n) * a.rank + r) * v;
      if (r + 1 < a.rank) second += T::get(w, (from + n) * a.rank + r + 1) * v;
    }
  }
  part[at.simd * 64 + 2 * at.lane] = first;
  part[at.simd * 64 + 2 * at.lane + 1] = second;
  group_barrier();
  const uint c = at.group.x * 64 + at.thread_;
  if (at.thread_ < 64 && c < a.y_head) {
    float sum = 0.0f;
    if (c < a.rank) {
      for (uint s = 0; s < 8; s++) sum += part[s * 64 + at.thread_];
    } else {
      const uint i = c - a.rank, pair = ROPE == 2 ? i / 2 : i % a.pairs;
      sum = in[a.inner + i];
      if (ROPE != 0 && i < 2 * a.pairs) {
        const bool later = ROPE == 2 ? (i & 1u) != 0 : i >= a.pairs;
        const float other = in[a.inner + (ROPE == 2 ? (i ^ 1u) : later ? i - a.pairs : i + a.pairs)];
        const uint turn = 2 * (positions[row] * a.pairs + pair);
        sum = later ? sum * table[turn] + other * table[turn + 1] : sum * table[turn] - other * table[turn + 1];
      }
    }
    out[c] = sum;
  }
}

// What attention found out of the latent space: y[row][head][n] = w[n] · x[row][head], n < inner; a simdgroup makes four of them,
// W values a lane at a time. Grid [ceil(inner / 32), heads, rows].
template <class T, int W>
FN void latent_out(Where at, DEVICE const float *x, DEVICE const uchar *w, DEVICE float *y, CONSTANT LatentArgs &a) {
  enum { WORDS = W == 8 ? T::WORDS : 1 };
  const uint head = at.group.y, row = at.group.z, from = head * a.each + a.first, n0 = at.group.x * 32 + at.simd * 4;
  DEVICE const float *in = x + (row * a.heads + head) * a.x_head;
  float sum[4];
  UNROLL for (int i = 0; i < 4; i++) sum[i] = 0.0f;
  for (uint r = at.lane * W; r < a.rank; r += 32 * W) {
    float v[W];
    UNROLL for (int j = 0; j < W; j++) v[j] = in[r + j];
    UNROLL for (int i = 0; i < 4; i++) {
      if (n0 + i < a.inner) {
        uint words[WORDS];
        load_chunk<T, W>(w, (from + n0 + i) * a.rank + r, words);
        UNROLL for (int j = 0; j < W; j++) sum[i] += chunk_value<T, W>(words, j) * v[j];
      }
    }
  }
  UNROLL for (int i = 0; i < 4; i++) {
    const float all = simd_total(sum[i]);
    if (at.lane == 0 && n0 + i < a.inner) y[(row * a.heads + head) * a.y_head + n0 + i] = all;
  }
}
