// What the streaming kernels need of a GPU with tensor cores (PTX ISA, mma, cp.async), sm_80 and later.
FN uint threadgroup_address(THREADGROUP const void *p) {
  uint a;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(a) : "l"(p));
  return a;
}

// c[16 x 8] += a[16 x 32] * b[32 x 8], bytes without and with sign, summed exactly. Lane = 4 g + q: a has rows g, g + 8, g, g + 8, the
// first two with columns 4 q .. 4 q + 3 and the others with 16 more; b has the same columns' rows of column g; c has (g, 2 q),
// (g, 2 q + 1) and the same of row g + 8.
FN void mma_bytes(THREAD int *c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The same of 16 columns in pairs of halves: columns 2 q, 2 q + 1 and 8 more.
FN void mma_halves(THREAD float *c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 16 bytes from device memory to threadgroup memory on their way, zeros if they are not there; they have arrived when all but the last
// N groups of copies of this lane have. `to` is a place of copy_place.
FN uint copy_place(THREADGROUP const uint *p) { return threadgroup_address(p); }
FN void copy_16(uint to, DEVICE const uint *from, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
FN void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> FN void copies_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// A kernel may begin before the one ahead of it in the stream has ended, if it is launched so (programmatic dependent launch): what that
// wrote is there only behind wait_for_others.
FN void others_may_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
FN void wait_for_others() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Pairs of halves.
FN uint fma_pairs(uint a, uint b, uint c) {
  uint r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
FN uint add_pairs(uint a, uint b) {
  uint r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Bytes of the eight of b and a (a's are 0..3), by the four digits of `which`; a digit's highest bit asks for the byte's sign instead.
FN uint pick_bytes(uint a, uint b, uint which) { return __byte_perm(a, b, which); }
FN uint pick_signs(uint a, uint b, uint which) {
  uint r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(which));
  return r;
}
FN int round_to_int(float v) { return __float2int_rn(v); }

// Four 8 x 8 matrices of halves from threadgroup memory; lane 8 i + r has the place (of copy_place) of row r of matrix i. Lane 4 g + q gets
// of each matrix columns 2 q, 2 q + 1 of row g, or, turned, rows 2 q, 2 q + 1 of column g.
FN void load_matrices(THREAD uint *r, uint place) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(place) : "memory");
}
FN void load_turned_matrices(THREAD uint *r, uint place) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(place) : "memory");
}
// Two floats as halves, the first one below.
FN uint pair_of_halves(float a, float b) {
  uint r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
  return r;
}
// 2 to the power of v, to 2^-22 of it.
FN float exp2_f32(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// One more simdgroup has come to `counter`; whether it is the last of `count`, which then sees what the others wrote before they came. The
// counter is 0 again afterwards. All lanes call it.
FN bool last_to_come(DEVICE uint *counter, uint count, uint lane) {
  uint before = 0;
  __syncwarp();
  // Releases what the simdgroup wrote and acquires what the others did.
  if (lane == 0) asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(count - 1) : "memory");
  before = __shfl_sync(~0u, before, 0);
  __syncwarp();
  return before == count - 1;
}
// What another group wrote.
FN float4 from_others(DEVICE const float *p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
  return v;
}
