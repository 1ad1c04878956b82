// Causal attention over a paged pool, one row of queries and one query head to a threadgroup. A token's slot holds `stride`
// values; the head's key begins at kv_head * key, its value at value_base + kv_head * value (latent attention is the case
// of one KV head whose value is the first part of its key). The SIMDS simdgroups take turns with the positions, each an
// online softmax (arXiv 1805.02867) over what it sees; the parts are then joined.
//
// Lane l holds values l, l + 32, ... of the query and of the sum: KEYS and VALUES of them at most.
template <class T, int SIMDS, int KEYS, int VALUES>
FN void attention(Where at, DEVICE const float *q, DEVICE const uchar *pool, DEVICE const uint *rows, DEVICE const uint *blocks,
                  DEVICE float *y, CONSTANT AttentionArgs &a, THREADGROUP float *part, THREADGROUP float *state) {
  const uint head = at.group.x, row = at.group.y, kv_head = head / a.share;
  const uint first_block = rows[2 * row], context = rows[2 * row + 1] + 1;
  float query[KEYS], sum[VALUES];
  UNROLL for (int i = 0; i < KEYS; i++) {
    const uint c = at.lane + 32 * i;
    query[i] = c < a.key ? q[(row * a.heads + head) * a.key + c] * a.scale : 0.0f;
  }
  UNROLL for (int i = 0; i < VALUES; i++) sum[i] = 0.0f;
  float top = -1e30f, total = 0.0f;
  for (uint t = at.simd; t < context; t += SIMDS) {
    const uint slot = blocks[first_block + t / a.block] * a.block + t % a.block;
    const uint k = a.base + slot * a.stride + kv_head * a.key, v = a.base + slot * a.stride + a.value_base + kv_head * a.value;
    float dot = 0.0f;
    UNROLL for (int i = 0; i < KEYS; i++) {
      const uint c = at.lane + 32 * i;
      if (c < a.key) dot += query[i] * T::get(pool, k + c);
    }
    const float score = simd_total(dot), next = max_f32(top, score);
    const float old = exp_f32(top - next), now = exp_f32(score - next);
    total = total * old + now;
    top = next;
    UNROLL for (int i = 0; i < VALUES; i++) {
      const uint c = at.lane + 32 * i;
      if (c < a.value) sum[i] = sum[i] * old + now * T::get(pool, v + c);
    }
  }
  if (at.lane == 0) {
    state[2 * at.simd] = top;
    state[2 * at.simd + 1] = total;
  }
  UNROLL for (int i = 0; i < VALUES; i++) part[(at.simd * VALUES + i) * 32 + at.lane] = sum[i];
  group_barrier();
  float greatest = state[0];
  for (uint s = 1; s < SIMDS; s++) greatest = max_f32(greatest, state[2 * s]);
  float all = 0.0f;
  for (uint s = 0; s < SIMDS; s++) all += state[2 * s + 1] * exp_f32(state[2 * s] - greatest);
  for (uint c = at.thread_; c < a.value; c += 32 * SIMDS) {
    float joined = 0.0f;
    for (uint s = 0; s < SIMDS; s++) joined += part[(s * VALUES + c / 32) * 32 + c % 32] * exp_f32(state[2 * s] - greatest);
    y[(row * a.heads + head) * a.value + c] = joined / all;
  }
}

// Products with the parts of a latent projection, head by head, a dense [heads * each, rank] matrix in T of which head h has
// rows h * each + first ..: TRANSPOSED: y[row][head][r] = sum over n < inner of w[n][r] * x[row][head * x_head + n], and
// the rotated part of the query is copied behind it; else y[row][head][n] = w[n] · x[row][head], for n < outer.
template <class T, bool TRANSPOSED>
FN void latent_project(Where at, DEVICE const float *x, DEVICE const uchar *w, DEVICE float *y, CONSTANT LatentArgs &a) {
  const uint head = at.group.y, row = at.group.z;
  const uint from = head * a.each + a.first;
  DEVICE const float *in = x + (row * a.heads + head) * a.x_head;
  DEVICE float *out = y + (row * a.heads + head) * a.y_head;
  if (TRANSPOSED) {
    const uint r = at.group.x * 256 + at.thread_;
    if (r < a.rank) {
      float sum = 0.0f;
      for (uint n = 0; n < a.inner; n++) sum += T::get(w, (from + n) * a.rank + r) * in[n];
      out[r] = sum;
    } else if (r < a.y_head) {
      out[r] = in[a.inner + r - a.rank];
    }
  } else {
    const uint n = at.group.x * 8 + at.simd;  // the same for all lanes
    if (n < a.inner) {
      float sum = 0.0f;
      for (uint r = at.lane; r < a.rank; r += 32) sum += T::get(w, (from + n) * a.rank + r) * in[r];
      sum = simd_total(sum);
      if (at.lane == 0) out[n] = sum;
    }
  }
}
