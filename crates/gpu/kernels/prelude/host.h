// The dialect on the simulated GPU: a host compiler, C++17. Loads and stores are seen by the simulator through the calls
// that -fsanitize=thread inserts; see the simulator's runtime.
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long long ulong;

#define DEVICE
#define THREADGROUP
#define THREAD
#define CONSTANT const
#define FN inline
#define UNROLL
#define UNROLL_SOME

extern "C" {
void sim_barrier(int device, int line);
unsigned sim_exchange(unsigned value, unsigned from, int line);
void *sim_shared(int index, unsigned long bytes);
void sim_where(unsigned *out);
}

struct uint2 { uint x, y; };
struct uint3 { uint x, y, z; };
struct alignas(16) uint4 { uint x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct half {  // storage only
  ushort bits;
};

struct Where {
  uint3 group;   // of the grid
  uint thread_;  // in the group
  uint lane;     // in the simdgroup
  uint simd;     // simdgroup in the group
};

FN Where here() {
  uint at[4];
  sim_where(at);
  return Where{{at[0], at[1], at[2]}, at[3], at[3] % 32, at[3] / 32};
}

FN float as_f32(uint u) { return __builtin_bit_cast(float, u); }
FN uint as_u32(float f) { return __builtin_bit_cast(uint, f); }

FN void group_barrier(int line = __builtin_LINE()) { sim_barrier(0, line); }
FN void device_barrier(int line = __builtin_LINE()) { sim_barrier(1, line); }
FN void simd_fence(int line = __builtin_LINE()) { sim_exchange(0, 32, line); }
FN uint lane_value(uint v, uint lane, int line = __builtin_LINE()) { return sim_exchange(v, lane, line); }
FN float lane_value(float v, uint lane, int line = __builtin_LINE()) { return as_f32(sim_exchange(as_u32(v), lane, line)); }
FN uint lane_xor(uint v, uint mask, int line = __builtin_LINE()) { return sim_exchange(v, here().lane ^ mask, line); }
FN float lane_xor(float v, uint mask, int line = __builtin_LINE()) { return as_f32(lane_xor(as_u32(v), mask, line)); }

FN float half_bits(uint u) { return (float)__builtin_bit_cast(_Float16, (ushort)u); }
FN uint bits_of_half(float f) { return __builtin_bit_cast(ushort, (_Float16)f); }

FN float exp_f32(float v) { return __builtin_expf(v); }
FN float rsqrt_f32(float v) { return 1.0f / __builtin_sqrtf(v); }
FN float max_f32(float a, float b) { return __builtin_fmaxf(a, b); }
FN float abs_f32(float a) { return __builtin_fabsf(a); }
FN float round_f32(float v) { return __builtin_rintf(v); }  // to the nearest, ties to even
FN float fma_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// Products and sums that are rounded each for itself.
FN float times(float a, float b) { return a * b; }
FN float plus(float a, float b) { return a + b; }

FN float add_halves(uint a, uint b) { return half_bits(bits_of_half(half_bits(a) + half_bits(b))); }
FN float fma_halves(uint a, uint b, uint c) {
  // Products of halves are exact in double, and so is this sum of a product and a half within 2^53.
  return (float)(_Float16)((double)half_bits(a) * (double)half_bits(b) + (double)half_bits(c));
}
FN uint sum_bytes(uint x) { return (x & 255) + ((x >> 8) & 255) + ((x >> 16) & 255) + (x >> 24); }
FN uint shift_right_64(uint high, uint low, uint by) { return (uint)((((unsigned long long)high << 32) | low) >> by); }

// A simdgroup's 32 x 32 tile of c = a · b^T over 8 inputs at a time; a and b are [32][line] in threadgroup memory. Here lane l has
// row l of the tile; like the real ones, all lanes must arrive together.
struct MatTile {
  float c[32];
  void clear() {
    for (int j = 0; j < 32; j++) c[j] = 0.0f;
  }
  void multiply(const float *a, const float *b, uint line, uint lane, int at = __builtin_LINE()) {
    sim_exchange(0, 33, at);
    for (int j = 0; j < 32; j++)
      for (int k = 0; k < 8; k++) c[j] += a[lane * line + k] * b[j * line + k];
  }
  void store(float *out, uint line, uint lane, int at = __builtin_LINE()) {
    sim_exchange(0, 33, at);
    for (int j = 0; j < 32; j++) out[lane * line + j] = c[j];
  }
};
