// Products of many rows by a device's library: weights are decoded to halves, rows of inputs one after another, and so are activations,
// each row times a power of two such that its largest value is just within the range of halves, whatever it is. What the
// library gives is then to be multiplied with the rows' factors.
//
// A group has a row; a thread EACH times four consecutive values of it, so that simdgroups have whole blocks of 128.

// The greatest of all threads' values; `part` has SIMDS floats, and may be written again when all threads have come here once more.
template <int SIMDS> FN float group_greatest(THREAD const Where &at, float v, THREADGROUP float *part) {
  v = simd_greatest(v);
  group_barrier();
  if (at.lane == 0) part[at.simd] = v;
  group_barrier();
  return simd_greatest(at.lane < SIMDS ? part[at.lane] : 0.0f);
}

// Four values from c on of a row; zeros from `end` on.
FN void load_four(DEVICE const float *row, uint c, uint end, THREAD float *v) {
  float4 in;
  in.x = in.y = in.z = in.w = 0.0f;
  if (c < end) in = *(DEVICE const float4 *)(row + c);
  v[0] = in.x;
  v[1] = in.y;
  v[2] = in.z;
  v[3] = in.w;
}
FN void scale_four(DEVICE const float *scales, uint c, uint end, THREAD float *v) {
  float s[4];
  load_four(scales, c, end, s);
  UNROLL for (int j = 0; j < 4; j++) v[j] *= s[j];
}
template <int BLOCK> FN void turn_four(THREAD float *v, uint lane) {
  if (BLOCK == 128) {
    rotate<128, 4>(v, lane);
    UNROLL for (int j = 0; j < 4; j++) v[j] *= 0.08838834764831845f;
  }
}

// A row of inputs v, scaled and rotated, to y as halves; `factor` times the power of two that undoes theirs to `to`.
template <int SIMDS, int EACH, int BLOCK>
FN void write_halves(THREAD const Where &at, THREAD const float *v, DEVICE const float *scales, bool scaled, uint width, float factor, DEVICE uint *y,
                     DEVICE float *to, THREADGROUP float *part) {
  float t[EACH * 4], top = 0.0f;
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = (at.thread_ + 32 * SIMDS * i) * 4;
    UNROLL for (int j = 0; j < 4; j++) t[4 * i + j] = v[4 * i + j];
    if (scaled) scale_four(scales, c, width, t + 4 * i);
    turn_four<BLOCK>(t + 4 * i, at.lane);
    UNROLL for (int j = 0; j < 4; j++) top = max_f32(top, abs_f32(t[4 * i + j]));
  }
  top = group_greatest<SIMDS>(at, top, part);
  // 2^14 <= top * 2^power < 2^15
  const int exponent = int(as_u32(top) >> 23) - 127, power = exponent < -100 ? 114 : 14 - exponent;
  const float scale = as_f32(uint(127 + power) << 23);
  if (at.thread_ == 0) *to = factor * as_f32(uint(127 - power) << 23);
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = (at.thread_ + 32 * SIMDS * i) * 4;
    if (c >= width) continue;
    uint2 out;
    out.x = bits_of_half(t[4 * i] * scale) | bits_of_half(t[4 * i + 1] * scale) << 16;
    out.y = bits_of_half(t[4 * i + 2] * scale) | bits_of_half(t[4 * i + 3] * scale) << 16;
    *(DEVICE uint2 *)(y + c / 2) = out;
  }
}

// Rows of x, of a.features values. Grid [rows].
template <int SIMDS, int EACH, int BLOCK>
FN void to_halves(Where at, DEVICE const float *x, DEVICE const float *scales, DEVICE uint *y, DEVICE float *factors, CONSTANT ToHalvesArgs &a,
                  THREADGROUP float *part) {
  const uint row = at.group.x;
  float v[EACH * 4];
  UNROLL for (int i = 0; i < EACH; i++) load_four(x + row * a.features, (at.thread_ + 32 * SIMDS * i) * 4, a.features, v + 4 * i);
  write_halves<SIMDS, EACH, BLOCK>(at, v, scales, a.scaled != 0, a.width, a.factor, y + row * (a.width / 2), factors + row, part);
}

// Products' four outputs from c on: times the row's factor, rotated and scaled.
template <int BLOCK>
FN void finish_four(DEVICE const float *y, DEVICE const float *scales, bool scaled, uint c, uint width, float factor, uint lane, THREAD float *v) {
  load_four(y, c, width, v);
  UNROLL for (int j = 0; j < 4; j++) v[j] *= factor;
  turn_four<BLOCK>(v, lane);
  if (scaled) scale_four(scales, c, width, v);
}

// RMS norm (arXiv 1910.07467) of rows of x to OUTPUTS linears' inputs. SECOND: 1 adds `second` first, 2 products that are still to be finished;
// the sum is written, too. Rows of halves are one output's after the other's. Grid [rows].
template <int SIMDS, int EACH, int BLOCK, int SECOND, int OUTPUTS>
FN void norm_to_halves(Where at, DEVICE const float *x, DEVICE const float *second, DEVICE const float *second_factors, DEVICE const float *second_scales,
                       DEVICE const float *weight, DEVICE const float *scales0, DEVICE const float *scales1, DEVICE const float *scales2, DEVICE float *sum,
                       DEVICE uint *y, DEVICE float *factors, CONSTANT NormToHalvesArgs &a, THREADGROUP float *part) {
  const uint row = at.group.x, base = row * a.width;
  float v[EACH * 4], squares = 0.0f;
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = (at.thread_ + 32 * SIMDS * i) * 4;
    load_four(x + base, c, a.width, v + 4 * i);
    if (SECOND != 0) {
      float other[4];
      if (SECOND == 1) {
        load_four(second + base, c, a.width, other);
      } else {
        finish_four<BLOCK>(second + base, second_scales, a.second_scaled != 0, c, a.width, second_factors[row], at.lane, other);
      }
      UNROLL for (int j = 0; j < 4; j++) v[4 * i + j] += other[j];
      float4 out;
      out.x = v[4 * i];
      out.y = v[4 * i + 1];
      out.z = v[4 * i + 2];
      out.w = v[4 * i + 3];
      if (c < a.width) *(DEVICE float4 *)(sum + base + c) = out;
    }
    UNROLL for (int j = 0; j < 4; j++) squares += v[4 * i + j] * v[4 * i + j];
  }
  squares = simd_total(squares);
  if (at.lane == 0) part[at.simd] = squares;
  group_barrier();
  const float factor = rsqrt_f32(simd_total(at.lane < SIMDS ? part[at.lane] : 0.0f) / float(a.width) + a.eps);
  UNROLL for (int i = 0; i < EACH; i++) {
    UNROLL for (int j = 0; j < 4; j++) v[4 * i + j] *= factor;
    scale_four(weight, (at.thread_ + 32 * SIMDS * i) * 4, a.width, v + 4 * i);
  }
  const uint all = a.rows * (a.width / 2);
  DEVICE uint *to = y + row * (a.width / 2);
  write_halves<SIMDS, EACH, BLOCK>(at, v, scales0, a.scaled != 0, a.width, a.factor0, to, factors + row, part);
  if (OUTPUTS > 1) write_halves<SIMDS, EACH, BLOCK>(at, v, scales1, a.scaled != 0, a.width, a.factor1, to + all, factors + a.rows + row, part);
  if (OUTPUTS > 2) write_halves<SIMDS, EACH, BLOCK>(at, v, scales2, a.scaled != 0, a.width, a.factor2, to + 2 * all, factors + 2 * a.rows + row, part);
}

// silu(gate) * up of two products that are still to be finished, to a linear's input. Grid [rows].
template <int SIMDS, int EACH, int BLOCK>
FN void swiglu_to_halves(Where at, DEVICE const float *gate, DEVICE const float *up, DEVICE const float *gate_factors, DEVICE const float *up_factors,
                         DEVICE const float *gate_scales, DEVICE const float *up_scales, DEVICE const float *scales, DEVICE uint *y, DEVICE float *factors,
                         CONSTANT ToHalvesArgs &a, THREADGROUP float *part) {
  const uint row = at.group.x, base = row * a.width;
  const float gate_factor = gate_factors[row], up_factor = up_factors[row];
  float v[EACH * 4];
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = (at.thread_ + 32 * SIMDS * i) * 4;
    float g[4];
    finish_four<BLOCK>(gate + base, gate_scales, a.scaled != 0, c, a.width, gate_factor, at.lane, g);
    finish_four<BLOCK>(up + base, up_scales, a.scaled != 0, c, a.width, up_factor, at.lane, v + 4 * i);
    UNROLL for (int j = 0; j < 4; j++) v[4 * i + j] *= silu(g[j]);
  }
  write_halves<SIMDS, EACH, BLOCK>(at, v, scales, a.scaled != 0, a.width, a.factor, y + row * (a.width / 2), factors + row, part);
}

// Rows of products of a.width outputs, finished, and a bias added: a.features values each. Grid [ceil(width / 512), rows].
template <int BLOCK, bool BIAS>
FN void finish_products(Where at, DEVICE const float *x, DEVICE const float *factors, DEVICE const float *scales, DEVICE const float *bias, DEVICE float *y,
                        CONSTANT FinishArgs &a) {
  const uint c = at.group.x * 512 + 4 * at.thread_, row = at.group.y;
  float v[4];
  finish_four<BLOCK>(x + row * a.width, scales, a.scaled != 0, c, a.width, factors[row], at.lane, v);
  if (c >= a.features) return;
  if (BIAS) {
    UNROLL for (int j = 0; j < 4; j++)
      if (c + j < a.features) v[j] += bias[c + j];
  }
  if (a.features % 4 == 0) {
    float4 out;
    out.x = v[0];
    out.y = v[1];
    out.z = v[2];
    out.w = v[3];
    *(DEVICE float4 *)(y + row * a.features + c) = out;
    return;
  }
  UNROLL for (int j = 0; j < 4; j++)
    if (c + j < a.features) y[row * a.features + c + j] = v[j];
}

// Rows from a.first on of a matrix whose rows are stored one after another, times a.factor. Grid [chunks / 128, rows].
template <class W>
FN void panel_rows(Where at, DEVICE const uint *words, DEVICE const uchar *factors, DEVICE uint *y, CONSTANT PanelArgs &a) {
  const uint chunk = at.group.x * 128 + at.thread_, row = a.first + at.group.y;
  if (chunk * W::CHUNK >= a.w.cols) return;
  Raw raw;
  float v[W::CHUNK];
  W::load(words, a.w, row, chunk, raw);
  W::decode(factors, a.w, row, chunk, raw, v);
  // Columns are a multiple of 8; chunks of 8 at least are written 16 bytes at a time.
  UNROLL for (int i = 0; i < W::CHUNK; i += 8) {
    const uint c = chunk * W::CHUNK + i;
    uint h[4] = {0, 0, 0, 0};
    UNROLL for (int j = 0; j < 8 && j < W::CHUNK; j += 2)
      h[j / 2] = bits_of_half(v[(i + j) % W::CHUNK] * a.factor) | bits_of_half(v[(i + j + 1) % W::CHUNK] * a.factor) << 16;
    if (c >= a.w.cols) continue;
    DEVICE uint *line = y + (at.group.y * a.w.cols + c) / 2;
    if (W::CHUNK < 8) {
      line[0] = h[0];
      line[1] = h[1];
    } else {
      uint4 out;
      out.x = h[0];
      out.y = h[1];
      out.z = h[2];
      out.w = h[3];
      *(DEVICE uint4 *)line = out;
    }
  }
}

// Outputs from a.first on, a multiple of 16, of a trellis. Eight lanes share a tile, a simdgroup four rows of tiles. Grid [rows of tiles / 16,
// tiles across].
template <int K, int CODEBOOK>
FN void panel_trellis(Where at, DEVICE const uint *words, DEVICE uint *y, CONSTANT PanelTrellisArgs &a) {
  const uint g = at.lane / 4, q = at.lane % 4, across = a.rows / 16, down = a.cols / 16;
  const uint tile_row = (at.group.x * 4 + at.simd) * 4 + q, tile_col = a.first / 16 + at.group.y;
  const bool there = tile_row < down;
  DEVICE const uint *p = words + ((tile_row * across + tile_col) * 8 + g) * K;
  uint w[K + 1];
  UNROLL for (int i = 0; i < K; i++) w[i + 1] = there ? p[i] : 0u;
  w[0] = lane_value(w[K], ((g + 7) % 8) * 4 + q);
  if (!there) return;
  uint out[2][8];
  UNROLL for (int s = 0; s < 2; s++) UNROLL for (int i = 0; i < 8; i++) out[s][i] = 0;
  UNROLL for (int c = 0; c < 32; c++) {
    const int input = trellis_input(c);
    out[trellis_second(c)][input / 2] |= bits_of_half(state_value<CODEBOOK>(trellis_state<K>(w, c))) << (16 * (input & 1));
  }
  UNROLL for (int s = 0; s < 2; s++) {
    DEVICE uint4 *line = (DEVICE uint4 *)(y + ((at.group.y * 16 + 8 * s + g) * a.cols + tile_row * 16) / 2);
    UNROLL for (int i = 0; i < 2; i++) {
      uint4 v;
      v.x = out[s][4 * i];
      v.y = out[s][4 * i + 1];
      v.z = out[s][4 * i + 2];
      v.w = out[s][4 * i + 3];
      line[i] = v;
    }
  }
}
