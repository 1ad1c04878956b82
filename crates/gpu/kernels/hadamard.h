// Rotations around a matrix: natural-order Hadamard matrices of BLOCK (a power of two up to 1024) over the square root of
// BLOCK, their own inverse. A simdgroup holds VALUES consecutive values in each lane: a block, or several small ones.
template <int BLOCK, int VALUES> FN void rotate(THREAD float *v, uint lane) {
  UNROLL for (int stride = 1; stride < VALUES; stride *= 2)
    UNROLL for (int i = 0; i < VALUES; i++) {
      if ((i & stride) == 0) {
        const float a = v[i], b = v[i + stride];
        v[i] = a + b;
        v[i + stride] = a - b;
      }
    }
  UNROLL for (uint mask = 1; mask < 32 && mask * VALUES < BLOCK; mask *= 2) {
    const float sign = (lane & mask) != 0 ? -1.0f : 1.0f;
    UNROLL for (int i = 0; i < VALUES; i++) v[i] = fma_f32(v[i], sign, lane_xor(v[i], mask));
  }
}

// INPUT:  y[row][i] = rotated x[row][order[i]] * scale[i], for i < width; inputs beyond x_width are zero.
// OUTPUT: y[row][i] = rotated x[row][i] * scale[i] + bias[i], for i < y_width.
// x has rows of x_width values, y of y_width. BLOCK 1 does not rotate. With INDEXED, a row's scales (and bias) are those of
// expert index[row].
template <int BLOCK, bool OUTPUT, bool SCALE, bool ORDER, bool BIAS, bool INDEXED>
FN void around(Where at, DEVICE const float *x, DEVICE const float *scale, DEVICE const float *bias, DEVICE const uint *order,
               DEVICE const uint *index, DEVICE float *y, CONSTANT AroundArgs &a) {
  enum { VALUES = BLOCK > 32 ? BLOCK / 32 : 1, SPAN = 32 * VALUES };
  const uint row = at.group.y, expert = INDEXED ? index[row] : 0;
  const uint from = (at.group.x * 4 + at.simd) * SPAN + at.lane * VALUES;
  DEVICE const float *scales = scale + expert * a.width;
  float v[VALUES];
  // Four values at a time where rows begin so.
  const bool fours = VALUES == 4 && !ORDER && a.x_width % 4 == 0 && a.y_width % 4 == 0 && a.width % 4 == 0;
  if (fours) {
    float4 in, s;
    in.x = in.y = in.z = in.w = 0.0f;
    s.x = s.y = s.z = s.w = 1.0f;
    if (from < a.x_width && from < a.width) in = *(DEVICE const float4 *)(x + (row / a.share) * a.x_width + from);
    if (SCALE && !OUTPUT && from < a.width) s = *(DEVICE const float4 *)(scales + from);
    v[0] = in.x * s.x;
    v[1 % VALUES] = in.y * s.y;
    v[2 % VALUES] = in.z * s.z;
    v[3 % VALUES] = in.w * s.w;
  } else UNROLL for (int i = 0; i < VALUES; i++) {
    const uint c = from + i;
    float in = 0.0f;
    if (c < a.width) {
      const uint source = ORDER ? order[c] : c;
      if (source < a.x_width) in = x[(row / a.share) * a.x_width + source];
      if (SCALE && !OUTPUT) in *= scales[c];
    }
    v[i] = in;
  }
  if (BLOCK > 1) rotate<BLOCK, VALUES>(v, at.lane);
  if (fours) {
    if (from >= a.y_width) return;
    float4 s, b;
    s.x = s.y = s.z = s.w = 1.0f;
    b.x = b.y = b.z = b.w = 0.0f;
    if (SCALE && OUTPUT) s = *(DEVICE const float4 *)(scales + from);
    if (BIAS) b = *(DEVICE const float4 *)(bias + expert * a.y_width + from);
    float4 out;
    out.x = v[0] * a.norm * s.x + b.x;
    out.y = v[1 % VALUES] * a.norm * s.y + b.y;
    out.z = v[2 % VALUES] * a.norm * s.z + b.z;
    out.w = v[3 % VALUES] * a.norm * s.w + b.w;
    *(DEVICE float4 *)(y + row * a.y_width + from) = out;
    return;
  }
  UNROLL for (int i = 0; i < VALUES; i++) {
    const uint c = from + i;
    if (c < a.y_width) {
      float out = v[i] * a.norm;
      if (SCALE && OUTPUT) out *= scales[c];
      if (BIAS) out += bias[expert * a.y_width + c];
      y[row * a.y_width + c] = out;
    }
  }
}
