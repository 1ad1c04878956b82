// Attention of many rows with tensor cores (arXiv 2205.14135). What sequences have of the pool is first written as halves, each KV head's
// positions one after another; heads are padded with zeros to multiples of 64. `spans` has four words for each sequence: its
// first row, how many rows, its first row's position, and which of the positions in these halves is its first.

// The sequence that has item n of those counted by `each` (words of a span, over `by`, rounded up), and which of its items that is.
struct SpanPlace {
  uint span, item;
};
FN SpanPlace span_of(DEVICE const uint *spans, uint n, uint by) {
  SpanPlace p;
  p.span = 0;
  p.item = n;
  for (uint items = round_up(spans[1], by); p.item >= items; items = round_up(spans[4 * p.span + 1], by)) {
    p.item -= items;
    p.span++;
  }
  return p;
}
// The sequence that has position n of the halves.
FN uint span_at(DEVICE const uint *spans, uint count, uint n) {
  uint s = 0;
  while (s + 1 < count && n >= spans[4 * (s + 1) + 3]) s++;
  return s;
}

// Eight values of a slot from element `from + c` on, times `scale`, as halves; those from `end` on are zeros.
template <class T, int W>
FN uint4 slot_halves(DEVICE const uchar *pool, uint from, uint c, uint end, float scale) {
  float v[8];
  UNROLL for (int j = 0; j < 8; j++) v[j] = 0.0f;
  if (W == 8) {
    uint words[T::WORDS];
    if (c < end) {
      T::load8(pool, from + c, words);
      UNROLL for (int j = 0; j < 8; j++) v[j] = T::value8(words, j);
    }
  } else {
    UNROLL for (int j = 0; j < 8; j++)
      if (c + j < end) v[j] = T::get(pool, from + c + j);
  }
  uint4 out;
  out.x = pair_of_halves(v[0] * scale, v[1] * scale);
  out.y = pair_of_halves(v[2] * scale, v[3] * scale);
  out.z = pair_of_halves(v[4] * scale, v[5] * scale);
  out.w = pair_of_halves(v[6] * scale, v[7] * scale);
  return out;
}

// Keys [kv_heads][positions][wide_key] and values [kv_heads][positions][wide_value] of all sequences. LATENT: only the latents, one head's
// keys, of which 128 share a scale. Grid [positions].
template <class T, int W, bool LATENT>
FN void context_halves(Where at, DEVICE const uchar *pool, DEVICE const uint *rows, DEVICE const uint *blocks, DEVICE const uint *spans, DEVICE uint *keys,
                       DEVICE uint *values, CONSTANT ContextArgs &a) {
  wait_for_others();
  others_may_begin();
  const uint n = at.group.x, s = span_at(spans, a.spans, n), t = n - spans[4 * s + 3];
  const uint slot = blocks[rows[2 * spans[4 * s]] + t / a.block] * a.block + t % a.block;
  DEVICE const float *scales = (DEVICE const float *)(pool + slot * a.stride + a.scales);
  const uint per_key = a.wide_key / 8, per_value = LATENT ? 0 : a.wide_value / 8;
  for (uint i = at.thread_; i < a.kv_heads * (per_key + per_value); i += 128) {
    if (i < a.kv_heads * per_key) {
      const uint head = i / per_key, c = i % per_key * 8;
      const float scale = T::SCALED != 0 ? scales[LATENT ? c / 128 : head] : 1.0f;
      ((DEVICE uint4 *)keys)[(head * a.positions + n) * per_key + c / 8] =
          slot_halves<T, W>(pool, slot * a.stride + head * a.key, c, a.key, scale);
    } else {
      const uint j = i - a.kv_heads * per_key, head = j / per_value, c = j % per_value * 8;
      const float scale = T::SCALED != 0 ? scales[a.kv_heads + head] : 1.0f;
      ((DEVICE uint4 *)values)[(head * a.positions + n) * per_value + c / 8] =
          slot_halves<T, W>(pool, slot * a.stride + a.value_base + head * a.value, c, a.value, scale);
    }
  }
}

// Keys and values of all heads for positions from a.first on, of what a projection made of their latents, x [position][heads * (nope +
// value)], and of the rotated keys in the pool. Grid [positions].
template <class T, int W>
FN void expanded_halves(Where at, DEVICE const float *x, DEVICE const uchar *pool, DEVICE const uint *rows, DEVICE const uint *blocks, DEVICE const uint *spans,
                        DEVICE uint *keys, DEVICE uint *values, CONSTANT ExpandedArgs &a) {
  wait_for_others();
  others_may_begin();
  const uint n = a.first + at.group.x, s = span_at(spans, a.c.spans, n), t = n - spans[4 * s + 3];
  const uint slot = blocks[rows[2 * spans[4 * s]] + t / a.c.block] * a.c.block + t % a.c.block;
  const float scale = T::SCALED != 0 ? ((DEVICE const float *)(pool + slot * a.c.stride + a.c.scales))[round_up(a.rank, 128)] : 1.0f;
  const uint nope = a.c.key - a.rope, each = nope + a.c.value, per_key = a.c.wide_key / 8, per = per_key + a.c.wide_value / 8;
  DEVICE const uchar *line = (DEVICE const uchar *)(x + at.group.x * a.c.kv_heads * each);
  for (uint i = at.thread_; i < a.c.kv_heads * per; i += 128) {
    const uint head = i / per, part = i % per;
    if (part < per_key) {
      const uint c = 8 * part;
      ((DEVICE uint4 *)keys)[(head * a.c.positions + n) * per_key + part] =
          c < nope ? slot_halves<F32, W>(line, head * each, c, nope, 1.0f) : slot_halves<T, W>(pool, slot * a.c.stride + a.rank, c - nope, a.rope, scale);
    } else {
      const uint c = 8 * (part - per_key);
      ((DEVICE uint4 *)values)[(head * a.c.positions + n) * (per - per_key) + c / 8] = slot_halves<F32, W>(line, head * each + nope, c, a.c.value, 1.0f);
    }
  }
}

// Values c and c + 1 of a query head; the last 2 * a.pairs of its values are turned by the row's position (ROPE as elsewhere).
template <int ROPE>
FN void query_values(DEVICE const float *in, uint c, DEVICE const uint *positions, DEVICE const float *table, uint row, CONSTANT TilesArgs &a, THREAD float *v) {
  const uint inner = a.key - 2 * a.pairs;
  v[0] = v[1] = 0.0f;
  if (a.key % 2 == 0) {
    if (c < a.key) {
      const float2 both = *(DEVICE const float2 *)(in + c);
      v[0] = both.x;
      v[1] = both.y;
    }
  } else {
    if (c < a.key) v[0] = in[c];
    if (c + 1 < a.key) v[1] = in[c + 1];
  }
  UNROLL for (int j = 0; j < 2; j++) {
    if (ROPE == 0 || c + j < inner || c + j >= a.key) continue;
    const uint i = c + j - inner, pair = ROPE == 2 ? i / 2 : i % a.pairs;
    const bool later = ROPE == 2 ? (i & 1u) != 0 : i >= a.pairs;
    const float own = in[c + j], other = in[inner + (ROPE == 2 ? (i ^ 1u) : later ? i - a.pairs : i + a.pairs)];
    const uint turn = 2 * (positions[row] * a.pairs + pair);
    v[j] = later ? own * table[turn] + other * table[turn + 1] : own * table[turn] - other * table[turn + 1];
  }
}

// A tile's positions in threadgroup memory: rows of D halves, whose pieces of 16 bytes stand in an order that depends on the row, so that
// eight rows' pieces of one column are in different banks.
template <int D> FN uint tile_place(uint row, uint piece) { return (row * (D / 8) + (piece ^ (row & 7u))) * 16; }
template <int D, int TILE, int THREADS>
FN void load_tile(Where at, DEVICE const uint *from, uint first, uint end, uint to) {
  enum { PIECES = TILE * D / 8 };
  UNROLL for (int i = 0; i < PIECES / THREADS; i++) {
    const uint n = at.thread_ + THREADS * i, row = n / (D / 8), piece = n % (D / 8);
    const bool there = first + row < end;
    copy_16(to + tile_place<D>(row, piece), from + ((there ? first + row : 0) * (D / 8) + piece) * 4, there);
  }
  copies_end();
}

// A group takes 16 * SIMDS vectors of queries that share a KV head: as many rows as fit, each with the head's a.share query heads. Tiles of
// TILE keys and of values come in turns to a ring of three, two ahead. Every simdgroup has 16 of the vectors, as the left operand; scores
// become the next left operand where they are. Tiles that are longest in work begin first. Grid [KV heads * tiles].
template <int KEY, int VALUE, int TILE, int SIMDS, int ROPE>
FN void attention_tiles(Where at, DEVICE const float *q, DEVICE const uint *keys, DEVICE const uint *values, DEVICE const uint *spans,
                        DEVICE const uint *positions, DEVICE const float *table, DEVICE float *y, CONSTANT TilesArgs &a, THREADGROUP uint *mem) {
  enum { WIDE = KEY > VALUE ? KEY : VALUE, BUFFER = TILE * WIDE * 2, THREADS = 32 * SIMDS };
  wait_for_others();
  others_may_begin();
  const uint kv_head = at.group.x % a.kv_heads, per = 16 * SIMDS / a.share;
  const SpanPlace place = span_of(spans, a.tiles - 1 - at.group.x / a.kv_heads, per);
  const uint first_row = spans[4 * place.span], count = spans[4 * place.span + 1], cached = spans[4 * place.span + 2];
  const uint row0 = place.item * per, rows = count - row0 < per ? count - row0 : per, end = cached + row0 + rows;
  DEVICE const uint *key = keys + (kv_head * a.positions + spans[4 * place.span + 3]) * (KEY / 2);
  DEVICE const uint *value = values + (kv_head * a.positions + spans[4 * place.span + 3]) * (VALUE / 2);
  const uint g = at.lane / 4, c2 = 2 * (at.lane % 4), base = copy_place(mem);
  load_tile<KEY, TILE, THREADS>(at, key, 0, end, base);
  load_tile<VALUE, TILE, THREADS>(at, value, 0, end, base + BUFFER);

  // This lane's two vectors: their last visible position, and where they are in q and y.
  uint last[2], line[2], query[KEY / 16][4];
  UNROLL for (int h = 0; h < 2; h++) {
    const uint v = at.simd * 16 + g + 8 * h, row = v / a.share;
    last[h] = row < rows ? cached + row0 + row : end - 1;
    line[h] = row < rows ? (first_row + row0 + row) * a.heads + kv_head * a.share + v % a.share : ~0u;
    UNROLL for (int k = 0; k < KEY / 16; k++)
      UNROLL for (int i = 0; i < 2; i++) {
        const uint c = 16 * k + 8 * i + c2;
        float two[2] = {0.0f, 0.0f};
        if (line[h] != ~0u) query_values<ROPE>(q + line[h] * a.key, c, positions, table, first_row + row0 + row, a, two);
        query[k][2 * i + h] = pair_of_halves(two[0] * a.scale, two[1] * a.scale);
      }
  }
  float sum[VALUE / 8][4], top[2], total[2];
  top[0] = top[1] = -1e30f;
  total[0] = total[1] = 0.0f;
  UNROLL for (int n = 0; n < VALUE / 8; n++) UNROLL for (int e = 0; e < 4; e++) sum[n][e] = 0.0f;

  const uint r = at.lane % 8, piece = at.lane / 8;
  uint stage = 0;  // the buffer with the keys
  for (uint from = 0; from < end; from += TILE) {
    const uint key_at = base + stage * BUFFER, value_at = base + (stage == 2 ? 0 : stage + 1) * BUFFER, free_at = base + (stage == 0 ? 2 : stage - 1) * BUFFER;
    copies_but<1>();
    group_barrier();  // keys are here, and nobody reads the values before them
    load_tile<KEY, TILE, THREADS>(at, key, from + TILE, end, free_at);
    float score[TILE / 8][4];
    UNROLL for (int n = 0; n < TILE / 8; n++) UNROLL for (int e = 0; e < 4; e++) score[n][e] = 0.0f;
    UNROLL for (int k = 0; k < KEY / 16; k++)
      UNROLL for (int n = 0; n < TILE / 16; n++) {
        uint b[4];
        load_matrices(b, key_at + tile_place<KEY>(16 * n + piece / 2 * 8 + r, 2 * k + piece % 2));
        mma_halves(score[2 * n], query[k][0], query[k][1], query[k][2], query[k][3], b[0], b[1]);
        mma_halves(score[2 * n + 1], query[k][0], query[k][1], query[k][2], query[k][3], b[2], b[3]);
      }
    if (from + TILE > cached + row0 + 1) {
      UNROLL for (int n = 0; n < TILE / 8; n++)
        UNROLL for (int e = 0; e < 4; e++)
          if (from + 8 * n + c2 + e % 2 > last[e / 2]) score[n][e] = -1e30f;
    }
    UNROLL for (int h = 0; h < 2; h++) {
      float next = top[h];
      UNROLL for (int n = 0; n < TILE / 8; n++) next = max_f32(next, max_f32(score[n][2 * h], score[n][2 * h + 1]));
      next = max_f32(next, lane_xor(next, 1));
      next = max_f32(next, lane_xor(next, 2));
      const float old = exp2_f32(top[h] - next);
      top[h] = next;
      total[h] *= old;
      UNROLL for (int n = 0; n < TILE / 8; n++)
        UNROLL for (int i = 0; i < 2; i++) {
          score[n][2 * h + i] = exp2_f32(score[n][2 * h + i] - next);
          total[h] += score[n][2 * h + i];
        }
      UNROLL for (int n = 0; n < VALUE / 8; n++) {
        sum[n][2 * h] *= old;
        sum[n][2 * h + 1] *= old;
      }
    }
    copies_but<1>();
    group_barrier();  // values are here, and nobody reads the keys
    load_tile<VALUE, TILE, THREADS>(at, value, from + TILE, end, key_at);
    UNROLL for (int k = 0; k < TILE / 16; k++) {
      uint p[4];
      UNROLL for (int i = 0; i < 4; i++) p[i] = pair_of_halves(score[2 * k + i / 2][2 * (i % 2)], score[2 * k + i / 2][2 * (i % 2) + 1]);
      UNROLL for (int n = 0; n < VALUE / 16; n++) {
        uint b[4];
        load_turned_matrices(b, value_at + tile_place<VALUE>(16 * k + piece % 2 * 8 + r, 2 * n + piece / 2));
        mma_halves(sum[2 * n], p[0], p[1], p[2], p[3], b[0], b[1]);
        mma_halves(sum[2 * n + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
      }
    }
    stage = stage == 0 ? 2 : stage - 1;
  }
  copies_but<0>();
  UNROLL for (int h = 0; h < 2; h++) {
    total[h] += lane_xor(total[h], 1);
    total[h] += lane_xor(total[h], 2);
    if (line[h] == ~0u) continue;
    const float factor = 1.0f / total[h];
    DEVICE float *out = y + line[h] * a.value;
    UNROLL for (int n = 0; n < VALUE / 8; n++) {
      const uint c = 8 * n + c2;
      float2 both;
      both.x = sum[n][2 * h] * factor;
      both.y = sum[n][2 * h + 1] * factor;
      if (a.value % 2 == 0) {
        if (c < a.value) *(DEVICE float2 *)(out + c) = both;
        continue;
      }
      if (c < a.value) out[c] = both.x;
      if (c + 1 < a.value) out[c + 1] = both.y;
    }
  }
}
