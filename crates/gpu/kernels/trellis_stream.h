// Trellises with the streaming kernels (stream.h). A simdgroup takes 64 inputs of 64 outputs at a time: four rows of four tiles, of which
// lane 4 g + q has outputs g and g + 8 of tiles in row q, 32 codes each. Simdgroups 0, 2, 4, 6 have the first half of the 128
// outputs, every fourth 64 inputs each. Words come two tiles across at a time, RING such pieces ahead.
//
// MUL1 with BYTES: a code's value is a sum of four bytes times a factor, and an offset. The four bytes go to the tensor core as
// they are, against the input four times over; factor and offset are applied to the sums. The value is not rounded to a half
// before it is multiplied, as the format would have it: 2e-4 of it. Otherwise values are halves as the format has them.
enum { RING_PAD = 8 };  // so that lanes of four rows of tiles read from different banks

template <int CODEBOOK> FN uint state_pair(uint s, uint t) {
  if (CODEBOOK == MUL1) {
    const uint a = 0x6400u + sum_bytes(s * 0x83DCD12Du), b = 0x6400u + sum_bytes(t * 0x83DCD12Du);
    return fma_pairs(a | b << 16, 0x1EEE1EEEu, 0xC931C931u);
  }
  const uint x = CODEBOOK == MCG ? s * 0xCBAC1FEDu : s * 89226354u + 64248484u, y = CODEBOOK == MCG ? t * 0xCBAC1FEDu : t * 89226354u + 64248484u;
  const uint a = (x & 0x8FFF8FFFu) ^ 0x3B603B60u, b = (y & 0x8FFF8FFFu) ^ 0x3B603B60u;
  return add_pairs(pick_bytes(a, b, 0x5410u), pick_bytes(a, b, 0x7632u));
}

// As trellis_state: a shift to the next byte, which codes share, and bytes picked. Shifts are products with `powers` (2^i), which
// the compiler does not know, for the units that multiply have less to do than those that shift.
template <int K> FN uint stream_state(THREAD const uint *w, int c, CONSTANT StreamArgs &a) {
  const int end = (c + 1) * K, h = (end - 1) / 16, shift = 16 * h + 16 - end, up = (8 - shift % 8) % 8;
  const uint view = (h & 1) != 0 ? w[h / 2 + 1] : pick_bytes(w[h / 2 + 1], w[h / 2], 0x5432u);
  const uint first = shift / 8 + (up != 0 ? 1 : 0);
  const uint moved = up == 0 ? view : K % 2 == 1 && c % 2 == 1 ? view << up : view * a.powers[up];
  return pick_bytes(moved, 0u, first == 0 ? 0x4410u : first == 1 ? 0x4421u : 0x4432u);
}

template <int M> struct TrellisSums {
  enum { STEPS = (M + 3) / 4, ROWS = M < 4 ? M : 4 };
  float acc[4][2][STEPS], rest[STEPS];
  FN void clear() {
    UNROLL for (int j = 0; j < STEPS; j++) {
      rest[j] = 0.0f;
      UNROLL for (int t = 0; t < 4; t++) acc[t][0][j] = acc[t][1][j] = 0.0f;
    }
  }
  FN void write(THREADGROUP float *part, int j, uint simd, uint lane) const {
    const uint g = lane / 4, q = lane % 4;
    if (q >= ROWS) return;
    THREADGROUP float *out = part + (simd / 2 * ROWS + q) * PART_LINE + simd % 2 * 64 + g;
    UNROLL for (int t = 0; t < 4; t++)
      UNROLL for (int s = 0; s < 2; s++) out[16 * t + 8 * s] = acc[t][s][j] + rest[j];
  }
};

// The inputs of a lane's codes: rows x 4 j .. of them, for one of the four rows of tiles.
template <int PARTS, int STEPS> struct TrellisInputs {
  uint b[STEPS][PARTS == BYTES ? 16 : 8];
  FN void load(THREADGROUP const uint *line, uint lane, uint columns) {
    UNROLL for (int j = 0; j < STEPS; j++) {
      const uint g = 8 * j + lane / 4, column = g < columns ? g : g % 2;
      THREADGROUP const uint4 *p = (THREADGROUP const uint4 *)(line + column * (PARTS == BYTES ? 4 : 8));
      const uint4 u = p[0];
      if (PARTS == BYTES) {
        UNROLL for (int i = 0; i < 4; i++) {
          const uint which = 0x1111u * i;
          b[j][i] = pick_bytes(u.x, 0u, which);
          b[j][4 + i] = pick_bytes(u.y, 0u, which);
          b[j][8 + i] = pick_bytes(u.z, 0u, which);
          b[j][12 + i] = pick_bytes(u.w, 0u, which);
        }
      } else {
        const uint4 v = p[1];
        b[j][0] = u.x;
        b[j][1] = u.y;
        b[j][2] = u.z;
        b[j][3] = u.w;
        b[j][4] = v.x;
        b[j][5] = v.y;
        b[j][6] = v.z;
        b[j][7] = v.w;
      }
    }
  }
};

// Adds a tile's products: words w[1..K] of this lane, w[0] before them.
template <int K, int CODEBOOK, int PARTS, int STEPS>
FN void trellis_tile(THREAD const uint *w, THREAD const TrellisInputs<PARTS, STEPS> &in, THREAD const float *scale, THREAD float (*acc)[STEPS], CONSTANT StreamArgs &a) {
  if (PARTS == BYTES) {
    int c[STEPS][4];
    UNROLL for (int j = 0; j < STEPS; j++) UNROLL for (int e = 0; e < 4; e++) c[j][e] = 0;
    UNROLL for (int i = 0; i < 4; i++)
      UNROLL for (int h = 0; h < 2; h++) {
        uint s[4];
        UNROLL for (int e = 0; e < 4; e++) s[e] = stream_state<K>(w, 8 * i + 2 * e + h, a) * 0x83DCD12Du;
        UNROLL for (int j = 0; j < STEPS; j++) mma_bytes(c[j], s[0], s[2], s[1], s[3], in.b[j][2 * i + h], in.b[j][2 * i + h + 8]);
      }
    UNROLL for (int j = 0; j < STEPS; j++) {
      acc[0][j] = fma_f32(float(c[j][0] * 256 + c[j][1]), scale[j], acc[0][j]);
      acc[1][j] = fma_f32(float(c[j][2] * 256 + c[j][3]), scale[j], acc[1][j]);
    }
  } else {
    float c[STEPS][4];
    UNROLL for (int j = 0; j < STEPS; j++) UNROLL for (int e = 0; e < 4; e++) c[j][e] = 0.0f;
    UNROLL for (int i = 0; i < 4; i++) {
      uint v[4];
      UNROLL for (int e = 0; e < 4; e++) v[e] = state_pair<CODEBOOK>(stream_state<K>(w, 8 * i + 2 * e, a), stream_state<K>(w, 8 * i + 2 * e + 1, a));
      UNROLL for (int j = 0; j < STEPS; j++) mma_halves(c[j], v[0], v[2], v[1], v[3], in.b[j][i], in.b[j][i + 4]);
    }
    UNROLL for (int j = 0; j < STEPS; j++) {
      acc[0][j] = fma_f32(c[j][0] + c[j][1], scale[j], acc[0][j]);
      acc[1][j] = fma_f32(c[j][2] + c[j][3], scale[j], acc[1][j]);
    }
  }
}

// EXPERTS: each pair of row and expert has a matrix of the stack, whose words are stack_words; pair p takes row p / share of x, or,
// GATED, row 2 p (a gate) and row 2 p + 1 (what it is for). A group has BLOCKS blocks at most.
template <int K, int CODEBOOK, int PARTS, int M, int RING, int BLOCKS, int IN, int OUT, bool BIAS, bool EXPERTS, bool GATED>
FN void stream_trellises(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE const float *scale_in, DEVICE const uint *packed,
                         DEVICE const float *packed_info, DEVICE const float *scale_out, DEVICE const float *bias, DEVICE float *parts,
                         DEVICE uint *tickets, DEVICE float *y, CONSTANT StreamArgs &a, THREAD const Pairs &pairs, uint share, uint stack_words,
                         THREADGROUP uint *mem) {
  enum { STEPS = (M + 3) / 4, LINE = 16 * K + RING_PAD, PIECE = 4 * LINE, COPIES = (K + 1) / 2, WIDTH = PARTS == BYTES ? 4 : 8, TOGETHER = EXPERTS ? 2 : 4 };
  THREADGROUP uint *ring = mem + at.simd * (RING * PIECE);
  THREADGROUP float *part = (THREADGROUP float *)(mem + STREAM_SIMDS * RING * PIECE);
  THREADGROUP uint *own = mem + STREAM_SIMDS * RING * PIECE + Part<M>::SIZE;                                                   // [BLOCKS][2][4][2][WIDTH]
  THREADGROUP float *own_info = (THREADGROUP float *)(own + BLOCKS * 16 * WIDTH);     // [BLOCKS][2][2]
  const uint g = at.lane / 4, q = at.lane % 4, across = a.rows / 16, deep = a.cols / 128, total = deep * pairs.wide * pairs.count;
  const uint begin = share_begin(at.group.x, a.groups, total), end = share_begin(at.group.x + 1, a.groups, total);
  if (begin >= end) return;  // the whole group
  if (EXPERTS) wait_for_others();  // which experts there are

  // Pieces in the order of their use: half blocks 2 begin + simd / 2, + 4, ...; two pieces each.
  const uint first = 2 * begin + at.simd / 2, stop = 2 * end;
  const uint count = first < stop ? round_up(stop - first, 4) * 2 : 0;
  const uint tile_line = across * 8 * K;  // words of a row of tiles
  uint from[COPIES], to[COPIES];
  UNROLL for (int i = 0; i < COPIES; i++) {
    const uint n = at.lane + 32 * i, row = n / (4 * K), word = n % (4 * K) * 4;
    from[i] = row * tile_line + word;
    to[i] = (row * LINE + word) * 4;
  }
  const uint place = copy_place(ring);
  uint ahead_half = first % (2 * deep), ahead = 0, ahead_place = place;
  // Words from the beginning; a matrix has fewer than 2^32 of them.
  uint ahead_column = first / (2 * deep), ahead_pair = 0;
  bool ahead_there = true;
  DEVICE const uint *ahead_matrix = words;
  if (EXPERTS) {
    ahead_pair = ahead_column / pairs.wide;
    ahead_column %= pairs.wide;
    const uint matrix = ahead_pair < pairs.count ? pairs.places[pairs.index[ahead_pair]] : ~0u;
    ahead_there = matrix != ~0u;
    ahead_matrix = words + (ahead_there ? matrix : 0) * stack_words;
  }
  uint ahead_word = ahead_half * 4 * tile_line + (ahead_column * 8 + at.simd % 2 * 4) * 8 * K;
  // The next half block of a simdgroup is four further down, or in the next column.
#define AHEAD(SECOND)                                                                                        \
  {                                                                                                          \
    const bool there = ahead < count && ahead_there;                                                         \
    UNROLL for (int i = 0; i < COPIES; i++)                                                                  \
      if (K % 2 == 0 || i + 1 < COPIES || at.lane < 16)                                                      \
        copy_16(ahead_place + to[i], ahead_matrix + (ahead_word + from[i]), there);                          \
    copies_end();                                                                                            \
    if (SECOND) {                                                                                            \
      ahead_half += 4;                                                                                       \
      const bool next = ahead_half >= 2 * deep;                                                              \
      ahead_half -= next ? 2 * deep : 0;                                                                     \
      ahead_word += 16 * tile_line - 16 * K;                                                                 \
      ahead_word -= next ? 8 * deep * tile_line - 64 * K : 0;                                                \
      if (EXPERTS && next) {                                                                                 \
        ahead_column++;                                                                                      \
        if (ahead_column == pairs.wide) {                                                                    \
          ahead_word -= pairs.wide * 64 * K;                                                                 \
          ahead_column = 0;                                                                                  \
          ahead_pair++;                                                                                      \
          const uint matrix = ahead_pair < pairs.count ? pairs.places[pairs.index[ahead_pair]] : ~0u;        \
          ahead_there = matrix != ~0u;                                                                       \
          ahead_matrix = words + (ahead_there ? matrix : 0) * stack_words;                                   \
        }                                                                                                    \
      }                                                                                                      \
    } else {                                                                                                 \
      ahead_word += 16 * K;                                                                                  \
    }                                                                                                        \
    ahead++;                                                                                                 \
    ahead_place += 4 * PIECE;                                                                                \
    ahead_place = ahead_place == place + 4 * RING * PIECE ? place : ahead_place;                             \
  }
  UNROLL for (int i = 0; i + 1 < RING; i++) AHEAD(i % 2 == 1)
  if (!EXPERTS) wait_for_others();  // weights are nobody's to write
  others_may_begin();

  if (M == 1) {
    const uint blocks = EXPERTS || end - begin < deep ? end - begin : deep;
    // Several at a time, so that they are asked for together.
    for (uint b = at.simd; b < blocks; b += TOGETHER * STREAM_SIMDS) {
      float4 ins[TOGETHER], scales[TOGETHER];
      UNROLL for (int i = 0; i < TOGETHER; i++) {
        const uint k = (begin + b + i * STREAM_SIMDS) % deep;
        const bool there = b + i * STREAM_SIMDS < blocks;
        const uint pair = EXPERTS && there ? (begin + b + i * STREAM_SIMDS) / (deep * pairs.wide) : 0;
        const uint expert = EXPERTS ? pairs.index[pair] : 0, row = GATED ? 2 * pair : EXPERTS ? pair / share : 0;
        ins[i] = inputs_of_block(x + row * a.features, there ? a.features : 0, k, at.lane);
        if (GATED) {
          const float4 up = inputs_of_block(x + (row + 1) * a.features, there ? a.features : 0, k, at.lane);
          ins[i].x = silu(ins[i].x) * up.x;
          ins[i].y = silu(ins[i].y) * up.y;
          ins[i].z = silu(ins[i].z) * up.z;
          ins[i].w = silu(ins[i].w) * up.w;
        }
        scales[i] = ones();
        if (a.scaled_in != 0 && there) scales[i] = *(DEVICE const float4 *)(scale_in + expert * a.cols + k * 128 + 4 * at.lane);
      }
      UNROLL for (int i = 0; i < TOGETHER; i++) {
        const uint own_block = b + i * STREAM_SIMDS;
        if (own_block < blocks) {  // the whole simdgroup
          float v[4];
          turn_inputs<IN>(ins[i], scales[i], at.lane, v);
          pack_block<PARTS>(v, at.lane, 0, 1, a.factor, a.offset, own + own_block * 16 * WIDTH, own_info + own_block * 4);
        }
      }
    }
    group_barrier();
  }

  THREADGROUP const uint *now = ring;
  TrellisSums<M> sums;
  sums.clear();
  uint half = first, own_half = at.simd / 2;  // own_half: half - 2 begin, in turns of a whole column
  for (uint column = begin / deep; column * deep < end; column++) {
    const uint column_end = (column + 1) * deep < end ? (column + 1) * deep : end;
    for (; half < 2 * column_end; half += 4) {
      if (!EXPERTS) own_half -= own_half >= 2 * deep ? 2 * deep : 0;
      const uint in_half = half - 2 * column * deep;
      TrellisInputs<PARTS, STEPS> in;
      float scale[STEPS];
      if (M == 1) {
        in.load(own + (own_half * 4 + q) * 2 * WIDTH, at.lane, 2);
        scale[0] = own_info[own_half * 2];
        sums.rest[0] += own_info[own_half * 2 + 1];
      } else {
        in.load(packed + (in_half * 4 + q) * (2 * M * WIDTH), at.lane, 2 * M);
        UNROLL for (int j = 0; j < STEPS; j++) {
          const uint m = 4 * j + q < uint(M) ? 4 * j + q : 0;
          scale[j] = packed_info[(in_half * M + m) * 2];
          sums.rest[j] += packed_info[(in_half * M + m) * 2 + 1];
        }
      }
      UNROLL for (int s = 0; s < 2; s++) {
        copies_but<RING - 2>();
        simd_fence();  // the piece is there, and nobody reads the one before any more
        AHEAD((s + RING - 1) % 2 == 1)
        UNROLL for (int t = 0; t < 2; t++) {
          THREADGROUP const uint *tile = now + q * LINE + t * 8 * K;
          uint w[K + 1];
          w[0] = tile[((g + 7) % 8) * K + K - 1];
          if (K % 4 == 0) {
            UNROLL for (int i = 0; i < K / 4; i++) {
              const uint4 v = *(THREADGROUP const uint4 *)(tile + g * K + 4 * i);
              w[4 * i + 1] = v.x;
              w[4 * i + 2] = v.y;
              w[4 * i + 3] = v.z;
              w[4 * i + 4] = v.w;
            }
          } else if (K % 2 == 0) {
            UNROLL for (int i = 0; i < K / 2; i++) {
              const uint2 v = *(THREADGROUP const uint2 *)(tile + g * K + 2 * i);
              w[2 * i + 1] = v.x;
              w[2 * i + 2] = v.y;
            }
          } else {
            UNROLL for (int i = 0; i < K; i++) w[i + 1] = tile[g * K + i];
          }
          trellis_tile<K, CODEBOOK, PARTS, STEPS>(w, in, scale, sums.acc[2 * s + t], a);
        }
        now = now + PIECE == ring + RING * PIECE ? ring : now + PIECE;
      }
      own_half += 4;
    }
    const bool whole = column * deep >= begin && (column + 1) * deep <= end;
    end_column<M, 4, OUT, BIAS, EXPERTS>(at, sums, column, whole, scale_out, bias, parts, tickets, y, a, pairs, part);
    sums.clear();
  }
#undef AHEAD
}

template <int K, int CODEBOOK, int PARTS, int M, int RING, int BLOCKS, int IN, int OUT, bool BIAS>
FN void trellis_stream(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE const float *scale_in, DEVICE const uint *packed,
                       DEVICE const float *packed_info, DEVICE const float *scale_out, DEVICE const float *bias, DEVICE float *parts,
                       DEVICE uint *tickets, DEVICE float *y, CONSTANT StreamArgs &a, THREADGROUP uint *mem) {
  const Pairs pairs = {tickets, tickets, a.rows / 128, 1};
  stream_trellises<K, CODEBOOK, PARTS, M, RING, BLOCKS, IN, OUT, BIAS, false, false>(at, words, x, scale_in, packed, packed_info, scale_out, bias, parts, tickets, y,
                                                                                     a, pairs, 1, 0, mem);
}

// One matrix for each pair of a row and an expert. Row p of y is that of pair p.
template <int K, int CODEBOOK, int PARTS, int RING, int BLOCKS, int IN, int OUT, bool GATED>
FN void trellis_experts(Where at, DEVICE const uint *words, DEVICE const float *x, DEVICE const float *scale_in, DEVICE const float *scale_out,
                        DEVICE const uint *index, DEVICE const uint *places, DEVICE float *parts, DEVICE uint *tickets, DEVICE float *y,
                        CONSTANT ExpertStreamArgs &a, THREADGROUP uint *mem) {
  const Pairs pairs = {index, places, a.s.rows / 128, a.pairs};
  stream_trellises<K, CODEBOOK, PARTS, 1, RING, BLOCKS, IN, OUT, false, true, GATED>(at, words, x, scale_in, index, scale_in, scale_out, scale_in, parts, tickets, y,
                                                                                    a.s, pairs, a.share, a.stack_words, mem);
}
