// Tokens drawn from the softmax of a row's logits, as the CPU draws them, number for number: l is the logit less the best one, divided by the
// temperature; of the tokens kept the one whose l plus Gumbel noise is greatest is chosen, the lower one where two are equal. The
// noise is a function of seed, draw and token. Products and sums that decide are not contracted, so that every device rounds alike.
//
// Top-p adds the weights e^l as integers (in units of 2^-44, for at most 2^19 tokens), whose sum is the same in any order. The CPU adds
// the same numbers as f64, so the two can part only where a sum comes within about 2^-40 of its target.
//
// Nothing is sorted. The tokens of `count` are counted above eight levels of l; the first level above which enough of them lie gives a
// few candidates; among these the edge of the kept set is found bit by bit: the greatest key such that the weights of keys at least as
// great reach what is wanted. Equal keys are told apart by the token, the lower one first.

struct DrawRow {
  uint flags;  // 1: drawn, 2: top-k or top-p, 4: top-p
  float inverse;  // of the temperature
  uint k;         // 0: all
  uint share;     // top-p in units of 2^-32
  float least;    // logarithm of min-p
  ulong stream;   // where the row's noise begins
  float temperature;
};
FN ulong long_of(uint high, uint low) { return (ulong(high) << 32) | ulong(low); }
FN uint high_of(ulong v) { return uint(v >> 32); }
FN uint low_of(ulong v) { return uint(v & 0xFFFFFFFFu); }
FN void draw_row(DEVICE const uint *p, THREAD DrawRow &r) {
  r.flags = p[0];
  r.inverse = as_f32(p[1]);
  r.k = p[2];
  r.share = p[3];
  r.least = as_f32(p[4]);
  r.stream = long_of(p[6], p[5]);
  r.temperature = as_f32(p[7]);
}

// Nothing beyond this below the best can win.
FN float noise_span() { return -41.0f; }
FN float level_of(uint i) {
  return i == 0 ? -2.0f : i == 1 ? -4.0f : i == 2 ? -6.0f : i == 3 ? -8.0f : i == 4 ? -11.0f : i == 5 ? -15.0f : i == 6 ? -22.0f : noise_span();
}
FN float relative_logit(float logit, float best, THREAD const DrawRow &r) { return times(logit - best, r.inverse); }
FN bool may_win(float l, THREAD const DrawRow &r) { return l > noise_span() && (r.k != 0 || l >= r.least); }

// Floats in order of their bits.
FN uint key_of(float v) {
  const uint u = as_u32(v);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
FN float value_of_key(uint k) { return as_f32((k & 0x80000000u) != 0 ? k & 0x7FFFFFFFu : ~k); }

// e^x for x <= 0, step by step as the CPU's.
FN float exp_of(float x) {
  const float rounded = plus(times(x, 1.44269504088896340736f), 12582912.0f);
  const float n = rounded - 12582912.0f;
  const float r = plus(plus(x, -times(n, 0.693359375f)), times(n, 2.1219444e-4f));
  float p = 1.9875691e-4f;
  p = plus(times(p, r), 1.3981999e-3f);
  p = plus(times(p, r), 8.333452e-3f);
  p = plus(times(p, r), 4.1665796e-2f);
  p = plus(times(p, r), 1.6666665e-1f);
  p = plus(times(p, r), 5e-1f);
  const float e = plus(plus(times(times(p, r), r), r), 1.0f);
  return x < -87.0f ? 0.0f : times(e, as_f32((as_u32(rounded) + 127u) << 23));
}
FN ulong weight_of(float l) { return ulong(times(exp_of(l), 17592186044416.0f)); }

// ln(1 + f) + e ln 2 for f between sqrt(1/2) - 1 and sqrt(2) - 1, and ln x, step by step as the CPU's.
FN float log_near_one(float f, float e) {
  const float z = times(f, f);
  float p = 7.0376836e-2f;
  p = plus(times(p, f), -1.151461e-1f);
  p = plus(times(p, f), 1.1676998e-1f);
  p = plus(times(p, f), -1.2420141e-1f);
  p = plus(times(p, f), 1.4249323e-1f);
  p = plus(times(p, f), -1.6668058e-1f);
  p = plus(times(p, f), 2.0000715e-1f);
  p = plus(times(p, f), -2.4999994e-1f);
  p = plus(times(p, f), 3.333333e-1f);
  p = times(times(p, f), z);
  p = plus(p, times(e, -2.1219444e-4f));
  p = plus(p, -times(0.5f, z));
  return plus(plus(f, p), times(e, 0.693359375f));
}
FN float log_of(float x) {
  const int e = (int(as_u32(x)) - 0x3F3504F3) >> 23;
  return log_near_one(as_f32(as_u32(x) - (uint(e) << 23)) - 1.0f, float(e));
}

// Standard Gumbel noise of a token.
FN ulong mixed(ulong x) {
  ulong z = x + long_of(0x9E3779B9u, 0x7F4A7C15u);
  z = (z ^ (z >> 30)) * long_of(0xBF58476Du, 0x1CE4E5B9u);
  z = (z ^ (z >> 27)) * long_of(0x94D049BBu, 0x133111EBu);
  return z ^ (z >> 31);
}
FN float noise_of(ulong stream, uint token) {
  const ulong odd = ((mixed(stream + ulong(token)) >> 12) << 1) | ulong(1);  // the uniform number in units of 2^-53
  const ulong rest = (ulong(1) << 53) - odd;
  const float unit = as_f32(0x25000000u);  // 2^-53
  const float t = high_of(rest) < 0x90000u ? -log_near_one(-times(float(rest), unit), 0.0f) : -log_of(times(float(odd), unit));
  return -log_of(t);
}

// The best logit of a row, its token and the second, from the parts that greedy_part has found; every simdgroup for itself.
FN void best_of_parts(DEVICE const uint *in, uint parts, uint lane, THREAD float &best, THREAD uint &token, THREAD float &second) {
  best = nothing(), second = nothing();
  token = ~0u;
  for (uint p = lane; p < parts; p += 32) best_two(best, token, second, as_f32(in[4 * p + 1]), in[4 * p], as_f32(in[4 * p + 2]));
  best_two_of_simd(best, token, second);
}
FN float sum_of_parts(DEVICE const uint *in, uint parts, uint lane, float best) {
  float sum = 0.0f;
  for (uint p = lane; p < parts; p += 32) sum += as_f32(in[4 * p + 3]) * relative(as_f32(in[4 * p + 1]), best);
  return simd_total(sum);
}
FN ulong simd_total_long(ulong v) {
  UNROLL for (uint mask = 16; mask > 0; mask /= 2) v += long_of(lane_xor(high_of(v), mask), lane_xor(low_of(v), mask));
  return v;
}

// How far min-p's edge is from a token, but for those that are best.
FN float edge_at(float l, THREAD const DrawRow &r) { return l == 0.0f ? -nothing() : abs_f32(l - r.least); }

// Of each part of each row with top-k or top-p: above each level the tokens (word i) and their weights (words 8 + i and 16 + i), and min-p's
// edge (word 24). Eight simdgroups. Grid [parts, rows].
FN void draw_count(Where at, DEVICE const float *logits, DEVICE const uint *rows, DEVICE const uint *found, DEVICE uint *levels,
                   CONSTANT GreedyArgs &a, THREADGROUP uint *words) {
  DrawRow r;
  draw_row(rows + 8 * at.group.y, r);
  if ((r.flags & 2u) == 0) return;
  float best, second;
  uint token;
  best_of_parts(found + 4 * at.group.y * a.parts, a.parts, at.lane, best, token, second);
  const uint from = at.group.x * a.each, to = from + a.each < a.count ? from + a.each : a.count;
  DEVICE const float *in = logits + at.group.y * a.cols;
  uint counts[8];
  ulong weights[8];
  UNROLL for (uint i = 0; i < 8; i++) counts[i] = 0, weights[i] = 0;
  float edge = -nothing();
  for (uint t = from + at.thread_; t < to; t += 256) {
    const float l = relative_logit(in[t], best, r);
    if (l > noise_span()) edge = -max_f32(-edge, -edge_at(l, r));
    if (may_win(l, r)) {
      const ulong w = weight_of(l);
      UNROLL for (uint i = 0; i < 8; i++)
        if (l > level_of(i)) {
          counts[i] += 1;
          weights[i] += w;
        }
    }
  }
  edge = -simd_greatest(-edge);
  UNROLL for (uint i = 0; i < 8; i++) {
    const uint count = uint(simd_total_long(ulong(counts[i])));
    const ulong weight = simd_total_long(weights[i]);
    if (at.lane == 0) {
      words[32 * at.simd + i] = count;
      words[32 * at.simd + 8 + i] = low_of(weight);
      words[32 * at.simd + 16 + i] = high_of(weight);
    }
  }
  if (at.lane == 0) words[32 * at.simd + 24] = as_u32(edge);
  group_barrier();
  DEVICE uint *out = levels + 32 * (at.group.y * a.parts + at.group.x);
  if (at.thread_ < 8) {
    uint count = 0;
    ulong weight = 0;
    for (uint s = 0; s < 8; s++) {
      count += words[32 * s + at.thread_];
      weight += long_of(words[32 * s + 16 + at.thread_], words[32 * s + 8 + at.thread_]);
    }
    out[at.thread_] = count;
    out[8 + at.thread_] = low_of(weight);
    out[16 + at.thread_] = high_of(weight);
  }
  if (at.thread_ == 0) {
    for (uint s = 1; s < 8; s++) edge = -max_f32(-edge, -as_f32(words[32 * s + 24]));
    out[24] = as_u32(edge);
  }
}

// The least sum that reaches top-p of `total`; at least 1, for the best is always kept.
FN ulong wanted_of(ulong total, uint share) {
  const ulong low = ulong(low_of(total)) * ulong(share);
  const ulong sum = ulong(high_of(total)) * ulong(share) + (low >> 32) + (low_of(low) != 0 ? ulong(1) : ulong(0));
  return sum == 0 ? ulong(1) : sum;
}

// With top-k or top-p: candidates of each part, in order, and by the first part what is known of the row: the level that they lie above,
// their number, that of all that may win, the weight of these, min-p's edge. Otherwise: the token of the part with the best noisy
// logit, that logit, the second, min-p's edge. Eight simdgroups. Grid [parts, rows].
FN void draw_gather(Where at, DEVICE const float *logits, DEVICE const uint *rows, DEVICE const uint *found, DEVICE const uint *levels,
                    DEVICE uint *tokens, DEVICE uint *drawn, DEVICE uint *known, CONSTANT GreedyArgs &a, THREADGROUP uint *words) {
  DrawRow r;
  draw_row(rows + 8 * at.group.y, r);
  if ((r.flags & 1u) == 0) return;
  float best, second;
  uint token;
  best_of_parts(found + 4 * at.group.y * a.parts, a.parts, at.lane, best, token, second);
  const uint from = at.group.x * a.each, to = from + a.each < a.count ? from + a.each : a.count;
  DEVICE const float *in = logits + at.group.y * a.cols;
  if ((r.flags & 2u) == 0) {
    float score = nothing(), next = nothing(), edge = -nothing();
    token = ~0u;
    for (uint t = from + at.thread_; t < to; t += 256) {
      const float l = relative_logit(in[t], best, r);
      if (l > noise_span()) edge = -max_f32(-edge, -edge_at(l, r));
      if (may_win(l, r)) best_two(score, token, next, plus(l, noise_of(r.stream, t)), t, nothing());
    }
    best_two_of_simd(score, token, next);
    edge = -simd_greatest(-edge);
    if (at.lane == 0) {
      words[at.simd] = token;
      words[8 + at.simd] = as_u32(score);
      words[16 + at.simd] = as_u32(next);
      words[24 + at.simd] = as_u32(edge);
    }
    group_barrier();
    if (at.thread_ == 0) {
      for (uint s = 1; s < 8; s++) {
        best_two(score, token, next, as_f32(words[8 + s]), words[s], as_f32(words[16 + s]));
        edge = -max_f32(-edge, -as_f32(words[24 + s]));
      }
      DEVICE uint *out = drawn + 4 * (at.group.y * a.parts + at.group.x);
      out[0] = token;
      out[1] = as_u32(score);
      out[2] = as_u32(next);
      out[3] = as_u32(edge);
    }
    return;
  }
  // Simdgroup i adds level i up.
  uint count = 0, before = 0;
  ulong weight = 0;
  float edge = -nothing();
  for (uint p = at.lane; p < a.parts; p += 32) {
    DEVICE const uint *part = levels + 32 * (at.group.y * a.parts + p);
    count += part[at.simd];
    before += p < at.group.x ? part[at.simd] : 0u;
    weight += long_of(part[16 + at.simd], part[8 + at.simd]);
    edge = -max_f32(-edge, -as_f32(part[24]));
  }
  const ulong both = simd_total_long(long_of(count, before));
  weight = simd_total_long(weight);
  edge = -simd_greatest(-edge);
  if (at.lane == 0) {
    words[at.simd] = high_of(both);
    words[8 + at.simd] = low_of(both);
    words[16 + at.simd] = low_of(weight);
    words[24 + at.simd] = high_of(weight);
  }
  group_barrier();
  const ulong total = long_of(words[31], words[23]), wanted = wanted_of(total, r.share);
  uint level = 0;
  while (level < 7 && (r.k != 0 ? words[level] <= r.k : long_of(words[24 + level], words[16 + level]) < wanted)) level++;
  const float above = level_of(level);
  if (at.group.x == 0 && at.thread_ == 0) {
    DEVICE uint *out = known + 8 * at.group.y;
    out[0] = as_u32(above);
    out[1] = words[level];
    out[2] = words[7];
    out[3] = low_of(total);
    out[4] = high_of(total);
    out[5] = as_u32(edge);
  }
  DEVICE uint *to_row = tokens + at.group.y * a.count;
  uint place = words[8 + level];
  for (uint base = from; base < to; base += 256) {
    const uint t = base + at.thread_;
    float l = nothing();
    if (t < to) l = relative_logit(in[t], best, r);
    const uint is = may_win(l, r) && l > above ? 1u : 0u;
    uint rank = is;  // how many up to this lane
    UNROLL for (uint step = 1; step < 32; step *= 2) {
      const uint other = lane_value(rank, at.lane >= step ? at.lane - step : at.lane);
      if (at.lane >= step) rank += other;
    }
    if (at.lane == 31) words[32 + at.simd] = rank;
    group_barrier();
    uint ahead = 0, all = 0;
    for (uint s = 0; s < 8; s++) {
      all += words[32 + s];
      ahead += s < at.simd ? words[32 + s] : 0u;
    }
    if (is != 0) to_row[place + ahead + rank - 1] = t;
    place += all;
    group_barrier();
  }
}

// Sums and maxima of all threads of a group of SIMDS simdgroups. `turn` changes from call to call, so that nobody overwrites what another
// still reads.
template <int SIMDS> FN ulong group_total(THREAD const Where &at, ulong v, THREAD uint &turn, THREADGROUP uint *words) {
  v = simd_total_long(v);
  turn ^= 64u;
  if (at.lane == 0) {
    words[turn + at.simd] = low_of(v);
    words[turn + 32 + at.simd] = high_of(v);
  }
  group_barrier();
  if (SIMDS == 32) return simd_total_long(long_of(words[turn + 32 + at.lane], words[turn + at.lane]));
  v = 0;
  for (uint s = 0; s < SIMDS; s++) v += long_of(words[turn + 32 + s], words[turn + s]);
  return v;
}
template <int SIMDS> FN float group_greatest(THREAD const Where &at, float v, THREAD uint &turn, THREADGROUP uint *words) {
  v = simd_greatest(v);
  turn ^= 64u;
  if (at.lane == 0) words[turn + at.simd] = as_u32(v);
  group_barrier();
  for (uint s = 0; s < SIMDS; s++) v = max_f32(v, as_f32(words[turn + s]));
  return v;
}

// The kept set: keys above `key`, and of those that are equal the tokens up to `last`.
struct DrawCut {
  uint key, last;
};
FN bool keeps(uint key, uint token, THREAD const DrawCut &cut) { return key > cut.key || (key == cut.key && token <= cut.last); }

// A row's candidates.
struct DrawSet {
  DEVICE const float *in;
  DEVICE const uint *tokens;
  uint count;
  float best;
};
// What a candidate counts for, and its key, in four searches: of the k-th best logit; of the last token that has it and is kept; of the l
// at which top-p is reached; of the last token that has that.
FN ulong candidate(THREAD const DrawSet &set, THREAD const DrawRow &r, uint i, uint search, THREAD const DrawCut &best_k, uint tie, THREAD uint &key) {
  const uint token = set.tokens[i];
  const float logit = set.in[token], l = relative_logit(logit, set.best, r);
  const uint by_logit = key_of(logit), by_l = key_of(l);
  if (search == 0) {
    key = by_logit;
    return ulong(1);
  }
  if (search == 1) {
    key = ~token;
    return by_logit == tie ? ulong(1) : ulong(0);
  }
  const bool in = keeps(by_logit, token, best_k) && l >= r.least;
  if (search == 2) {
    key = by_l;
    return in ? weight_of(l) : ulong(0);
  }
  key = ~token;
  return in && by_l == tie ? ulong(1) : ulong(0);
}
// The greatest key such that what keys at least as great count for reaches `wanted`; 0 if nothing does.
template <int SIMDS>
FN uint reaching(THREAD const Where &at, THREAD const DrawSet &set, THREAD const DrawRow &r, uint search, THREAD const DrawCut &best_k, uint tie, ulong wanted,
                 THREAD uint &turn, THREADGROUP uint *words) {
  uint reached = 0;
  for (uint bit = 0x80000000u; bit != 0; bit >>= 1) {
    ulong sum = 0;
    UNROLL_SOME for (uint i = at.thread_; i < set.count; i += 32 * SIMDS) {
      uint key;
      const ulong w = candidate(set, r, i, search, best_k, tie, key);
      if (key >= (reached | bit)) sum += w;
    }
    if (group_total<SIMDS>(at, sum, turn, words) >= wanted) reached |= bit;
  }
  return reached;
}
// What counts above `key`, and how many are equal to it; the greatest value below.
template <int SIMDS>
FN void beside(THREAD const Where &at, THREAD const DrawSet &set, THREAD const DrawRow &r, uint search, THREAD const DrawCut &best_k, uint key, THREAD ulong &above,
               THREAD uint &equal, THREAD float &below, THREAD uint &turn, THREADGROUP uint *words) {
  ulong sum = 0, same = 0;
  float next = nothing();
  for (uint i = at.thread_; i < set.count; i += 32 * SIMDS) {
    uint k;
    const ulong w = candidate(set, r, i, search, best_k, 0, k);
    if (k > key) sum += w;
    if (k == key && w != 0) same += 1;
    if (k < key && (search == 0 || keeps(key_of(set.in[set.tokens[i]]), set.tokens[i], best_k))) {
      const float l = relative_logit(set.in[set.tokens[i]], set.best, r);
      if (search == 0 || l >= r.least) next = max_f32(next, l);
    }
  }
  above = group_total<SIMDS>(at, sum, turn, words);
  equal = uint(group_total<SIMDS>(at, same, turn, words));
  below = group_greatest<SIMDS>(at, next, turn, words);
}

// The token of each row, how much less than the best its logit is, how far the choice was from another one, and the sum of exponentials
// relative to the best. Grid [rows].
template <int SIMDS>
FN void draw_choose(Where at, DEVICE const float *logits, DEVICE const uint *rows, DEVICE const uint *found, DEVICE const uint *tokens,
                    DEVICE const uint *drawn, DEVICE const uint *known, DEVICE uint *chosen, CONSTANT GreedyArgs &a, THREADGROUP uint *words) {
  const uint row = at.group.x;
  DrawRow r;
  draw_row(rows + 8 * row, r);
  DEVICE const uint *parts = found + 4 * row * a.parts;
  DEVICE const float *in = logits + row * a.cols;
  float best, second;
  uint token;
  best_of_parts(parts, a.parts, at.lane, best, token, second);
  float margin = best - second;
  if (r.flags != 0) {
    uint turn = 0;
    float score = nothing(), next = nothing(), edge = -nothing(), least_edge = -nothing();
    // The second best after top-k, for min-p.
    float runner_up = relative_logit(second, best, r);
    if (runner_up <= noise_span() || r.k == 1) runner_up = nothing();
    token = ~0u;
    if ((r.flags & 2u) == 0) {
      for (uint p = at.lane; p < a.parts; p += 32) {
        DEVICE const uint *part = drawn + 4 * (row * a.parts + p);
        best_two(score, token, next, as_f32(part[1]), part[0], as_f32(part[2]));
        least_edge = -max_f32(-least_edge, -as_f32(part[3]));
      }
      best_two_of_simd(score, token, next);
      least_edge = -simd_greatest(-least_edge);
    } else {
      DEVICE const uint *about = known + 8 * row;
      DrawSet set;
      set.in = in;
      set.tokens = tokens + row * a.count;
      set.count = about[1];
      set.best = best;
      least_edge = as_f32(about[5]);
      ulong above;
      uint equal;
      float below;
      DrawCut best_k, cut;
      best_k.key = 0;
      best_k.last = ~0u;
      if (r.k != 0 && r.k < set.count) {
        best_k.key = reaching<SIMDS>(at, set, r, 0, best_k, 0, ulong(r.k), turn, words);
        beside<SIMDS>(at, set, r, 0, best_k, best_k.key, above, equal, below, turn, words);
        const uint more = r.k - uint(above);
        edge = relative_logit(value_of_key(best_k.key), best, r) - below;
        if (more < equal) {
          best_k.last = ~reaching<SIMDS>(at, set, r, 1, best_k, best_k.key, ulong(more), turn, words);
          edge = 0.0f;
        }
      }
      if (r.k != 0) {
        least_edge = -nothing();
        for (uint i = at.thread_; i < set.count; i += 32 * SIMDS) {
          const float logit = in[set.tokens[i]];
          if (keeps(key_of(logit), set.tokens[i], best_k)) least_edge = -max_f32(-least_edge, -edge_at(relative_logit(logit, best, r), r));
        }
        least_edge = -group_greatest<SIMDS>(at, -least_edge, turn, words);
      }
      cut.key = 0;
      cut.last = ~0u;
      if ((r.flags & 4u) != 0) {
        ulong total = long_of(about[4], about[3]);
        if (r.k != 0) {
          total = 0;
          for (uint i = at.thread_; i < set.count; i += 32 * SIMDS) {
            uint key;
            total += candidate(set, r, i, 2, best_k, 0, key);
          }
          total = group_total<SIMDS>(at, total, turn, words);
        }
        const ulong wanted = wanted_of(total, r.share);
        cut.key = reaching<SIMDS>(at, set, r, 2, best_k, 0, wanted, turn, words);
        beside<SIMDS>(at, set, r, 2, best_k, cut.key, above, equal, below, turn, words);
        const float at_cut = value_of_key(cut.key);
        const ulong each = weight_of(at_cut);
        const ulong more = each == 0 ? ulong(0) : (wanted - above + each - 1) / each;
        // What lies below the candidates' level is at least that far away.
        if (below == nothing() && r.k == 0 && set.count < about[2]) below = as_f32(about[0]);
        float gap = at_cut - below;
        if (more < ulong(equal)) {
          cut.last = ~reaching<SIMDS>(at, set, r, 3, best_k, cut.key, more, turn, words);
          gap = 0.0f;
        }
        const ulong sum = above + more * each;
        const float over = gap == -nothing() ? gap : float(sum - wanted), under = sum > each ? float(wanted - (sum - each)) : -nothing();
        edge = -max_f32(-edge, -gap);
        edge = -max_f32(-edge, max_f32(-over, -under) * 4.0f / float(total));
      }
      for (uint i = at.thread_; i < set.count; i += 32 * SIMDS) {
        const uint t = set.tokens[i];
        const float l = relative_logit(in[t], best, r);
        if (keeps(key_of(in[t]), t, best_k) && l >= r.least && keeps(key_of(l), t, cut))
          best_two(score, token, next, plus(l, noise_of(r.stream, t)), t, nothing());
      }
      best_two_of_simd(score, token, next);
      group_barrier();
      if (at.lane == 0) {
        words[at.simd] = token;
        words[32 + at.simd] = as_u32(score);
        words[64 + at.simd] = as_u32(next);
      }
      group_barrier();
      for (uint other = 0; other < SIMDS; other++)
        if (other != at.simd) best_two(score, token, next, as_f32(words[32 + other]), words[other], as_f32(words[64 + other]));
    }
    if (r.least > nothing()) edge = -max_f32(-edge, max_f32(-least_edge, -max_f32(-r.least, -runner_up)));
    margin = -max_f32(-(score - next), -edge) * r.temperature;
  }
  const float sum = sum_of_parts(parts, a.parts, at.lane, best);
  if (at.thread_ == 0) {
    if (token == ~0u) token = 0;  // nothing but NaN
    DEVICE uint *out = chosen + 4 * row;
    out[0] = token;
    out[1] = as_u32(in[token] - best);
    out[2] = as_u32(margin);
    out[3] = as_u32(sum);
  }
}
