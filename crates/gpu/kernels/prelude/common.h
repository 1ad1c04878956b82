// What every target has after its own prelude.

// Sum and maximum over a simdgroup, in the same order everywhere; all 32 lanes must arrive.
FN float simd_total(float v) {
  UNROLL for (uint mask = 16; mask > 0; mask /= 2) v += lane_xor(v, mask);
  return v;
}
FN float simd_greatest(float v) {
  UNROLL for (uint mask = 16; mask > 0; mask /= 2) v = max_f32(v, lane_xor(v, mask));
  return v;
}
FN uint round_up(uint a, uint b) { return (a + b - 1) / b; }

// Element types of memory: a typed view of device memory with conversion from and to float. Eight values that begin at a multiple
// of eight are WORDS words, loaded at once. SCALED ones are bytes whose vector has a scale: a value is the byte's number times
// it, the greatest of the vector being TOP.
struct F32 {
  enum { WORDS = 8, SCALED = 0 };
  static FN float get(DEVICE const uchar *p, uint i) { return ((DEVICE const float *)p)[i]; }
  static FN void put(DEVICE uchar *p, uint i, float v) { ((DEVICE float *)p)[i] = v; }
  static FN float top() { return 1.0f; }
  static FN void load8(DEVICE const uchar *p, uint i, THREAD uint *w) {
    const uint4 a = ((DEVICE const uint4 *)p)[i / 4], b = ((DEVICE const uint4 *)p)[i / 4 + 1];
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
  }
  static FN float value8(THREAD const uint *w, int j) { return as_f32(w[j]); }
};
FN void load_halves(DEVICE const uchar *p, uint i, THREAD uint *w) {
  const uint4 a = ((DEVICE const uint4 *)p)[i / 8];
  w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
}
struct F16 {
  enum { WORDS = 4, SCALED = 0 };
  static FN float get(DEVICE const uchar *p, uint i) { return half_bits(((DEVICE const ushort *)p)[i]); }
  static FN void put(DEVICE uchar *p, uint i, float v) { ((DEVICE ushort *)p)[i] = ushort(bits_of_half(v)); }
  static FN float top() { return 1.0f; }
  static FN void load8(DEVICE const uchar *p, uint i, THREAD uint *w) { load_halves(p, i, w); }
  static FN float value8(THREAD const uint *w, int j) { return half_bits((w[j / 2] >> (16 * (j % 2))) & 0xFFFFu); }
};
struct Bf16 {
  enum { WORDS = 4, SCALED = 0 };
  static FN float get(DEVICE const uchar *p, uint i) { return as_f32(uint(((DEVICE const ushort *)p)[i]) << 16); }
  static FN void put(DEVICE uchar *p, uint i, float v) {
    const uint u = as_u32(v);  // to the nearest, ties to even; NaN stays one
    const uint r = v != v ? (u >> 16) | 0x40u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    ((DEVICE ushort *)p)[i] = ushort(r);
  }
  static FN float top() { return 1.0f; }
  static FN void load8(DEVICE const uchar *p, uint i, THREAD uint *w) { load_halves(p, i, w); }
  static FN float value8(THREAD const uint *w, int j) { return as_f32((j % 2) != 0 ? w[j / 2] & 0xFFFF0000u : w[j / 2] << 16); }
};
FN void load_bytes(DEVICE const uchar *p, uint i, THREAD uint *w) {
  const uint2 a = ((DEVICE const uint2 *)p)[i / 8];
  w[0] = a.x, w[1] = a.y;
}
struct Int8 {
  enum { WORDS = 2, SCALED = 1 };
  static FN float number(uint b) { return float(int(b << 24) >> 24); }
  static FN float get(DEVICE const uchar *p, uint i) { return number(p[i]); }
  static FN void put(DEVICE uchar *p, uint i, float v) { p[i] = uchar(uint(int(round_f32(max_f32(-127.0f, -max_f32(-v, -127.0f))))) & 255u); }
  static FN float top() { return 127.0f; }
  static FN void load8(DEVICE const uchar *p, uint i, THREAD uint *w) { load_bytes(p, i, w); }
  static FN float value8(THREAD const uint *w, int j) { return number((w[j / 4] >> (8 * (j % 4))) & 255u); }
};
// E4M3 without its seven subnormal numbers, as the CPU stores it: the nearest number or zero, ties to even, at most 448.
struct Fp8 {
  enum { WORDS = 2, SCALED = 1 };
  static FN float number(uint b) { return half_bits(((b & 127u) << 7) | ((b & 128u) << 8)) * 256.0f; }
  static FN float get(DEVICE const uchar *p, uint i) { return number(p[i]); }
  static FN void put(DEVICE uchar *p, uint i, float v) {
    const uint sign = (as_u32(v) >> 24) & 128u;
    const float size = -max_f32(-abs_f32(v), -448.0f), least = 1.0f / 64.0f;
    const uint bits = as_u32(size), rounded = bits + 0x7FFFFu + ((bits >> 20) & 1u);
    const uint code = size < least ? (size > least / 2.0f ? 8u : 0u) : (rounded >> 20) - (120u << 3);
    p[i] = uchar(sign | code);
  }
  static FN float top() { return 448.0f; }
  static FN void load8(DEVICE const uchar *p, uint i, THREAD uint *w) { load_bytes(p, i, w); }
  static FN float value8(THREAD const uint *w, int j) { return number((w[j / 4] >> (8 * (j % 4))) & 255u); }
};

// W (1 or 8) values from number i on, in registers, and value j of them.
template <class T, int W> FN void load_chunk(DEVICE const uchar *p, uint i, THREAD uint *w) {
  if (W == 8) {
    T::load8(p, i, w);
  } else {
    w[0] = as_u32(T::get(p, i));
  }
}
template <class T, int W> FN float chunk_value(THREAD const uint *w, int j) { return W == 8 ? T::value8(w, j) : as_f32(w[0]); }

// The scale of a vector whose greatest magnitude is `most`, and what its values are multiplied with before they are rounded.
FN float scale_of(float most, float top) { return most / top; }
FN float inverse_of(float most, float top) { return most == 0.0f ? 0.0f : top / most; }
