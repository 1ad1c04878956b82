// Grouped codes of 2, 4 or 8 bits with the streaming kernels (stream.h). A simdgroup takes 128 inputs of 16 outputs at a time; lane
// 4 g + q has outputs g and g + 8, inputs 32 q .. 32 q + 31. Codes go to the tensor core as bytes, and each lane's inputs have two
// columns of their own, high and low parts: so its sums are those of its 32 codes, which share a scale (16 do with PIECES of 2).
//
// E2M1's magnitudes times two are small integers. Positive and negative ones are summed apart.

// In which order inputs stand that codes are spread from: natural, or as words of codes give them when masked.
template <class W> FN uint code_place(uint p) {
  if (W::CODE_MAP == INTEGERS && W::CODE_BITS == 4) return (p & ~7u) | (p & 1u) << 2 | ((p >> 1) & 3u);
  if (W::CODE_MAP == INTEGERS && W::CODE_BITS == 2) return (p & ~15u) | (p & 3u) << 2 | ((p >> 2) & 3u);
  return p;
}

// Packs 128 inputs of one of `rows` rows, 4 consecutive ones to a lane: for each 32 the 32 high parts and the low ones, and for each 16 their
// scale and the scale times their sum.
template <class W>
FN void pack_for_codes(THREAD const float *v, uint lane, uint row, uint rows, THREADGROUP uint *packed, THREADGROUP float *info) {
  const float top = simd_greatest(max_f32(max_f32(abs_f32(v[0]), abs_f32(v[1])), max_f32(abs_f32(v[2]), abs_f32(v[3]))));
  const float scale = top / 32512.0f, inverse = top > 1e-30f ? 32512.0f / top : 0.0f;
  THREADGROUP uchar *line = (THREADGROUP uchar *)(packed + (lane / 8 * rows + row) * 16);
  float sum = 0.0f;
  UNROLL for (int i = 0; i < 4; i++) {
    const int q = round_to_int(v[i] * inverse);
    const uint place = code_place<W>(lane % 8 * 4 + i);
    line[place] = uchar(uint((q + 128) >> 8));
    line[32 + place] = uchar(uint(q));
    sum += float(q);
  }
  sum += lane_xor(sum, 1u);
  sum += lane_xor(sum, 2u);
  if (lane % 4 == 0) {
    info[(lane / 4 * rows + row) * 2] = scale;
    info[(lane / 4 * rows + row) * 2 + 1] = scale * sum;
  }
}

template <class W>
FN void pack_rows_for_codes(Where at, DEVICE const float *x, DEVICE uint *packed, DEVICE float *info, CONSTANT PackArgs &a) {
  wait_for_others();
  others_may_begin();
  const uint k = at.group.x * 4 + at.simd, row = at.group.y;
  if (k * 128 >= a.cols) return;  // the whole simdgroup
  float v[4];
  turned_inputs<1>(x + row * a.features, x, false, row < a.batch ? a.features : 0, k, at.lane, v);
  pack_for_codes<W>(v, at.lane, row, a.rows, packed + k * a.rows * 64, info + k * a.rows * 16);
}

template <int M> struct GroupedSums {
  enum { ROWS = M < 4 ? M : 4 };
  float acc[M][2];
  FN void clear() {
    UNROLL for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = 0.0f;
  }
  FN void write(THREADGROUP float *part, int j, uint simd, uint lane) const {
    UNROLL for (int i = 0; i < ROWS; i++)
      UNROLL for (int s = 0; s < 2; s++) {
        float v = acc[4 * j + i][s];
        v += lane_xor(v, 1u);
        v += lane_xor(v, 2u);
        if (lane % 4 == 0) part[i * PART_LINE + simd * 16 + 8 * s + lane / 4] = v;
      }
  }
};

// 32 codes of a row as bytes: four pairs of words for the tensor core, and those that are negative.
template <class W> FN void spread_codes(THREAD const uint *w, THREAD uint *plus, THREAD uint *minus) {
  if (W::CODE_MAP == E2M1) {
    UNROLL for (int j = 0; j < 4; j++) {
      // Digits choose among 0, 1, 2, 3, 4, 6, 8, 12; the sign bit asks for the highest bit of those, which is 0.
      const uint u = w[j], v = w[j] ^ 0x88888888u;
      plus[2 * j] = pick_signs(0x03020100u, 0x0C080604u, u & 0xFFFFu);
      plus[2 * j + 1] = pick_signs(0x03020100u, 0x0C080604u, u >> 16);
      minus[2 * j] = pick_signs(0x03020100u, 0x0C080604u, v & 0xFFFFu);
      minus[2 * j + 1] = pick_signs(0x03020100u, 0x0C080604u, v >> 16);
    }
  } else if (W::CODE_BITS == 4) {
    UNROLL for (int j = 0; j < 4; j++) {
      plus[2 * j] = w[j] & 0x0F0F0F0Fu;
      plus[2 * j + 1] = (w[j] >> 4) & 0x0F0F0F0Fu;
    }
  } else if (W::CODE_BITS == 2) {
    UNROLL for (int j = 0; j < 8; j++) plus[j] = (w[j / 4] >> (2 * (j % 4))) & 0x03030303u;
  } else {
    UNROLL for (int j = 0; j < 8; j++) plus[j] = w[j];
  }
}

template <class W, int PIECES, int M, int RING, int BLOCKS, bool BIAS>
FN void grouped_stream(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const float *x, DEVICE const uint *packed,
                       DEVICE const float *packed_info, DEVICE const float *bias, DEVICE float *parts, DEVICE uint *tickets, DEVICE float *y,
                       CONSTANT GroupedStreamArgs &a, THREADGROUP uint *mem) {
  enum { BITS = W::CODE_BITS, LINE = 4 * BITS + (BITS == 8 ? 4 : 0), STAGE = 16 * LINE, COPIES = BITS / 2, HALF = 8 / PIECES };
  THREADGROUP uint *ring = mem + at.simd * (RING * STAGE);
  THREADGROUP float *part = (THREADGROUP float *)(mem + STREAM_SIMDS * RING * STAGE);
  THREADGROUP uint *own = mem + STREAM_SIMDS * RING * STAGE + (M < 4 ? M : 4) * PART_LINE;  // [BLOCKS][4][16]
  THREADGROUP float *own_info = (THREADGROUP float *)(own + BLOCKS * 64);                   // [BLOCKS][8][2]
  const uint g = at.lane / 4, q = at.lane % 4, deep = round_up(a.s.cols, 128), total = deep * round_up(a.s.rows, 128);
  const Pairs pairs = {tickets, tickets, round_up(a.s.rows, 128), 1};
  const uint begin = share_begin(at.group.x, a.s.groups, total), end = share_begin(at.group.x + 1, a.s.groups, total);
  if (begin >= end) return;  // the whole group

  // Rows of 4 * BITS words of a block, 16 bytes at a time.
  uint ahead_column = begin / deep, ahead_block = begin % deep, ahead = begin;
  const uint place = copy_place(ring);
  uint ahead_place = place;
#define AHEAD()                                                                                                               \
  {                                                                                                                           \
    UNROLL for (int i = 0; i < COPIES; i++) {                                                                                 \
      const uint n = at.lane + 32 * i, row = n / BITS, word = n % BITS * 4;                                                   \
      const uint from_row = ahead_column * 128 + at.simd * 16 + row, from_word = ahead_block * 4 * BITS + word;               \
      const bool there = ahead < end && from_row < a.w.rows && from_word < a.w.words;                                         \
      copy_16(ahead_place + (row * LINE + word) * 4, words + (there ? from_row * a.w.words + from_word : 0), there);          \
    }                                                                                                                         \
    copies_end();                                                                                                             \
    ahead++;                                                                                                                  \
    const bool next = ahead_block + 1 == deep;                                                                                \
    ahead_block = next ? 0 : ahead_block + 1;                                                                                 \
    ahead_column += next ? 1 : 0;                                                                                             \
    ahead_place += 4 * STAGE;                                                                                                 \
    ahead_place = ahead_place == place + 4 * RING * STAGE ? place : ahead_place;                                              \
  }
  UNROLL for (int i = 0; i + 1 < RING; i++) AHEAD()
  wait_for_others();  // weights are nobody's to write
  others_may_begin();

  if (M == 1) {
    const uint blocks = end - begin < deep ? end - begin : deep;
    for (uint b = at.simd; b < blocks; b += STREAM_SIMDS) {
      float v[4];
      turned_inputs<1>(x, x, false, a.s.features, (begin + b) % deep, at.lane, v);
      pack_for_codes<W>(v, at.lane, 0, 1, own + b * 64, own_info + b * 16);
    }
    group_barrier();
  }

  THREADGROUP const uint *now = ring;
  GroupedSums<M> sums;
  sums.clear();
  uint slot = 0;  // the block among the group's own inputs
  float scale[2][PIECES], minimum[2][PIECES], zero[2][PIECES];
  UNROLL for (int r = 0; r < 2; r++)
    UNROLL for (int p = 0; p < PIECES; p++)
      W::group(factors, a.w, begin / deep * 128 + at.simd * 16 + g + 8 * r, begin % deep * 128 + 32 * q + 16 * p, scale[r][p], minimum[r][p], zero[r][p]);
  for (uint column = begin / deep; column * deep < end; column++) {
    const uint from = column * deep > begin ? column * deep : begin, to = (column + 1) * deep < end ? (column + 1) * deep : end;
    for (uint unit = from; unit < to; unit++) {
      const uint block = unit - column * deep;
      // The next block's factors are asked for before this one's are used.
      float next_scale[2][PIECES], next_minimum[2][PIECES], next_zero[2][PIECES];
      const bool turn = block + 1 == deep;
      const uint next_row = (turn ? column + 1 : column) * 128 + at.simd * 16 + g, next_col = (turn ? 0 : block + 1) * 128 + 32 * q;
      UNROLL for (int r = 0; r < 2; r++)
        UNROLL for (int p = 0; p < PIECES; p++)
          W::group(factors, a.w, unit + 1 < end ? next_row + 8 * r : a.w.rows, next_col + 16 * p, next_scale[r][p], next_minimum[r][p], next_zero[r][p]);
      copies_but<RING - 2>();
      simd_fence();  // the block is there, and nobody reads the one before any more
      AHEAD()
      uint plus[2][8], minus[2][8];
      UNROLL for (int r = 0; r < 2; r++) {
        THREADGROUP const uint *line = now + (g + 8 * r) * LINE + q * BITS;
        uint w[BITS];
        if (BITS == 2) {
          const uint2 v = *(THREADGROUP const uint2 *)line;
          w[0] = v.x;
          w[1] = v.y;
        } else {
          UNROLL for (int i = 0; i + 3 < BITS; i += 4) {
            const uint4 v = *(THREADGROUP const uint4 *)(line + i);
            w[i] = v.x;
            w[i + 1] = v.y;
            w[i + 2] = v.z;
            w[i + 3] = v.w;
          }
        }
        spread_codes<W>(w, plus[r], minus[r]);
      }
      const bool mine = g / 2 == q;
      UNROLL for (int m = 0; m < M; m++) {
        THREADGROUP const uint *line = M == 1 ? own + (slot * 4 + q) * 16 : packed + ((block * 4 + q) * M + m) * 16;
        THREADGROUP const float *info = M == 1 ? own_info + (slot * 4 + q) * 4 : packed_info + ((block * 8 + 2 * q) * M + m) * 2;
        uint b[8];
        UNROLL for (int i = 0; i < 8; i++) b[i] = 0;
        if (mine) {
          THREADGROUP const uint4 *p = (THREADGROUP const uint4 *)(line + g % 2 * 8);
          const uint4 u = p[0], v = p[1];
          b[0] = u.x;
          b[1] = u.y;
          b[2] = u.z;
          b[3] = u.w;
          b[4] = v.x;
          b[5] = v.y;
          b[6] = v.z;
          b[7] = v.w;
        }
        UNROLL for (int p = 0; p < PIECES; p++) {
          int c[4] = {0, 0, 0, 0};
          UNROLL for (int j = p * HALF; j < (p + 1) * HALF; j += 2) mma_bytes(c, plus[0][j], plus[1][j], plus[0][j + 1], plus[1][j + 1], b[j], b[j + 1]);
          if (W::CODE_MAP == E2M1) {
            int d[4] = {0, 0, 0, 0};
            UNROLL for (int j = p * HALF; j < (p + 1) * HALF; j += 2) mma_bytes(d, minus[0][j], minus[1][j], minus[0][j + 1], minus[1][j + 1], b[j], b[j + 1]);
            UNROLL for (int e = 0; e < 4; e++) c[e] -= d[e];
          }
          // Scale and sum of the inputs; without pieces, of 32 of them.
          const float of = info[p * 2 * M] * (W::CODE_MAP == E2M1 ? 0.5f : 1.0f);
          UNROLL for (int r = 0; r < 2; r++) {
            float v = float(c[2 * r] * 256 + c[2 * r + 1]) * of;
            if (W::CODE_MAP == INTEGERS || W::HAS_MINIMUM) {
              const float all = info[p * 2 * M + 1] + (PIECES == 1 ? info[2 * M + 1] : 0.0f);
              if (W::CODE_MAP == INTEGERS) v -= zero[r][p] * all;
              if (W::HAS_MINIMUM) sums.acc[m][r] += minimum[r][p] * all;
            }
            sums.acc[m][r] = fma_f32(v, scale[r][p], sums.acc[m][r]);
          }
        }
      }
      UNROLL for (int r = 0; r < 2; r++)
        UNROLL for (int p = 0; p < PIECES; p++) {
          scale[r][p] = next_scale[r][p];
          minimum[r][p] = next_minimum[r][p];
          zero[r][p] = next_zero[r][p];
        }
      now = now + STAGE == ring + RING * STAGE ? ring : now + STAGE;
      slot = slot + 1 == deep ? 0 : slot + 1;
    }
    const bool whole = column * deep >= begin && (column + 1) * deep <= end;
    end_column<M, 1, 1, BIAS, false>(at, sums, column, whole, x, bias, parts, tickets, y, a.s, pairs, part);
    sums.clear();
  }
#undef AHEAD
}
