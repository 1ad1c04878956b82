// Causal attention over a paged pool. A token's slot holds `stride` elements: heads * key of keys, then the values from
// `value_base` on; bytes have their vectors' scales behind them, from byte `scales` of the slot on. LATENT is the case of one KV
// head whose value is the first part of its key; 128 values of it share a scale, and the rest has one.
//
// A threadgroup takes HEADS query heads that share a KV head, and a part of the context (all of it unless SPLIT). LANES lanes share
// a position, each with W values here and there of the key: so a simdgroup sees 32 / LANES positions at once, of which it keeps
// an online softmax (arXiv 1805.02867) each, and loads twice as many ahead. What lanes and simdgroups have found is then joined;
// with SPLIT what the parts of the context give, by another kernel. Grid [KV heads * ceil(share / HEADS), splits, rows].
template <class T, int W, int SIMDS, int LANES, int HEADS, int KEYS, int VALUES, bool LATENT, bool SPLIT>
FN void attention(Where at, DEVICE const float *q, DEVICE const uchar *pool, DEVICE const uint *rows, DEVICE const uint *blocks, DEVICE float *y,
                  DEVICE float *state, CONSTANT AttentionArgs &a, THREADGROUP float *part, THREADGROUP float *tops) {
  enum { WORDS = W == 8 ? T::WORDS : 1, AHEAD = 2, PER = 32 / LANES, LINE = LANES * VALUES * W };
  const uint groups = round_up(a.share, HEADS), kv_head = at.group.x / groups, row = at.group.z;
  const uint first_head = at.group.x % groups * HEADS, head0 = kv_head * a.share + first_head;
  const uint lane = at.lane % LANES, sub = at.lane / LANES;
  const uint first_block = rows[2 * row], context = rows[2 * row + 1] + 1;
  const uint each = SPLIT ? round_up(context, a.splits) : context, from = at.group.y * each;
  const uint to = from + each < context ? from + each : context;
  float query[HEADS][KEYS * W], sum[HEADS][VALUES * W], top[HEADS], total[HEADS];
  UNROLL for (int h = 0; h < HEADS; h++) {
    top[h] = -1e30f;
    total[h] = 0.0f;
    UNROLL for (int i = 0; i < VALUES * W; i++) sum[h][i] = 0.0f;
    UNROLL for (int i = 0; i < KEYS; i++)
      UNROLL for (int j = 0; j < W; j++) {
        const uint c = (lane + LANES * i) * W + j;
        const bool there = c < a.key && first_head + h < a.share;
        query[h][i * W + j] = there ? q[(row * a.heads + head0 + h) * a.key + c] * a.scale : 0.0f;
      }
  }
  for (uint base = from + at.simd * (PER * AHEAD); base < to; base += SIMDS * PER * AHEAD) {  // the same for all lanes
    uint keys[AHEAD][KEYS][WORDS], values[AHEAD][VALUES][WORDS];
    float key_scale[AHEAD][KEYS], value_scale[AHEAD];
    UNROLL for (int u = 0; u < AHEAD; u++) {
      const uint wanted = base + u * PER + sub, t = wanted < to ? wanted : from;
      const uint slot = blocks[first_block + t / a.block] * a.block + t % a.block;
      const uint k = slot * a.stride + kv_head * a.key, v = slot * a.stride + a.value_base + kv_head * a.value;
      UNROLL for (int i = 0; i < KEYS; i++) {
        const uint c = (lane + LANES * i) * W;
        UNROLL for (int n = 0; n < WORDS; n++) keys[u][i][n] = 0;
        if (c < a.key) load_chunk<T, W>(pool, k + c, keys[u][i]);
      }
      if (!LATENT) {
        UNROLL for (int i = 0; i < VALUES; i++) {
          const uint c = (lane + LANES * i) * W;
          UNROLL for (int n = 0; n < WORDS; n++) values[u][i][n] = 0;
          if (c < a.value) load_chunk<T, W>(pool, v + c, values[u][i]);
        }
      }
      value_scale[u] = 1.0f;
      if (T::SCALED != 0) {
        DEVICE const float *scales = (DEVICE const float *)(pool + slot * a.stride + a.scales);
        UNROLL for (int i = 0; i < KEYS; i++) {
          const uint c = (lane + LANES * i) * W;
          key_scale[u][i] = scales[!LATENT ? kv_head : c < a.value ? c / 128 : round_up(a.value, 128)];
        }
        if (!LATENT) value_scale[u] = scales[a.heads / a.share + kv_head];
      }
    }
    UNROLL for (int h = 0; h < HEADS; h++) {
      float score[AHEAD], next = top[h];
      UNROLL for (int u = 0; u < AHEAD; u++) {
        float dot = 0.0f;
        UNROLL for (int i = 0; i < KEYS; i++) {
          float some = 0.0f;
          UNROLL for (int j = 0; j < W; j++) some += query[h][i * W + j] * chunk_value<T, W>(keys[u][i], j);
          if (T::SCALED != 0) some *= key_scale[u][i];
          dot += some;
        }
        UNROLL for (uint mask = LANES / 2; mask > 0; mask /= 2) dot += lane_xor(dot, mask);
        score[u] = base + u * PER + sub < to ? dot : -1e30f;
        next = max_f32(next, score[u]);
      }
      const float old = exp_f32(top[h] - next);
      top[h] = next;
      total[h] *= old;
      UNROLL for (int i = 0; i < VALUES * W; i++) sum[h][i] *= old;
      UNROLL for (int u = 0; u < AHEAD; u++) {
        const float now = base + u * PER + sub < to ? exp_f32(score[u] - next) : 0.0f;
        total[h] += now;
        UNROLL for (int i = 0; i < VALUES; i++) {
          const float factor = T::SCALED == 0 ? now : now * (LATENT ? key_scale[u][i] : value_scale[u]);
          UNROLL for (int j = 0; j < W; j++)
            sum[h][i * W + j] += factor * chunk_value<T, W>(LATENT ? keys[u][i] : values[u][i], j);
        }
      }
    }
  }
  UNROLL for (int h = 0; h < HEADS; h++) {
    float next = top[h];
    UNROLL for (uint mask = LANES; mask < 32; mask *= 2) next = max_f32(next, lane_xor(next, mask));
    const float old = exp_f32(top[h] - next);
    total[h] *= old;
    UNROLL for (uint mask = LANES; mask < 32; mask *= 2) total[h] += lane_xor(total[h], mask);
    UNROLL for (int i = 0; i < VALUES * W; i++) {
      float v = sum[h][i] * old;
      UNROLL for (uint mask = LANES; mask < 32; mask *= 2) v += lane_xor(v, mask);
      if (sub == 0) part[(at.simd * HEADS + h) * LINE + (lane + LANES * (i / W)) * W + i % W] = v;
    }
    if (at.lane == 0) {
      tops[2 * (at.simd * HEADS + h)] = next;
      tops[2 * (at.simd * HEADS + h) + 1] = total[h];
    }
  }
  group_barrier();
  UNROLL for (int h = 0; h < HEADS; h++) {
    if (first_head + h >= a.share) return;  // the whole group
    float greatest = -1e30f, all = 0.0f;
    for (uint s = 0; s < SIMDS; s++) greatest = max_f32(greatest, tops[2 * (s * HEADS + h)]);
    for (uint s = 0; s < SIMDS; s++) all += tops[2 * (s * HEADS + h) + 1] * exp_f32(tops[2 * (s * HEADS + h)] - greatest);
    const uint place = (row * a.heads + head0 + h) * (SPLIT ? a.splits : 1u) + (SPLIT ? at.group.y : 0u);
    for (uint c = at.thread_; c < a.value; c += 32 * SIMDS) {
      float joined = 0.0f;
      for (uint s = 0; s < SIMDS; s++) joined += part[(s * HEADS + h) * LINE + c] * exp_f32(tops[2 * (s * HEADS + h)] - greatest);
      y[place * a.value + c] = SPLIT ? joined : joined / all;
    }
    if (SPLIT && at.thread_ == 0) {
      state[2 * place] = greatest;
      state[2 * place + 1] = all;
    }
  }
}

// Joins what the parts of the context gave: `part` [rows * heads][splits][value], `state` [rows * heads][splits] of the greatest
// score and the sum of exponentials relative to it. At most 128 parts. Grid [rows * heads, ceil(value / 128)], 128 threads.
FN void attention_join(Where at, DEVICE const float *part, DEVICE const float *state, DEVICE float *y, CONSTANT JoinArgs &a, THREADGROUP float *shares) {
  const uint from = at.group.x * a.splits, c = at.group.y * 128 + at.thread_;
  float greatest = -1e30f, all = 0.0f;
  float tops[4], totals[4];
  UNROLL for (int i = 0; i < 4; i++) {
    const uint s = at.lane + 32 * i;
    tops[i] = s < a.splits ? state[2 * (from + s)] : -1e30f;
    totals[i] = s < a.splits ? state[2 * (from + s) + 1] : 0.0f;
    greatest = max_f32(greatest, tops[i]);
  }
  greatest = simd_greatest(greatest);
  UNROLL for (int i = 0; i < 4; i++) {
    tops[i] = exp_f32(tops[i] - greatest);
    all += totals[i] * tops[i];
  }
  const float factor = 1.0f / simd_total(all);
  if (at.simd == 0) {
    UNROLL for (int i = 0; i < 4; i++) shares[at.lane + 32 * i] = tops[i] * factor;
  }
  group_barrier();
  if (c < a.value) {
    float sum = 0.0f;
    UNROLL_SOME for (uint s = 0; s < a.splits; s++) sum += part[(from + s) * a.value + c] * shares[s];
    y[at.group.x * a.value + c] = sum;
  }
}
