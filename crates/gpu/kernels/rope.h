// Rotary embedding (arXiv 2104.09864), in place: in every group of `group` columns the 2 * pairs from `offset` on turn by the
// row's position; table[position][pair] = (cosine, sine).
template <bool INTERLEAVED>
FN void rope(Where at, DEVICE float *x, DEVICE const uint *positions, DEVICE const float *table, CONSTANT RopeArgs &a) {
  const uint each = a.cols / a.group * a.pairs, i = at.group.x * 256 + at.thread_;
  if (i < a.rows * each) {
    const uint row = i / each, pair = i % a.pairs, head = i % each / a.pairs;
    const uint turn = 2 * (positions[row] * a.pairs + pair);
    const float cosine = table[turn], sine = table[turn + 1];
    const uint base = row * a.cols + head * a.group + a.offset;
    const uint first = base + (INTERLEAVED ? 2 * pair : pair), second = first + (INTERLEAVED ? 1 : a.pairs);
    const float p = x[first], q = x[second];
    x[first] = p * cosine - q * sine;
    x[second] = q * cosine + p * sine;
  }
}

// The greatest magnitude among all lanes' v; NaN if one of them is.
FN float greatest_magnitude(float v) {
  const float most = simd_greatest(abs_f32(v));
  return simd_total(v != v ? 1.0f : 0.0f) > 0.0f ? as_f32(0x7FC00000u) : most;
}

// A row's heads, one simdgroup each: queries, which stay in q, then keys and values, which go to the row's slot of the pool, bytes
// with their vectors' scales. Queries and keys are normalised with a weight first (QNORM, KNORM: arXiv 1910.07467) and turned
// by the row's position (ROPE: 0 not at all, 1 pairs are halves, 2 neighbours). A slot has the kv_heads keys, then the values, then the
// scales in the same order; of a LATENT, which is the one key, 128 values share a scale, and the rotated key stands for the value.
// Grid [heads + 2 * kv_heads, rows].
template <class T, int EACH, bool QNORM, bool KNORM, int ROPE, bool LATENT>
FN void place_heads(Where at, DEVICE float *q, DEVICE const float *k, DEVICE const float *v, DEVICE const float *q_weight,
                    DEVICE const float *k_weight, DEVICE const uint *positions, DEVICE const float *table, DEVICE const uint *slots,
                    DEVICE uchar *pool, CONSTANT PlaceArgs &a, THREADGROUP float *values) {
  const uint row = at.group.y, n = at.group.x;
  const bool is_query = n < a.heads, is_value = n >= a.heads + a.kv_heads;
  const uint head = is_query ? n : is_value ? n - a.heads - a.kv_heads : n - a.heads, width = is_value ? a.value : a.key;
  float x[EACH];
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = at.lane + 32 * i;
    x[i] = 0.0f;
    if (c < width) {
      if (is_query) {
        x[i] = q[(row * a.heads + head) * a.key + c];
      } else if (is_value) {
        x[i] = v[row * a.v_stride + head * a.value + c];
      } else {
        x[i] = k[row * a.k_stride + head * a.key + c];
      }
    }
  }
  if ((QNORM && is_query) || (KNORM && !is_query && !is_value)) {
    float squares = 0.0f;
    UNROLL for (int i = 0; i < EACH; i++) squares += x[i] * x[i];
    const float factor = rsqrt_f32(simd_total(squares) / float(a.key) + (is_query ? a.q_eps : a.k_eps));
    UNROLL for (int i = 0; i < EACH; i++) {
      const uint c = at.lane + 32 * i;
      if (c < width) x[i] = x[i] * factor * (is_query ? q_weight[c] : k_weight[c]);
    }
  }
  if (ROPE != 0 && !is_value) {
    UNROLL for (int i = 0; i < EACH; i++) values[at.lane + 32 * i] = x[i];
    group_barrier();
    UNROLL for (int i = 0; i < EACH; i++) {
      const uint c = at.lane + 32 * i;
      if (c < 2 * a.pairs) {
        const bool later = ROPE == 2 ? (c & 1u) != 0 : c >= a.pairs;
        const float other = values[ROPE == 2 ? (c ^ 1u) : later ? c - a.pairs : c + a.pairs];
        const uint turn = 2 * (positions[row] * a.pairs + (ROPE == 2 ? c / 2 : later ? c - a.pairs : c));
        const float cosine = table[turn], sine = table[turn + 1];
        x[i] = later ? x[i] * cosine + other * sine : x[i] * cosine - other * sine;
      }
    }
  }
  if (is_query) {
    UNROLL for (int i = 0; i < EACH; i++) {
      const uint c = at.lane + 32 * i;
      if (c < width) q[(row * a.heads + head) * a.key + c] = x[i];
    }
    return;  // the whole group
  }
  const uint slot = slots[row] * a.stride, to = slot + (is_value ? a.kv_heads * a.key : 0u) + head * width;
  enum { GROUP = LATENT && EACH > 4 ? 4 : EACH };  // of x share a scale
  UNROLL for (int first = 0; first < EACH; first += GROUP) {
    float inverse = 1.0f;
    if (T::SCALED != 0) {
      float most = 0.0f;
      UNROLL for (int i = 0; i < GROUP; i++) {
        const float found = first + i < EACH ? greatest_magnitude(x[first + i]) : 0.0f;
        most = most >= found ? most : found;
      }
      inverse = inverse_of(most, T::top());
      DEVICE float *scales = (DEVICE float *)(pool + slot + a.scales);
      const uint base = !is_value ? (LATENT ? 0u : head) : LATENT ? round_up(a.key, 128) : a.kv_heads + head;
      if (at.lane == 0 && 32 * uint(first) < width) scales[base + first / GROUP] = scale_of(most, T::top());
    }
    UNROLL for (int i = first; i < first + GROUP; i++) {
      const uint c = at.lane + 32 * i;
      if (i < EACH && c < width) T::put(pool, to + c, x[i < EACH ? i : 0] * inverse);
    }
  }
}

// A row's latent, normalised with `weight`, and the rotated key behind it, to the row's slot of the pool: x is
// [rows][rank + 2 * pairs]. Eight simdgroups a row. Grid [rows].
template <class T, int EACH, int ROPE>
FN void place_latent(Where at, DEVICE const float *x, DEVICE const float *weight, DEVICE const uint *positions, DEVICE const float *table,
                     DEVICE const uint *slots, DEVICE uchar *pool, CONSTANT PlaceLatentArgs &a, THREADGROUP float *part) {
  const uint row = at.group.x, width = a.rank + 2 * a.pairs;
  DEVICE const float *in = x + row * width;
  float v[EACH], squares = 0.0f;
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = at.thread_ + 256 * i;
    v[i] = c < a.rank ? in[c] : 0.0f;
    squares += v[i] * v[i];
  }
  squares = simd_total(squares);
  if (at.lane == 0) part[at.simd] = squares;
  group_barrier();
  float all = 0.0f;
  for (uint s = 0; s < 8; s++) all += part[s];
  const float factor = rsqrt_f32(all / float(a.rank) + a.eps);
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = at.thread_ + 256 * i;
    if (c < a.rank) {
      v[i] = v[i] * factor * weight[c];
    } else if (c < width) {
      const uint j = c - a.rank;
      const bool later = ROPE == 2 ? (j & 1u) != 0 : j >= a.pairs;
      const float other = in[a.rank + (ROPE == 2 ? (j ^ 1u) : later ? j - a.pairs : j + a.pairs)], own = in[c];
      const uint turn = 2 * (positions[row] * a.pairs + (ROPE == 2 ? j / 2 : later ? j - a.pairs : j));
      v[i] = later ? own * table[turn] + other * table[turn + 1] : own * table[turn] - other * table[turn + 1];
    }
    if (T::SCALED != 0) {
      const float most = simd_greatest(c < a.rank ? abs_f32(v[i]) : 0.0f), rest = simd_greatest(c < a.rank ? 0.0f : abs_f32(v[i]));
      if (at.lane == 0) {
        part[8 + 16 * i + at.simd] = most;
        part[16 + 16 * i + at.simd] = rest;
      }
    }
  }
  if (T::SCALED != 0) group_barrier();
  const uint slot = slots[row] * a.stride;
  DEVICE float *scales = (DEVICE float *)(pool + slot + a.scales);
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint c = at.thread_ + 256 * i;
    float inverse = 1.0f;
    if (T::SCALED != 0) {
      // 128 values of the latent share a scale: those of four simdgroups. The key has one.
      float most = 0.0f, rest = 0.0f;
      for (uint s = at.simd / 4 * 4; s < at.simd / 4 * 4 + 4; s++) most = max_f32(most, part[8 + 16 * i + s]);
      for (uint n = 0; n < EACH; n++)
        for (uint s = 0; s < 8; s++) rest = max_f32(rest, part[16 + 16 * n + s]);
      // What is not a number anywhere shows in the norm's sum.
      if (all != all) most = rest = all;
      inverse = inverse_of(c < a.rank ? most : rest, T::top());
      if (at.thread_ % 128 == 0 && c < a.rank) scales[c / 128] = scale_of(most, T::top());
      if (at.thread_ == 0) scales[round_up(a.rank, 128)] = scale_of(rest, T::top());
    }
    if (c < width) T::put(pool, slot + c, v[i] * inverse);
  }
}
