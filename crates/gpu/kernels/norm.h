// RMS norm (arXiv 1910.07467) of each of `count` consecutive groups of `width` values; SIMDS simdgroups to a group.
// With RESIDUAL, `second` is added first and the sum, which later layers need, is written to `sum`.
template <int SIMDS, bool RESIDUAL>
FN void rms_norm(Where at, DEVICE const float *x, DEVICE const float *second, DEVICE const float *weight, DEVICE float *sum,
                 DEVICE float *y, CONSTANT RmsNormArgs &a, THREADGROUP float *part) {
  const uint base = at.group.x * a.width;
  float squares = 0.0f;
  for (uint i = at.thread_; i < a.width; i += 32 * SIMDS) {
    float v = x[base + i];
    if (RESIDUAL) {
      v += second[base + i];
      sum[base + i] = v;
    }
    squares += v * v;
  }
  float total = simd_total(squares);
  if (SIMDS > 1) {
    if (at.lane == 0) part[at.simd] = total;
    group_barrier();
    total = 0.0f;
    for (uint s = 0; s < SIMDS; s++) total += part[s];
  }
  const float factor = rsqrt_f32(total / float(a.width) + a.eps);
  for (uint i = at.thread_; i < a.width; i += 32 * SIMDS) {
    const float v = RESIDUAL ? sum[base + i] : x[base + i];
    y[base + i] = v * factor * weight[i];
  }
}
