// EXL3 trellises (arXiv 2406.11235, exllamav3's packing): tiles of 16 inputs x 16 outputs, each a circular stream of 256 codes of K
// bits, tiles of one row of 16 inputs after another. The state of a code is the 16 bits that end with it.
//
// Eight lanes share a tile: lane g of them takes codes 32 g .. 32 g + 31, which are K whole words, and the last bits of the
// lane before. Their places are outputs g and g + 8 with all 16 inputs.
enum Codebook { THREE_INST, MCG, MUL1 };

template <int CODEBOOK> FN float state_value(uint s) {
  if (CODEBOOK == MUL1) return fma_halves(0x6400u + sum_bytes(s * 0x83DCD12Du), 0x1EEEu, 0xC931u);
  const uint x = CODEBOOK == MCG ? s * 0xCBAC1FEDu : s * 89226354u + 64248484u;
  const uint y = (x & 0x8FFF8FFFu) ^ 0x3B603B60u;
  return add_halves(y & 0xFFFFu, y >> 16);
}

// The state of code c of a lane whose words are w[1..K], w[0] being the word before.
template <int K> FN uint trellis_state(THREAD const uint *w, int c) {
  const int end = 32 + (c + 1) * K, last = (end - 1) / 32;  // bits counted from the beginning of w[0]
  return shift_right_64(w[last - 1], w[last], uint(32 * (last + 1) - end)) & 0xFFFFu;
}

// Where code c of lane g stands: input 0..15, and the second eight outputs or the first.
FN int trellis_input(int c) { return 2 * (c / 8) + (c & 1) + 8 * ((c >> 1) & 1); }
FN int trellis_second(int c) { return (c >> 2) & 1; }

// y[m][n] = sum over k of x[m][k] * W[n][k]. A simdgroup's lanes are four rows of tiles, eight lanes each; the SIMDS simdgroups of a
// threadgroup take turns with the rows of tiles, and make 16 * TILES outputs. Grid [outputs / (16 * TILES), rows of x / M].
template <int K, int CODEBOOK, int M, int TILES, int SIMDS, bool EXPERTS>
FN void trellis_gemv(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE const uint *index, DEVICE const uint *places,
                     DEVICE float *y, CONSTANT TrellisArgs &a, THREADGROUP float *part) {
  const uint g = at.lane / 4, q = at.lane % 4, m0 = at.group.y * M;
  const uint across = a.rows / 16, down = a.cols / 16, n0 = at.group.x * TILES;
  uint weight = 0, x_row = m0;
  if (EXPERTS) {
    weight = places[index[at.group.y]];
    if (weight == ~0u) return;  // the whole group
    x_row = at.group.y / a.share;
  }
  DEVICE const uint *w0 = words + weight * a.stack_words;
  const uint before = ((g + 7) % 8) * 4 + q;
  float acc[TILES][2][M];
  UNROLL for (int t = 0; t < TILES; t++)
    UNROLL for (int m = 0; m < M; m++) acc[t][0][m] = acc[t][1][m] = 0.0f;
  for (uint first = 4 * at.simd; first < down; first += 4 * SIMDS) {  // the same for all lanes
    const uint tile_row = first + q;
    const bool there = tile_row < down;
    uint w[TILES][K + 1];
    UNROLL for (int t = 0; t < TILES; t++) {
      DEVICE const uint *p = w0 + ((tile_row * across + n0 + t) * 8 + g) * K;
      const bool good = there && n0 + t < across;
      UNROLL for (int i = 0; i < K; i++) w[t][i + 1] = good ? p[i] : 0u;
    }
    UNROLL for (int t = 0; t < TILES; t++) w[t][0] = lane_value(w[t][K], before);
    float in[M][16];
    UNROLL for (int m = 0; m < M; m++) {
      const bool good = there && m0 + m < a.batch;
      UNROLL for (int i = 0; i < 4; i++) {
        float4 v;
        v.x = v.y = v.z = v.w = 0.0f;
        if (good) v = *(DEVICE const float4 *)(x + (x_row + m) * a.cols + tile_row * 16 + 4 * i);
        in[m][4 * i] = v.x;
        in[m][4 * i + 1] = v.y;
        in[m][4 * i + 2] = v.z;
        in[m][4 * i + 3] = v.w;
      }
    }
    UNROLL for (int t = 0; t < TILES; t++)
      UNROLL for (int c = 0; c < 32; c++) {
        const float v = state_value<CODEBOOK>(trellis_state<K>(w[t], c));
        UNROLL for (int m = 0; m < M; m++) acc[t][trellis_second(c)][m] += v * in[m][trellis_input(c)];
      }
  }
  UNROLL for (int t = 0; t < TILES; t++)
    UNROLL for (int s = 0; s < 2; s++)
      UNROLL for (int m = 0; m < M; m++) {
        float sum = acc[t][s][m];
        sum += lane_xor(sum, 1u);
        sum += lane_xor(sum, 2u);
        if (q == 0) part[((at.simd * TILES + t) * M + m) * 16 + 8 * s + g] = sum;
      }
  group_barrier();
  for (uint e = at.thread_; e < uint(TILES * M * 16); e += 32 * SIMDS) {
    float sum = 0.0f;
    for (uint s = 0; s < SIMDS; s++) sum += part[s * (TILES * M * 16) + e];
    const uint t = e / (M * 16), m = e / 16 % M, n = (n0 + t) * 16 + e % 16;
    if (n < a.rows && m0 + m < a.batch) y[(m0 + m) * a.rows + n] = sum;
  }
}
