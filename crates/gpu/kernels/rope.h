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

// Stores each row's two parts beside each other in the row's slot of the pool.
template <class T>
FN void kv_append(Where at, DEVICE const float *first, DEVICE const float *second, DEVICE const uint *slots, DEVICE uchar *pool,
                  CONSTANT AppendArgs &a) {
  const uint values = a.first + a.second, i = at.group.x * 256 + at.thread_;
  if (i < a.rows * values) {
    const uint row = i / values, c = i % values;
    const float v = c < a.first ? first[row * a.first + c] : second[row * a.second + c - a.first];
    T::put(pool, a.base + slots[row] * values + c, v);
  }
}
