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

// Element types of memory: a typed view of device memory with conversion from and to float.
struct F32 {
  static FN float get(DEVICE const uchar *p, uint i) { return ((DEVICE const float *)p)[i]; }
  static FN void put(DEVICE uchar *p, uint i, float v) { ((DEVICE float *)p)[i] = v; }
};
struct F16 {
  static FN float get(DEVICE const uchar *p, uint i) { return half_bits(((DEVICE const ushort *)p)[i]); }
  static FN void put(DEVICE uchar *p, uint i, float v) { ((DEVICE ushort *)p)[i] = ushort(bits_of_half(v)); }
};
struct Bf16 {
  static FN float get(DEVICE const uchar *p, uint i) { return as_f32(uint(((DEVICE const ushort *)p)[i]) << 16); }
  static FN void put(DEVICE uchar *p, uint i, float v) {
    const uint u = as_u32(v);  // to the nearest, ties to even; NaN stays one
    const uint r = v != v ? (u >> 16) | 0x40u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    ((DEVICE ushort *)p)[i] = ushort(r);
  }
};
