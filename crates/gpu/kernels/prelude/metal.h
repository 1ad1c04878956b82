// The dialect on Apple GPUs: Metal Shading Language 3.1.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

#define DEVICE device
#define THREADGROUP threadgroup
#define THREAD thread
#define CONSTANT constant
#define FN inline
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_SOME _Pragma("clang loop unroll_count(8)")
// What entry points and threadgroup arrays are marked with besides; Metal needs nothing, the compilers that check need more.
#ifndef ENTRY
#define ENTRY
#define SHARED_STORAGE
#endif

struct Where {
  uint3 group;   // of the grid
  uint thread_;  // in the group
  uint lane;     // in the simdgroup
  uint simd;     // simdgroup in the group
};
FN Where here(uint3 group, uint thread_, uint lane, uint simd) {
  return Where{group, thread_, lane, simd};
}

// Orders threadgroup memory among the group's threads; device_barrier orders device memory, too.
FN void group_barrier() { threadgroup_barrier(mem_flags::mem_threadgroup); }
FN void device_barrier() { threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup); }
// Orders threadgroup memory among the simdgroup's lanes.
FN void simd_fence() { simdgroup_barrier(mem_flags::mem_threadgroup); }

FN float lane_value(float v, uint lane) { return simd_shuffle(v, ushort(lane)); }
FN uint lane_value(uint v, uint lane) { return simd_shuffle(v, ushort(lane)); }
FN float lane_xor(float v, uint mask) { return simd_shuffle_xor(v, ushort(mask)); }
FN uint lane_xor(uint v, uint mask) { return simd_shuffle_xor(v, ushort(mask)); }

FN float as_f32(uint u) { return as_type<float>(u); }
FN uint as_u32(float f) { return as_type<uint>(f); }
FN float half_bits(uint u) { return float(as_type<half>(ushort(u))); }  // the half with these 16 bits
FN uint bits_of_half(float f) { return uint(as_type<ushort>(half(f))); }

FN float exp_f32(float v) { return precise::exp(v); }
FN float rsqrt_f32(float v) { return precise::rsqrt(v); }
FN float max_f32(float a, float b) { return fmax(a, b); }
FN float abs_f32(float a) { return fabs(a); }
FN float round_f32(float v) { return rint(v); }  // to the nearest, ties to even
FN float fma_f32(float a, float b, float c) { return fma(a, b, c); }
// Products and sums that are rounded each for itself.
FN float times(float a, float b) {
#pragma clang fp contract(off)
  return a * b;
}
FN float plus(float a, float b) {
#pragma clang fp contract(off)
  return a + b;
}

// The sum of two halves, rounded once, as bits.
FN float add_halves(uint a, uint b) { return float(as_type<half>(ushort(a)) + as_type<half>(ushort(b))); }
// a * b + c on halves, rounded once.
FN float fma_halves(uint a, uint b, uint c) {
  return float(fma(as_type<half>(ushort(a)), as_type<half>(ushort(b)), as_type<half>(ushort(c))));
}
// The sum of a word's four bytes.
FN uint sum_bytes(uint x) {
  uint s = (x & 0x00FF00FFu) + ((x >> 8) & 0x00FF00FFu);
  return (s + (s >> 16)) & 0xFFFFu;
}
FN uint shift_right_64(uint high, uint low, uint by) { return by == 0u ? low : (low >> by) | (high << (32u - by)); }

// A simdgroup's 32 x 32 tile of c = a · b^T over 8 inputs at a time; a and b are [32][line] in threadgroup memory. Operands
// are read with 10 bits of mantissa at least; sums are f32.
struct MatTile {
  simdgroup_matrix<float, 8, 8> c[4][4];
  FN void clear() {
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) c[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  FN void multiply(threadgroup const float *a, threadgroup const float *b, uint line, uint lane) {
    simdgroup_matrix<float, 8, 8> fa[4], fb[4];
    UNROLL for (int i = 0; i < 4; i++) simdgroup_load(fa[i], a + 8 * i * line, ulong(line));
    UNROLL for (int j = 0; j < 4; j++) simdgroup_load(fb[j], b + 8 * j * line, ulong(line), ulong2(0), true);
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) simdgroup_multiply_accumulate(c[i][j], fa[i], fb[j], c[i][j]);
  }
  FN void store(threadgroup float *out, uint line, uint lane) {
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) simdgroup_store(c[i][j], out + 8 * i * line + 8 * j, ulong(line));
  }
};
