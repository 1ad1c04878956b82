// What a library's product of half-precision matrices needs: weights decoded to halves, rows of inputs one after another; and activations
// as halves, scaled by a power of two such that the largest is just within their range, whatever it is.

// The largest absolute value of each group's share of x, a multiple of 4 values, that a row's values are scaled to. Grid [groups], 256
// threads.
template <bool SCALE>
FN void largest(Where at, DEVICE const float *x, DEVICE const float *scales, DEVICE float *most, CONSTANT LargestArgs &a, THREADGROUP float *part) {
  float top = 0.0f;
  for (uint i = at.group.x * 256 + at.thread_; i < a.count / 4; i += a.groups * 256) {
    const float4 v = ((DEVICE const float4 *)x)[i];
    float4 s;
    s.x = s.y = s.z = s.w = 1.0f;
    if (SCALE) s = ((DEVICE const float4 *)scales)[i % (a.features / 4)];
    top = max_f32(top, max_f32(max_f32(abs_f32(v.x * s.x), abs_f32(v.y * s.y)), max_f32(abs_f32(v.z * s.z), abs_f32(v.w * s.w))));
  }
  top = simd_greatest(top);
  if (at.lane == 0) part[at.simd] = top;
  group_barrier();
  if (at.simd != 0) return;
  top = simd_greatest(part[at.lane % 8]);
  if (at.thread_ == 0) most[at.group.x] = top;
}

// Rows of x, scaled and rotated by blocks of 128 (or 1: not), as halves. 512 values of a row a group. factors[0] is what products with them
// are to be multiplied with. A rotation makes values sqrt(128) times larger at most.
template <int BLOCK, bool SCALE>
FN void to_halves(Where at, DEVICE const float *x, DEVICE const float *scales, DEVICE const float *most, DEVICE uint *y, DEVICE float *factors,
                  CONSTANT ToHalvesArgs &a, THREADGROUP float *part) {
  float top = 0.0f;
  for (uint i = at.thread_; i < a.groups; i += 128) top = max_f32(top, most[i]);
  top = simd_greatest(top);
  if (at.lane == 0) part[at.simd] = top;
  group_barrier();
  UNROLL for (int i = 0; i < 4; i++) top = max_f32(top, part[i]);
  if (BLOCK == 128) top *= 11.4f;
  // 2^14 <= top * 2^power < 2^15
  const int exponent = int(as_u32(top) >> 23) - 127, power = exponent < -100 ? 114 : 14 - exponent;
  const float scale = as_f32(uint(127 + power) << 23);
  if (at.group.x == 0 && at.group.y == 0 && at.thread_ == 0) {
    factors[0] = a.factor * as_f32(uint(127 - power) << 23);
    factors[1] = 0.0f;
  }
  const uint c = at.group.x * 512 + 4 * at.thread_;  // simdgroups have whole blocks
  float4 in, s;
  in.x = in.y = in.z = in.w = 0.0f;
  s.x = s.y = s.z = s.w = 1.0f;
  if (c < a.features) in = *(DEVICE const float4 *)(x + at.group.y * a.features + c);
  if (SCALE && c < a.width) s = *(DEVICE const float4 *)(scales + c);
  float v[4] = {in.x * s.x, in.y * s.y, in.z * s.z, in.w * s.w};
  if (BLOCK == 128) {
    rotate<128, 4>(v, at.lane);
    UNROLL for (int i = 0; i < 4; i++) v[i] *= 0.08838834764831845f;
  }
  if (c >= a.width) return;
  uint2 out;
  out.x = bits_of_half(v[0] * scale) | bits_of_half(v[1] * scale) << 16;
  out.y = bits_of_half(v[2] * scale) | bits_of_half(v[3] * scale) << 16;
  *(DEVICE uint2 *)(y + (at.group.y * a.width + c) / 2) = out;
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
