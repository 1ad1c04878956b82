// Weights [rows, cols] whose rows are stored one after another: dense ones and grouped codes. A weight type W has
//   W::CHUNK                          consecutive inputs that a lane takes at a time
//   W::load(words, args, row, chunk)  the chunk's bits, in registers; what lies beyond the row is 0
//   W::decode(...)                    the chunk's values; those beyond the row are finite

struct Raw {
  uint w[8];
};

// F32, F16, Bf16. VECTOR: rows begin at multiples of 16 bytes.
template <class T> struct DenseBits {
  enum { BYTES = 2 };
};
template <> struct DenseBits<F32> {
  enum { BYTES = 4 };
};
FN float dense_value(THREAD const Raw &r, int i, THREAD const F32 *) { return as_f32(r.w[i]); }
FN float dense_value(THREAD const Raw &r, int i, THREAD const F16 *) { return half_bits((r.w[i / 2] >> (16 * (i % 2))) & 0xFFFFu); }
FN float dense_value(THREAD const Raw &r, int i, THREAD const Bf16 *) { return as_f32((i % 2) != 0 ? r.w[i / 2] & 0xFFFF0000u : r.w[i / 2] << 16); }

template <class T, bool VECTOR> struct Dense {
  enum { BYTES = DenseBits<T>::BYTES, CHUNK = 16 / BYTES };
  static FN void load(DEVICE const uint *words, CONSTANT WeightArgs &a, uint row, uint chunk, THREAD Raw &r) {
    UNROLL for (int i = 0; i < 4; i++) r.w[i] = 0;
    if (row >= a.rows || chunk * CHUNK >= a.cols) return;
    if (VECTOR) {
      const uint4 v = ((DEVICE const uint4 *)words)[row * (a.cols / CHUNK) + chunk];
      r.w[0] = v.x;
      r.w[1] = v.y;
      r.w[2] = v.z;
      r.w[3] = v.w;
    } else if (BYTES == 4) {
      UNROLL for (int i = 0; i < CHUNK; i++)
        if (chunk * CHUNK + i < a.cols) r.w[i & 3] = words[row * a.cols + chunk * CHUNK + i];
    } else {
      UNROLL for (int i = 0; i < CHUNK; i++)
        if (chunk * CHUNK + i < a.cols)
          r.w[i / 2] |= uint(((DEVICE const ushort *)words)[row * a.cols + chunk * CHUNK + i]) << (16 * (i % 2));
    }
  }
  static FN void decode(DEVICE const uchar *factors, CONSTANT WeightArgs &a, uint row, uint chunk, THREAD const Raw &r, THREAD float *out) {
    UNROLL for (int i = 0; i < CHUNK; i++) out[i] = dense_value(r, i, (THREAD const T *)0);
  }
};

// Factors of groups: scales, zero points, minimums, and the factors of those.
enum FactorKind { NO_FACTOR, FACTOR_F32, FACTOR_F16, FACTOR_BF16, FACTOR_E4M3, FACTOR_E8M0, FACTOR_I8, FACTOR_U8, FACTOR_U4 };
FN float e4m3(uint b) { return half_bits(((b & 127u) << 7) | ((b & 128u) << 8)) * 256.0f; }
template <int KIND> FN float factor(DEVICE const uchar *factors, CONSTANT FactorArgs &a, uint row, uint col) {
  DEVICE const uchar *line = factors + a.offset + (row >> a.row_shift) * a.stride;
  const uint i = col >> a.col_shift;
  if (KIND == FACTOR_F32) return ((DEVICE const float *)line)[i];
  if (KIND == FACTOR_F16) return half_bits(((DEVICE const ushort *)line)[i]);
  if (KIND == FACTOR_BF16) return as_f32(uint(((DEVICE const ushort *)line)[i]) << 16);
  if (KIND == FACTOR_E4M3) return e4m3(line[i]);
  if (KIND == FACTOR_E8M0) return as_f32(line[i] == 0 ? 0x00400000u : uint(line[i]) << 23);
  if (KIND == FACTOR_I8) return float(int(uint(line[i]) << 24) >> 24);
  if (KIND == FACTOR_U8) return float(uint(line[i]));
  return float((uint(line[i / 2]) >> (4 * (i % 2))) & 15u);
}

// What a code stands for.
enum CodeMap { INTEGERS, E2M1, E4M3, E5M2, TABLE };
template <int MAP> FN float code_value(uint c, CONSTANT WeightArgs &a) {
  if (MAP == E2M1) return half_bits(((c & 7u) << 9) | ((c & 8u) << 12)) * 16384.0f;
  if (MAP == E4M3) return e4m3(c);
  if (MAP == E5M2) return half_bits(c << 8);
  if (MAP == TABLE) return a.table[c];
  return as_f32(0x4B000000u | c) - 8388608.0f;
}

// Codes of BITS bits, rows of whole words, 16 codes at least to a group; VECTOR words are read at a time. DIVIDE: the outer
// scale divides.
template <int BITS, int MAP, int VECTOR, int SCALE, int OUTER, bool DIVIDE, int ZERO, int MINIMUM, int MINIMUM_OUTER> struct Grouped {
  enum { CHUNK = 32, CODE_BITS = BITS, CODE_MAP = MAP, HAS_MINIMUM = MINIMUM != NO_FACTOR };
  static FN void load(DEVICE const uint *words, CONSTANT WeightArgs &a, uint row, uint chunk, THREAD Raw &r) {
    DEVICE const uint *line = words + row * a.words;
    const uint from = chunk * BITS;
    UNROLL for (int i = 0; i < BITS; i++) r.w[i] = 0;
    if (row >= a.rows) return;
    if (VECTOR == 4) {
      UNROLL for (int i = 0; i + 3 < BITS; i += 4) {
        if (from + i < a.words) {
          const uint4 v = *(DEVICE const uint4 *)(line + from + i);
          r.w[i] = v.x;
          r.w[i + 1] = v.y;
          r.w[i + 2] = v.z;
          r.w[i + 3] = v.w;
        }
      }
    } else if (VECTOR == 2) {
      UNROLL for (int i = 0; i + 1 < BITS; i += 2) {
        if (from + i < a.words) {
          const uint2 v = *(DEVICE const uint2 *)(line + from + i);
          r.w[i] = v.x;
          r.w[i + 1] = v.y;
        }
      }
    } else {
      UNROLL for (int i = 0; i < BITS; i++)
        if (from + i < a.words) r.w[i] = line[from + i];
    }
  }
  // What belongs to the group of a value; nothing to one that is not there.
  static FN void group(DEVICE const uchar *factors, CONSTANT WeightArgs &a, uint row, uint col, THREAD float &scale, THREAD float &minimum, THREAD float &zero) {
    scale = minimum = 0.0f;
    zero = a.zero_point;
    if (row >= a.rows || col >= a.cols) return;
    scale = factor<SCALE>(factors, a.scale, row, col);
    if (OUTER != NO_FACTOR) {
      const float outer = factor<OUTER>(factors, a.outer, row, col);
      scale = DIVIDE ? scale / outer : scale * outer;
    }
    if (ZERO != NO_FACTOR) zero = factor<ZERO>(factors, a.zero, row, col);
    if (MINIMUM != NO_FACTOR) minimum = factor<MINIMUM>(factors, a.minimum, row, col);
    if (MINIMUM_OUTER != NO_FACTOR) minimum *= factor<MINIMUM_OUTER>(factors, a.minimum_outer, row, col);
  }
  static FN void decode(DEVICE const uchar *factors, CONSTANT WeightArgs &a, uint row, uint chunk, THREAD const Raw &r, THREAD float *out) {
    UNROLL for (int h = 0; h < 2; h++) {
      const uint col = chunk * 32 + 16 * h;
      float scale, minimum, zero;
      group(factors, a, row, col, scale, minimum, zero);
      UNROLL for (int i = 0; i < 16; i++) {
        const int bit = (16 * h + i) * BITS, word = bit / 32, shift = bit % 32;
        uint c = r.w[word] >> shift;
        if (shift + BITS > 32) c |= r.w[word + 1 < BITS ? word + 1 : word] << (32 - shift);
        float v = code_value<MAP>(c & ((1u << BITS) - 1u), a);
        if (MAP == INTEGERS) v -= zero;
        v *= scale;
        if (MINIMUM != NO_FACTOR) v += minimum;
        out[16 * h + i] = v;
      }
    }
  }
};

// Row index[i] of the weight, as floats: embedding. One simdgroup takes 32 chunks of one row.
template <class W>
FN void decode_rows(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE const uint *index, DEVICE float *y,
                    CONSTANT WeightArgs &a) {
  const uint row = index[at.group.y], chunk = at.group.x * 128 + at.thread_;
  Raw raw;
  float v[W::CHUNK];
  W::load(words, a, row, chunk, raw);
  W::decode(factors, a, row, chunk, raw, v);
  UNROLL for (int i = 0; i < W::CHUNK; i++) {
    const uint c = chunk * W::CHUNK + i;
    if (c < a.cols) y[at.group.y * a.cols + c] = row < a.rows ? v[i] : 0.0f;
  }
}
