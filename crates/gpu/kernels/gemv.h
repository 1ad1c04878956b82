// y[m][n] = sum over k of x[m][k] * W[n][k] (+ bias[n]) for a few rows m: a simdgroup makes R outputs, its lanes take turns with the
// inputs, chunk by chunk. Inputs are staged through threadgroup memory, a slice at a time, so that every lane reads its chunk
// without bank conflicts. The grid is [outputs / (R * SIMDS), rows of x / M].
//
// EXPERTS: row p of y is that of expert index[p], whose weight is number places[expert] of the stack (none of them: the row
// is left alone); it takes row p / share of x. M is 1.
template <class W, int M, int R, int SIMDS, bool BIAS, bool EXPERTS>
FN void gemv(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const float *bias, DEVICE const float *x,
             DEVICE const uint *index, DEVICE const uint *places, DEVICE float *y, CONSTANT GemvArgs &a, THREADGROUP float *xs) {
  enum { STEPS = W::CHUNK == 32 ? 1 : 4, SLICE = 32 * W::CHUNK * STEPS, PAD = W::CHUNK == 4 ? 0 : 4, LINE = (W::CHUNK + PAD) * 32 * STEPS };
  const uint row0 = (at.group.x * SIMDS + at.simd) * R, m0 = at.group.y * M;
  uint weight = 0, x_row = m0;
  if (EXPERTS) {
    weight = places[index[at.group.y]];
    if (weight == ~0u) return;  // the whole group
    x_row = at.group.y / a.share;
  }
  DEVICE const uint *w = words + weight * a.stack_words;
  DEVICE const uchar *f = factors + weight * a.stack_factors;
  float acc[R][M];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int m = 0; m < M; m++) acc[r][m] = 0.0f;
  for (uint k = 0; k < a.w.cols; k += SLICE) {
    const uint chunk0 = k / W::CHUNK + at.lane;
    Raw raw[STEPS][R];
    UNROLL for (int s = 0; s < STEPS; s++)
      UNROLL for (int r = 0; r < R; r++) W::load(w, a.w, row0 + r, chunk0 + 32 * s, raw[s][r]);
    group_barrier();  // nobody reads the slice before
    for (uint i = at.thread_; i < uint(M * SLICE); i += 32 * SIMDS) {
      const uint m = i / SLICE, c = i % SLICE;
      const bool there = k + c < a.w.cols && m0 + m < a.batch;
      xs[m * LINE + c / W::CHUNK * (W::CHUNK + PAD) + c % W::CHUNK] = there ? x[(x_row + m) * a.w.cols + k + c] : 0.0f;
    }
    group_barrier();
    UNROLL for (int s = 0; s < STEPS; s++) {
      THREADGROUP const float *in = xs + (32 * s + at.lane) * (W::CHUNK + PAD);
      UNROLL for (int r = 0; r < R; r++) {
        float v[W::CHUNK];
        W::decode(f, a.w, row0 + r, chunk0 + 32 * s, raw[s][r], v);
        UNROLL for (int m = 0; m < M; m++)
          UNROLL for (int i = 0; i < W::CHUNK; i++) acc[r][m] += v[i] * in[m * LINE + i];
      }
    }
  }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int m = 0; m < M; m++) {
      float sum = simd_total(acc[r][m]);
      const uint n = row0 + r;
      if (at.lane == 0 && n < a.w.rows && m0 + m < a.batch) {
        if (BIAS) sum += bias[n];
        y[(m0 + m) * a.w.rows + n] = sum;
      }
    }
}
