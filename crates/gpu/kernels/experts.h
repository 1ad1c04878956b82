// Products of many rows with the matrices that a router chose for them, pairs sorted by matrix: as gemm.h, but the 64 rows of a tile
// are pairs of one matrix. Row p of y is that of pair p, which takes row p / share of x. A tile whose matrix is not in this
// stack is left alone. Grid [outputs / 64, tiles].
FN void fill_pairs(uint thread_, DEVICE const float *x, DEVICE const uint *order, uint count, uint cols, uint share, uint k, THREADGROUP float *a) {
  for (uint i = thread_; i < uint(PANEL * DEPTH); i += 128) {
    const uint m = i / DEPTH, c = i % DEPTH;
    a[m * LINE + c] = m < count && k + c < cols ? x[order[m] / share * cols + k + c] : 0.0f;
  }
}

FN void store_pairs(uint thread_, uint simd, uint lane, THREAD MatTile &acc, DEVICE const uint *order, uint count, DEVICE float *y, uint rows, uint n0,
                    THREADGROUP float *mem) {
  group_barrier();  // nobody reads the panels any more
  acc.store(mem + simd / 2 * 32 * 64 + simd % 2 * 32, 64, lane);
  group_barrier();
  for (uint i = thread_; i < 64 * 64; i += 128) {
    const uint m = i / 64, n = n0 + i % 64;
    if (m < count && n < rows) y[order[m] * rows + n] = mem[i];
  }
}

template <class W>
FN void expert_gemm(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const float *x, DEVICE const uint *order,
                    DEVICE const uint *tiles, DEVICE const uint *places, DEVICE float *y, CONSTANT GemvArgs &a, THREADGROUP float *mem) {
  const uint expert = tiles[3 * at.group.y], n0 = at.group.x * PANEL;
  if (expert == ~0u) return;  // the whole group
  const uint place = places[expert], count = tiles[3 * at.group.y + 2];
  if (place == ~0u) return;
  DEVICE const uint *pairs = order + tiles[3 * at.group.y + 1];
  MatTile acc;
  acc.clear();
  for (uint k = 0; k < a.w.cols; k += DEPTH) {
    group_barrier();
    fill_pairs(at.thread_, x, pairs, count, a.w.cols, a.share, k, mem);
    fill_panel<W>(at.thread_, words + place * a.stack_words, factors + place * a.stack_factors, a.w, n0, k, mem + PANEL * LINE);
    group_barrier();
    multiply_panels(acc, mem, mem + PANEL * LINE, at.simd, at.lane);
  }
  store_pairs(at.thread_, at.simd, at.lane, acc, pairs, count, y, a.w.rows, n0, mem);
}

template <int K, int CODEBOOK>
FN void expert_trellis_gemm(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE const uint *order, DEVICE const uint *tiles,
                            DEVICE const uint *places, DEVICE float *y, CONSTANT TrellisArgs &a, THREADGROUP float *mem) {
  const uint expert = tiles[3 * at.group.y], n0 = at.group.x * PANEL;
  if (expert == ~0u) return;  // the whole group
  const uint place = places[expert], count = tiles[3 * at.group.y + 2];
  if (place == ~0u) return;
  DEVICE const uint *pairs = order + tiles[3 * at.group.y + 1];
  MatTile acc;
  acc.clear();
  for (uint k = 0; k < a.cols; k += DEPTH) {
    group_barrier();
    fill_pairs(at.thread_, x, pairs, count, a.cols, a.share, k, mem);
    fill_trellis_panel<K, CODEBOOK>(at.thread_, words + place * a.stack_words, a.rows, a.cols, n0, k, mem + PANEL * LINE);
    group_barrier();
    multiply_panels(acc, mem, mem + PANEL * LINE, at.simd, at.lane);
  }
  store_pairs(at.thread_, at.simd, at.lane, acc, pairs, count, y, a.rows, n0, mem);
}
