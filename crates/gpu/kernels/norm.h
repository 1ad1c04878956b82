// RMS norm (arXiv 1910.07467) of each of `count` consecutive groups of `width` values; SIMDS simdgroups to a group, each thread with
// EACH times W (1 or 4) values, which it loads at once. With RESIDUAL, `second` is added first and the sum, which later layers
// need, is written to `sum`.
template <int W> FN void load_some(DEVICE const float *p, uint i, THREAD float *v) {
  if (W == 4) {
    const float4 a = ((DEVICE const float4 *)p)[i / 4];
    v[0] = a.x, v[W / 4] = a.y, v[W / 2] = a.z, v[W - 1] = a.w;
  } else {
    v[0] = p[i];
  }
}
template <int W> FN void store_some(DEVICE float *p, uint i, THREAD const float *v) {
  if (W == 4) {
    float4 a;
    a.x = v[0], a.y = v[W / 4], a.z = v[W / 2], a.w = v[W - 1];
    ((DEVICE float4 *)p)[i / 4] = a;
  } else {
    p[i] = v[0];
  }
}

template <int SIMDS, int EACH, int W, bool RESIDUAL>
FN void rms_norm(Where at, DEVICE const float *x, DEVICE const float *second, DEVICE const float *weight, DEVICE float *sum,
                 DEVICE float *y, CONSTANT RmsNormArgs &a, THREADGROUP float *part) {
  const uint base = at.group.x * a.width;
  float v[EACH][W], w[EACH][W], squares = 0.0f;
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = (at.thread_ + 32 * SIMDS * i) * W;
    UNROLL for (int j = 0; j < W; j++) v[i][j] = w[i][j] = 0.0f;
    if (c < a.width) {
      load_some<W>(x + base, c, v[i]);
      load_some<W>(weight, c, w[i]);
      if (RESIDUAL) {
        float other[W];
        load_some<W>(second + base, c, other);
        UNROLL for (int j = 0; j < W; j++) v[i][j] += other[j];
      }
    }
  }
  UNROLL for (int i = 0; i < EACH; i++)
    UNROLL for (int j = 0; j < W; j++) squares += v[i][j] * v[i][j];
  float total = simd_total(squares);
  if (SIMDS > 1) {
    if (at.lane == 0) part[at.simd] = total;
    group_barrier();
    total = simd_total(at.lane < SIMDS ? part[at.lane] : 0.0f);
  }
  const float factor = rsqrt_f32(total / float(a.width) + a.eps);
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = (at.thread_ + 32 * SIMDS * i) * W;
    if (c < a.width) {
      if (RESIDUAL) store_some<W>(sum + base, c, v[i]);
      UNROLL for (int j = 0; j < W; j++) v[i][j] *= factor * w[i][j];
      store_some<W>(y + base, c, v[i]);
    }
  }
}
