// The most probable token of each row, how far the next one is behind, and the sum of exponentials: first of parts of the
// vocabulary, then of all. A part of `each` logits gives four words: token, its logit, the second logit, the sum of exponentials
// relative to the best. Ties go to the lower token. NaN is never the best, but makes the sum NaN.
FN void best_two(THREAD float &best, THREAD uint &token, THREAD float &second, float b, uint t, float s) {
  const bool wins = b > best || (b == best && t < token);
  const float loser = wins ? best : b, rest = s > second ? s : second;
  second = loser > rest ? loser : rest;
  if (wins) {
    best = b;
    token = t;
  }
}
FN void best_two_of_simd(THREAD float &best, THREAD uint &token, THREAD float &second) {
  UNROLL for (uint mask = 16; mask > 0; mask /= 2) {
    const float b = lane_xor(best, mask), s = lane_xor(second, mask);
    const uint t = lane_xor(token, mask);
    best_two(best, token, second, b, t, s);
  }
}
FN float nothing() { return as_f32(0xFF800000u); }  // minus infinity
// e^(v - best), for what is at most best; nothing at all is 0, and NaN stays NaN.
FN float relative(float v, float best) { return v == nothing() ? 0.0f : exp_f32(v - best); }

// Eight simdgroups a part. Grid [parts, rows].
FN void greedy_part(Where at, DEVICE const float *logits, DEVICE uint *found, CONSTANT GreedyArgs &a, THREADGROUP float *values, THREADGROUP uint *tokens) {
  const uint from = at.group.x * a.each, to = from + a.each < a.count ? from + a.each : a.count;
  DEVICE const float *in = logits + at.group.y * a.cols;
  float best = nothing(), second = nothing();
  uint token = ~0u;
  for (uint i = from + at.thread_; i < to; i += 256) best_two(best, token, second, in[i], i, nothing());
  best_two_of_simd(best, token, second);
  if (at.lane == 0) {
    values[at.simd] = best;
    values[8 + at.simd] = second;
    tokens[at.simd] = token;
  }
  group_barrier();
  for (uint s = 0; s < 8; s++)
    if (s != at.simd) best_two(best, token, second, values[s], tokens[s], values[8 + s]);
  float sum = 0.0f;
  for (uint i = from + at.thread_; i < to; i += 256) sum += relative(in[i], best);
  sum = simd_total(sum);
  if (at.lane == 0) values[16 + at.simd] = sum;
  group_barrier();
  if (at.thread_ == 0) {
    float all = 0.0f;
    for (uint s = 0; s < 8; s++) all += values[16 + s];
    DEVICE uint *out = found + 4 * (at.group.y * a.parts + at.group.x);
    out[0] = token;
    out[1] = as_u32(best);
    out[2] = as_u32(second);
    out[3] = as_u32(all);
  }
}

// The token of each row, how much less than the best its logit is (nothing, or NaN if that is no number), how far the next one is behind,
// and the sum of exponentials. One simdgroup a row. Grid [rows].
FN void greedy_join(Where at, DEVICE const uint *found, DEVICE uint *chosen, CONSTANT GreedyArgs &a) {
  DEVICE const uint *in = found + 4 * at.group.x * a.parts;
  float best = nothing(), second = nothing();
  uint token = ~0u;
  for (uint p = at.lane; p < a.parts; p += 32) best_two(best, token, second, as_f32(in[4 * p + 1]), in[4 * p], as_f32(in[4 * p + 2]));
  best_two_of_simd(best, token, second);
  float sum = 0.0f;
  for (uint p = at.lane; p < a.parts; p += 32) sum += as_f32(in[4 * p + 3]) * relative(as_f32(in[4 * p + 1]), best);
  sum = simd_total(sum);
  if (at.lane == 0) {
    DEVICE uint *out = chosen + 4 * at.group.x;
    out[0] = token == ~0u ? 0u : token;  // nothing but NaN
    out[1] = as_u32(best - best);
    out[2] = as_u32(best - second);
    out[3] = as_u32(sum);
  }
}

// Tokens that are samples of the step before: `which` names the row of `chosen`, all ones leave the token as it is.
FN void take_tokens(Where at, DEVICE const uint *which, DEVICE const uint *chosen, DEVICE uint *tokens, CONSTANT CountArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.count && which[i] != ~0u) tokens[i] = chosen[4 * which[i]];
}

FN void copy_words(Where at, DEVICE const uint *x, DEVICE uint *y, CONSTANT CountArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.count) y[i] = x[i];
}
