// Products of many rows with the matrices that a router chose for them, by tensor cores: weights and inputs as halves, sums as f32.
// Pairs are sorted by matrix; up to 64 of one matrix are a tile (route.h). A weight is decoded once for a tile, straight into
// the registers that the tensor core takes it from.
//
// Of 64 inputs a lane 4 g + q has the sixteen of block q, for outputs g and g + 8: the tensor core's columns 2 q, 2 q + 1, 2 q + 8 and
// 2 q + 9 are inputs 2 i, 2 i + 1, 2 i + 8 and 2 i + 9 of that block, i from 0 to 3. Inputs are stored in that order: of a
// block of 16 first the two words of i = 0, then those of i = 1, and so on.
enum { TILE = 64, DEEP = 128, PAIR_LINE = DEEP / 2 + 4, OUT_LINE = 260, MMA_SIMDS = 8 };

// The inputs of pair order[p] as row p, scaled by its matrix's scales, rotated, made halves with a power of two of their own such that
// the greatest is just within range; factors[p] undoes it. GATED: row 2 p of x is a gate, row 2 p + 1 what it is for. SPREAD: of
// eight blocks those of even number come first. Grid [pairs], 256 threads.
template <int BLOCK, bool SCALE, bool GATED>
FN void pair_inputs(Where at, DEVICE const float *x, DEVICE const float *scales, uint pair, uint expert, uint k, CONSTANT PairArgs &a, THREAD float *v) {
  const uint c = k * 128 + 4 * at.lane;
  UNROLL for (int i = 0; i < 4; i++) v[i] = 0.0f;
  if (c < a.features) {
    if (GATED) {
      const float4 g = *(DEVICE const float4 *)(x + 2 * pair * a.features + c), u = *(DEVICE const float4 *)(x + (2 * pair + 1) * a.features + c);
      v[0] = silu(g.x) * u.x;
      v[1] = silu(g.y) * u.y;
      v[2] = silu(g.z) * u.z;
      v[3] = silu(g.w) * u.w;
    } else {
      const float4 in = *(DEVICE const float4 *)(x + pair / a.share * a.features + c);
      v[0] = in.x;
      v[1] = in.y;
      v[2] = in.z;
      v[3] = in.w;
    }
  }
  if (SCALE && c < a.width) {
    const float4 s = *(DEVICE const float4 *)(scales + expert * a.width + c);
    v[0] *= s.x;
    v[1] *= s.y;
    v[2] *= s.z;
    v[3] *= s.w;
  }
  if (BLOCK == 128) {
    rotate<128, 4>(v, at.lane);
    UNROLL for (int i = 0; i < 4; i++) v[i] *= 0.08838834764831845f;
  }
}

template <int BLOCK, bool SCALE, bool GATED, bool SPREAD>
FN void pair_halves(Where at, DEVICE const float *x, DEVICE const float *scales, DEVICE const uint *index, DEVICE const uint *order, DEVICE uint *y,
                    DEVICE float *factors, CONSTANT PairArgs &a, THREADGROUP float *part) {
  wait_for_others();
  others_may_begin();
  const uint pair = order[at.group.x], expert = index[pair], blocks = round_up(a.width, 128);
  float top = 0.0f, v[4];
  for (uint k = at.simd; k < blocks; k += MMA_SIMDS) {
    pair_inputs<BLOCK, SCALE, GATED>(at, x, scales, pair, expert, k, a, v);
    UNROLL for (int i = 0; i < 4; i++) top = max_f32(top, abs_f32(v[i]));
  }
  top = simd_greatest(top);
  if (at.lane == 0) part[at.simd] = top;
  group_barrier();
  UNROLL for (int i = 0; i < MMA_SIMDS; i++) top = max_f32(top, part[i]);
  // 2^14 <= top * 2^power < 2^15
  const int exponent = int(as_u32(top) >> 23) - 127, power = exponent < -100 ? 114 : 14 - exponent;
  const float scale = as_f32(uint(127 + power) << 23);
  if (at.thread_ == 0) factors[at.group.x] = a.factor * as_f32(uint(127 - power) << 23);
  for (uint k = at.simd; k < blocks; k += MMA_SIMDS) {
    pair_inputs<BLOCK, SCALE, GATED>(at, x, scales, pair, expert, k, a, v);
    const uint block = at.lane / 4, place = SPREAD ? block % 2 * 4 + block / 2 : block;
    // Words 2 q and 2 q + 1 of a block: those of i = 2 q % 4 and the next, first or second of the two.
    DEVICE uint *line = y + (at.group.x * blocks + k) * 64 + place * 8;
    const uint q = at.lane % 4;
    line[q % 2 * 4 + q / 2] = bits_of_half(v[0] * scale) | bits_of_half(v[1] * scale) << 16;
    line[q % 2 * 4 + q / 2 + 2] = bits_of_half(v[2] * scale) | bits_of_half(v[3] * scale) << 16;
  }
}

// Weights on their way to the tensor core: 2 tiles of 16 outputs from n0 on with 64 inputs, sixteen of a lane. load() asks for part
// `part` (64 inputs), fragment() gives the four registers of i of a tile.
template <int K, int CODEBOOK> struct TrellisPieces {
  uint w[2][K + 1];
  FN void load(DEVICE const uint *words, DEVICE const uchar *factors, CONSTANT TrellisArgs &a, uint n0, uint part, uint lane) {
    const uint g = lane / 4, q = lane % 4, across = a.rows / 16, down = a.cols / 16, row = 4 * part + q;
    UNROLL for (int t = 0; t < 2; t++) {
      const uint col = n0 / 16 + t;
      const bool there = row < down && col < across;
      DEVICE const uint *p = words + (row * across + col) * 8 * K;
      w[t][0] = there ? p[(g + 7) % 8 * K + K - 1] : 0u;
      UNROLL for (int i = 0; i < K; i++) w[t][i + 1] = there ? p[g * K + i] : 0u;
    }
  }
  FN void fragment(DEVICE const uchar *factors, CONSTANT TrellisArgs &a, uint n0, uint part, int half, int t, int i, uint lane, THREAD uint *v) const {
    UNROLL for (int e = 0; e < 4; e++)
      v[e] = state_pair<CODEBOOK>(trellis_state<K>(w[t], 8 * i + 2 * e), trellis_state<K>(w[t], 8 * i + 2 * e + 1));
  }
};

// What weights are multiplied with: those of 2^-14 to 2^10 keep all their bits as halves.
FN float weight_factor() { return 64.0f; }

template <class W> struct RowPieces {
  enum { CHUNK = W::CHUNK, CHUNKS = CHUNK > 16 ? 1 : 16 / CHUNK };
  Raw raw[2][2][CHUNKS];
  static FN uint chunk_of(uint part, uint q, int c) { return CHUNK == 32 ? part / 2 * 4 + q : (part * 4 + q) * CHUNKS + c; }
  FN void load(DEVICE const uint *words, DEVICE const uchar *factors, CONSTANT GemvArgs &a, uint n0, uint part, uint lane) {
    const uint g = lane / 4, q = lane % 4;
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int s = 0; s < 2; s++)
        UNROLL for (int c = 0; c < CHUNKS; c++) W::load(words, a.w, n0 + 16 * t + 8 * s + g, chunk_of(part, q, c), raw[t][s][c]);
  }
  FN void fragment(DEVICE const uchar *factors, CONSTANT GemvArgs &a, uint n0, uint part, int half, int t, int i, uint lane, THREAD uint *v) const {
    const uint g = lane / 4, q = lane % 4;
    UNROLL for (int s = 0; s < 2; s++)
      UNROLL for (int c = 0; c < CHUNKS; c++) {
        float out[CHUNK];
        W::decode(factors, a.w, n0 + 16 * t + 8 * s + g, chunk_of(part, q, c), raw[t][s][c], out);
        // Inputs 2 i and 2 i + 8 with their neighbours.
        UNROLL for (int e = 0; e < 2; e++) {
          const int from = 2 * i + 8 * e + (CHUNK == 32 ? 16 * half : 0);
          if (CHUNK == 32 || from / CHUNK == c)
            v[2 * s + e] = bits_of_half(out[from % CHUNK] * weight_factor()) | bits_of_half(out[from % CHUNK + 1] * weight_factor()) << 16;
        }
      }
  }
};

// A tile of pairs times 256 outputs of its matrix, rotated and scaled by its matrix's scales. Row p of y is that of pair p. Grid [outputs /
// 256, tiles].
template <class PIECES, class ARGS, int BLOCK, bool SCALE>
FN void expert_mma(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const uint *x, DEVICE const float *row_factors,
                   DEVICE const uint *order, DEVICE const uint *tiles, DEVICE const uint *places, DEVICE const float *scale_out, DEVICE float *y,
                   CONSTANT ARGS &a, uint rows, uint cols, uint outputs, uint stack_words, uint stack_factors, THREADGROUP uint *mem) {
  wait_for_others();
  others_may_begin();
  const uint expert = tiles[3 * at.group.y];
  if (expert == ~0u) return;  // the whole group
  const uint place = places[expert], first = tiles[3 * at.group.y + 1], count = tiles[3 * at.group.y + 2];
  if (place == ~0u) return;
  const uint g = at.lane / 4, q = at.lane % 4, n0 = at.group.x * 256 + at.simd * 32, blocks = round_up(cols, DEEP);
  DEVICE const uint *w = words + place * stack_words;
  DEVICE const uchar *f = factors + place * stack_factors;
  const uint to = copy_place(mem);
  // 64 rows of 16 times 16 bytes; a thread has four of them.
#define AHEAD(STEP, WHICH)                                                                                                       \
  {                                                                                                                              \
    UNROLL for (int i = 0; i < 4; i++) {                                                                                         \
      const uint n = at.thread_ + 256 * i, row = n / 16, word = n % 16 * 4;                                                      \
      copy_16(to + ((WHICH) * (TILE * PAIR_LINE) + row * PAIR_LINE + word) * 4,                                                  \
              x + ((first + (row < count ? row : 0)) * blocks + (STEP)) * (DEEP / 2) + word, row < count);                       \
    }                                                                                                                            \
    copies_end();                                                                                                                \
  }
  float acc[2][8][4];
  UNROLL for (int t = 0; t < 2; t++) UNROLL for (int j = 0; j < 8; j++) UNROLL for (int e = 0; e < 4; e++) acc[t][j][e] = 0.0f;
  AHEAD(0u, 0u)
  PIECES now, next;
  next.load(w, f, a, n0, 0, at.lane);
  for (uint step = 0; step < blocks; step++) {
    copies_but<0>();
    group_barrier();  // the inputs are there, and nobody reads those before any more
    if (step + 1 < blocks) AHEAD(step + 1, (step + 1) % 2)
    UNROLL for (int half = 0; half < 2; half++) {
      now = next;
      next.load(w, f, a, n0, 2 * step + half + 1, at.lane);
      THREADGROUP const uint *line = mem + step % 2 * (TILE * PAIR_LINE) + g * PAIR_LINE + (4 * half + q) * 8;
      UNROLL for (int i = 0; i < 4; i += 2) {
        uint v[2][2][4];
        UNROLL for (int t = 0; t < 2; t++)
          UNROLL for (int k = 0; k < 2; k++) now.fragment(f, a, n0, 2 * step + half, half, t, i + k, at.lane, v[t][k]);
        UNROLL for (int j = 0; j < 8; j++) {
          if (8 * j < int(count)) {  // the same for all
            const uint4 b = *(THREADGROUP const uint4 *)(line + 8 * j * PAIR_LINE + 2 * i);
            UNROLL for (int t = 0; t < 2; t++) {
              mma_halves(acc[t][j], v[t][0][0], v[t][0][2], v[t][0][1], v[t][0][3], b.x, b.y);
              mma_halves(acc[t][j], v[t][1][0], v[t][1][2], v[t][1][1], v[t][1][3], b.z, b.w);
            }
          }
        }
      }
    }
  }
#undef AHEAD
  THREADGROUP float *out = (THREADGROUP float *)mem;
  UNROLL for (int half = 0; half < 2; half++) {
    group_barrier();
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int j = 0; j < 4; j++)
        UNROLL for (int e = 0; e < 4; e++)
          out[(8 * j + 2 * q + (e & 1)) * OUT_LINE + at.simd * 32 + 16 * t + g + 8 * (e / 2)] = acc[t][4 * half + j][e];
    group_barrier();
    for (uint i = at.simd; i < 64; i += MMA_SIMDS) {
      const uint m = 32 * half + i / 2, n = at.group.x * 256 + i % 2 * 128 + 4 * at.lane;
      if (m >= count) break;  // the whole simdgroup
      const float4 in = *(THREADGROUP const float4 *)(out + i / 2 * OUT_LINE + i % 2 * 128 + 4 * at.lane);
      const float factor = row_factors[first + m];
      float v[4] = {in.x * factor, in.y * factor, in.z * factor, in.w * factor};
      if (BLOCK == 128) {
        rotate<128, 4>(v, at.lane);
        UNROLL for (int e = 0; e < 4; e++) v[e] *= 0.08838834764831845f;
      }
      UNROLL for (int e = 0; e < 4; e++)
        if (n + e < outputs) y[order[first + m] * outputs + n + e] = SCALE ? v[e] * scale_out[expert * rows + n + e] : v[e];
    }
  }
}

template <int K, int CODEBOOK, int BLOCK, bool SCALE>
FN void expert_trellis_mma(Where at, DEVICE const uint *words, DEVICE const uint *x, DEVICE const float *row_factors, DEVICE const uint *order,
                           DEVICE const uint *tiles, DEVICE const uint *places, DEVICE const float *scale_out, DEVICE float *y, CONSTANT ExpertTrellisArgs &a,
                           THREADGROUP uint *mem) {
  expert_mma<TrellisPieces<K, CODEBOOK>, TrellisArgs, BLOCK, SCALE>(at, words, (DEVICE const uchar *)words, x, row_factors, order, tiles, places, scale_out, y, a.t,
                                                                    a.t.rows, a.t.cols, a.outputs, a.t.stack_words, 0, mem);
}

template <class W>
FN void expert_rows_mma(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const uint *x, DEVICE const float *row_factors,
                        DEVICE const uint *order, DEVICE const uint *tiles, DEVICE const uint *places, DEVICE float *y, CONSTANT GemvArgs &a, THREADGROUP uint *mem) {
  expert_mma<RowPieces<W>, GemvArgs, 1, false>(at, words, factors, x, row_factors, order, tiles, places, row_factors, y, a, a.w.rows, a.w.cols, a.w.rows, a.stack_words,
                                               a.stack_factors, mem);
}
