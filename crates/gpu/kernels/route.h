// Experts of each row by the router's logits: one simdgroup a row, up to 32 * EACH experts, lane l holding l, l + 32, ....
// Scores are sigmoids or a softmax; the choice adds the bias and, with groups, keeps the best top_groups by the sum of their
// two best; weights are the scores alone. Ties go to the lower index. `both` has each expert twice, the second time numbered as
// the up projections are that are stacked behind the gate projections.
FN void better(THREAD float &value, THREAD uint &at, float v, uint i) {
  if (v > value || (v == value && i < at)) {
    value = v;
    at = i;
  }
}
FN void best_of_simd(THREAD float &value, THREAD uint &index) {
  UNROLL for (uint mask = 16; mask > 0; mask /= 2) {
    const float v = lane_xor(value, mask);
    const uint i = lane_xor(index, mask);
    better(value, index, v, i);
  }
}

template <int EACH, bool SIGMOID, bool BIAS, bool GROUPS>
FN void route(Where at, DEVICE const float *logits, DEVICE const float *bias, DEVICE uint *experts, DEVICE uint *both, DEVICE float *weights,
              CONSTANT RouteArgs &a) {
  const uint row = at.group.x;
  DEVICE const float *in = logits + row * a.experts;
  const float none = -1e38f;
  float score[EACH], choice[EACH];
  float top = none;
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint e = at.lane + 32 * i;
    score[i] = e < a.experts ? in[e] : none;
    top = max_f32(top, score[i]);
  }
  if (SIGMOID) {
    UNROLL for (int i = 0; i < EACH; i++) score[i] = 1.0f / (1.0f + exp_f32(-score[i]));
  } else {
    top = simd_greatest(top);
    float total = 0.0f;
    UNROLL for (int i = 0; i < EACH; i++) {
      score[i] = at.lane + 32 * i < a.experts ? exp_f32(score[i] - top) : 0.0f;
      total += score[i];
    }
    total = simd_total(total);
    UNROLL for (int i = 0; i < EACH; i++) score[i] /= total;
  }
  UNROLL for (int i = 0; i < EACH; i++) {
    const uint e = at.lane + 32 * i;
    choice[i] = e < a.experts ? (BIAS ? score[i] + bias[e] : score[i]) : none;
  }
  if (GROUPS) {
    // Lane g finds out what group g is worth; the best are then picked one after another.
    const uint size = a.experts / a.groups;
    float worth = none;
    for (uint g = 0; g < a.groups; g++) {
      float first = none, second = none;
      uint place = ~0u;
      UNROLL for (int i = 0; i < EACH; i++) {
        const uint e = at.lane + 32 * i;
        if (e < a.experts && e / size == g) better(first, place, choice[i], e);
      }
      best_of_simd(first, place);
      uint other = ~0u;
      UNROLL for (int i = 0; i < EACH; i++) {
        const uint e = at.lane + 32 * i;
        if (e < a.experts && e / size == g && e != place) better(second, other, choice[i], e);
      }
      best_of_simd(second, other);
      if (at.lane == g) worth = size > 1 ? first + second : first;
    }
    uint kept = 0;
    for (uint n = 0; n < a.top_groups; n++) {
      float value = at.lane < a.groups && ((kept >> at.lane) & 1u) == 0 ? worth : none;
      uint index = at.lane;
      best_of_simd(value, index);
      kept |= 1u << index;
    }
    UNROLL for (int i = 0; i < EACH; i++) {
      const uint e = at.lane + 32 * i;
      if (e < a.experts && ((kept >> (e / size)) & 1u) == 0) choice[i] = -1e37f;  // after all kept ones, before none
    }
  }
  float total = 0.0f, mine = 0.0f;
  for (uint slot = 0; slot < a.top_k; slot++) {
    float value = none;
    uint index = ~0u;
    UNROLL for (int i = 0; i < EACH; i++)
      if (at.lane + 32 * i < a.experts) better(value, index, choice[i], at.lane + 32 * i);
    best_of_simd(value, index);
    if (index >= a.experts) index = 0;  // nothing but NaN: any expert, so that nobody reads beyond the experts
    float chosen = 0.0f;
    UNROLL for (int i = 0; i < EACH; i++)
      if (at.lane + 32 * i == index) {
        chosen = score[i];
        choice[i] = none;
      }
    chosen = simd_total(chosen);
    total += chosen;
    if (at.lane == slot) {
      mine = chosen;
      experts[row * a.top_k + slot] = index;
      both[2 * (row * a.top_k + slot)] = index;
      both[2 * (row * a.top_k + slot) + 1] = index + a.experts;
    }
  }
  if (at.lane < a.top_k) weights[row * a.top_k + at.lane] = mine / (a.normalise != 0 ? total + 1e-20f : 1.0f) * a.scale;
}

// The place of the greatest of the first `count` values of each row of `cols`; ties to the lower. One threadgroup a row.
// NaN is never the greatest.
template <int SIMDS>
FN void argmax(Where at, DEVICE const float *x, DEVICE uint *place, CONSTANT ArgmaxArgs &a, THREADGROUP float *values,
               THREADGROUP uint *places) {
  DEVICE const float *in = x + at.group.x * a.cols;
  float value = -1e38f;
  uint index = ~0u;
  for (uint i = at.thread_; i < a.count; i += 32 * SIMDS) better(value, index, in[i], i);
  best_of_simd(value, index);
  if (at.lane == 0) {
    values[at.simd] = value;
    places[at.simd] = index;
  }
  group_barrier();
  if (at.thread_ == 0) {
    for (uint s = 1; s < SIMDS; s++) better(value, index, values[s], places[s]);
    place[at.group.x] = index == ~0u ? 0u : index;
  }
}

// Pairs (index[p] is the matrix of pair p) sorted by matrix, in order otherwise; one simdgroup for each matrix.
FN void sort_pairs(Where at, DEVICE const uint *index, DEVICE uint *order, DEVICE uint *starts, CONSTANT SortArgs &a) {
  const uint mine = at.group.x;
  float before = 0.0f;  // exact below 2^24
  for (uint p = at.lane; p < a.pairs; p += 32) before += index[p] < mine ? 1.0f : 0.0f;
  const uint start = uint(simd_total(before));
  uint next = start;
  for (uint base = 0; base < a.pairs; base += 32) {
    const uint p = base + at.lane;
    const uint is = p < a.pairs && index[p] == mine ? 1u : 0u;
    uint rank = is;  // how many up to this lane
    UNROLL for (uint step = 1; step < 32; step *= 2) {
      const uint other = lane_value(rank, at.lane >= step ? at.lane - step : at.lane);
      if (at.lane >= step) rank += other;
    }
    if (is != 0) order[next + rank - 1] = p;
    next += lane_value(rank, 31u);
  }
  if (at.lane == 0) {
    starts[mine] = start;
    if (mine + 1 == a.experts) starts[a.experts] = next;
  }
}

// Three words a tile. Threads take runs of matrices.
FN void expert_tiles(Where at, DEVICE const uint *starts, DEVICE uint *tiles, CONSTANT SortArgs &a, THREADGROUP uint *counts) {
  const uint run = round_up(a.experts, 256), from = at.thread_ * run, end = from + run < a.experts ? from + run : a.experts;
  uint own = 0;
  for (uint e = from; e < end; e++) own += round_up(starts[e + 1] - starts[e], 64);
  counts[at.thread_] = own;
  group_barrier();
  uint to = 0;
  for (uint t = 0; t < at.thread_; t++) to += counts[t];
  if (at.thread_ == 255) counts[256] = to + own;
  group_barrier();
  for (uint e = from; e < end; e++)
    for (uint p = starts[e]; p < starts[e + 1]; p += 64) {
      tiles[3 * to] = e;
      tiles[3 * to + 1] = p;
      tiles[3 * to + 2] = starts[e + 1] - p < 64 ? starts[e + 1] - p : 64u;
      to++;
    }
  for (uint t = counts[256] + at.thread_; t < a.tiles; t += 256) tiles[3 * t] = ~0u;
}
