// The dialect on NVIDIA GPUs: NVRTC, sm_80 and later. Needs no CUDA header.
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long long ulong;

#define DEVICE
#define THREADGROUP
#define THREAD
#define CONSTANT const
#define FN __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_SOME _Pragma("unroll 8")

struct Where {
  uint3 group;   // of the grid
  uint thread_;  // in the group
  uint lane;     // in the simdgroup
  uint simd;     // simdgroup in the group
};
FN Where here() {
  Where w;
  w.group.x = blockIdx.x;
  w.group.y = blockIdx.y;
  w.group.z = blockIdx.z;
  w.thread_ = threadIdx.x;
  w.lane = threadIdx.x & 31u;
  w.simd = threadIdx.x >> 5;
  return w;
}

// Every kernel begins so. From Hopper on the next kernel of the stream may already take its place while this one runs, and waits
// for its end here: what a launch costs is spent meanwhile (programmatic dependent launch). The next but one does not, because the
// next says that it has begun only when it has waited: otherwise kernels to come would fill the cores.
FN void begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

FN void group_barrier() { __syncthreads(); }
FN void device_barrier() { __syncthreads(); }
FN void simd_fence() { __syncwarp(); }

FN float lane_value(float v, uint lane) { return __shfl_sync(~0u, v, lane); }
FN uint lane_value(uint v, uint lane) { return __shfl_sync(~0u, v, lane); }
FN float lane_xor(float v, uint mask) { return __shfl_xor_sync(~0u, v, mask); }
FN uint lane_xor(uint v, uint mask) { return __shfl_xor_sync(~0u, v, mask); }

struct half {  // storage only
  ushort bits;
};
FN float as_f32(uint u) { return __uint_as_float(u); }
FN uint as_u32(float f) { return __float_as_uint(f); }
FN float half_bits(uint u) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((ushort)u));
  return f;
}
FN uint bits_of_half(float f) {
  ushort h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

FN float exp_f32(float v) { return expf(v); }
FN float rsqrt_f32(float v) { return 1.0f / sqrtf(v); }
FN float max_f32(float a, float b) { return fmaxf(a, b); }
FN float abs_f32(float a) { return fabsf(a); }
FN float round_f32(float v) { return rintf(v); }  // to the nearest, ties to even
FN float fma_f32(float a, float b, float c) { return fmaf(a, b, c); }
// Products and sums that are rounded each for itself.
FN float times(float a, float b) { return __fmul_rn(a, b); }
FN float plus(float a, float b) { return __fadd_rn(a, b); }

FN float add_halves(uint a, uint b) {
  ushort r;
  asm("add.rn.f16 %0, %1, %2;" : "=h"(r) : "h"((ushort)a), "h"((ushort)b));
  return half_bits(r);
}
FN float fma_halves(uint a, uint b, uint c) {
  ushort r;
  asm("fma.rn.f16 %0, %1, %2, %3;" : "=h"(r) : "h"((ushort)a), "h"((ushort)b), "h"((ushort)c));
  return half_bits(r);
}
FN uint sum_bytes(uint x) { return __dp4a(x, 0x01010101u, 0u); }
FN uint shift_right_64(uint high, uint low, uint by) { return __funnelshift_r(low, high, by); }

// A simdgroup's 32 x 32 tile of c = a · b^T over 8 inputs at a time; a and b are [32][line] in threadgroup memory. An operand goes as
// the sum of two TF32 numbers (10 bits of mantissa each), of whose products only that of the two small ones is left out: what is
// lost is about what an f32 sum rounds away. (One TF32 number alone moves a router's logits by enough to choose other
// experts.) Lane = 4 g + q holds, of each 16 x 8 piece, (g, 2q), (g, 2q + 1) and the same of row g + 8 (PTX ISA, mma.m16n8k8).
FN uint to_tf32(float v) {
  uint r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
  return r;
}
struct MatTile {
  float c[2][4][4];
  FN void clear() {
    UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j < 4; j++) UNROLL for (int e = 0; e < 4; e++) c[i][j][e] = 0.0f;
  }
  FN static void split(float v, uint &great, uint &small) {
    great = to_tf32(v);
    small = to_tf32(v - as_f32(great));
  }
  FN void add_product(int i, int j, const uint *a, const uint *b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[i][j][0]), "+f"(c[i][j][1]), "+f"(c[i][j][2]), "+f"(c[i][j][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  FN void multiply(const float *a, const float *b, uint line, uint lane) {
    const uint g = lane / 4, q = lane % 4;
    uint fa[2][2][4], fb[2][4][2];
    UNROLL for (int i = 0; i < 2; i++) {
      const float *p = a + (16 * i + g) * line + q;
      split(p[0], fa[0][i][0], fa[1][i][0]);
      split(p[8 * line], fa[0][i][1], fa[1][i][1]);
      split(p[4], fa[0][i][2], fa[1][i][2]);
      split(p[8 * line + 4], fa[0][i][3], fa[1][i][3]);
    }
    UNROLL for (int j = 0; j < 4; j++) {
      const float *p = b + (8 * j + g) * line + q;
      split(p[0], fb[0][j][0], fb[1][j][0]);
      split(p[4], fb[0][j][1], fb[1][j][1]);
    }
    UNROLL for (int i = 0; i < 2; i++)
      UNROLL for (int j = 0; j < 4; j++) {
        add_product(i, j, fa[1][i], fb[0][j]);
        add_product(i, j, fa[0][i], fb[1][j]);
        add_product(i, j, fa[0][i], fb[0][j]);
      }
  }
  FN void store(float *out, uint line, uint lane) {
    const uint g = lane / 4, q = lane % 4;
    UNROLL for (int i = 0; i < 2; i++)
      UNROLL for (int j = 0; j < 4; j++) {
        float *p = out + (16 * i + g) * line + 8 * j + 2 * q;
        p[0] = c[i][j][0];
        p[1] = c[i][j][1];
        p[8 * line] = c[i][j][2];
        p[8 * line + 1] = c[i][j][3];
      }
  }
};
