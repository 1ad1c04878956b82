// Products of a few rows with a matrix of 128 x 128 blocks, for GPUs with tensor cores. As many groups as run at once divide the
// blocks evenly among them, column of blocks after column (128 outputs with all inputs), so that all memory is read at once
// however small the matrix. Each group's part of a column is summed by the last group to come to it, always in the same
// order, which also rotates and scales the outputs.
//
// Inputs are fixed-point numbers of 16 bits in two bytes, or pairs of halves (STATES), with a scale for each 128 (after
// scaling and rotation). They are packed for matrix pieces: 16 consecutive inputs of a row x stand together, first their high
// parts (column 2 m) and then their low ones (column 2 m + 1). A single row is packed by every group for itself, up to
// STREAM_BLOCKS of 128 inputs; more rows come packed, by pack_rows.
enum { STREAM_SIMDS = 8 };
enum Parts { BYTES, HALVES };

// Packs 128 inputs of one of `rows` rows, 4 consecutive ones to a lane, and what their sums are to be multiplied with and what is to be added: for
// each 64 the scale times `factor`, and the scale times `offset` times the sum of the numbers.
template <int PARTS>
FN void pack_block(THREAD const float *v, uint lane, uint row, uint rows, float factor, float offset, THREADGROUP uint *packed, THREADGROUP float *info) {
  float top = max_f32(max_f32(abs_f32(v[0]), abs_f32(v[1])), max_f32(abs_f32(v[2]), abs_f32(v[3])));
  top = simd_greatest(top);
  const float whole = PARTS == BYTES ? 32512.0f : 4096.0f;
  const float scale = top / whole, inverse = top > 1e-30f ? whole / top : 0.0f;
  // Inputs 4 lane .. + 3 of the block are words of 16 inputs: half a block, a quarter of it, and a word.
  const uint half = lane / 16, quarter = lane / 4 % 4, word = lane % 4;
  THREADGROUP uint *line = packed + (half * 4 + quarter) * rows * (PARTS == BYTES ? 8 : 16) + row * (PARTS == BYTES ? 8 : 16);
  float sum = 0.0f;
  if (PARTS == BYTES) {
    uint high = 0, low = 0;
    UNROLL for (int i = 0; i < 4; i++) {
      const int q = round_to_int(v[i] * inverse), h = (q + 128) >> 8;
      high |= (uint(h) & 255u) << (8 * i);
      low |= (uint(q) & 255u) << (8 * i);
      sum += float(q);
    }
    line[word] = high;
    line[4 + word] = low;
  } else {
    UNROLL for (int i = 0; i < 2; i++) {
      const float a = v[2 * i] * inverse, b = v[2 * i + 1] * inverse;
      const uint ha = bits_of_half(a), hb = bits_of_half(b);
      line[2 * word + i] = ha | hb << 16;
      line[8 + 2 * word + i] = bits_of_half(a - half_bits(ha)) | bits_of_half(b - half_bits(hb)) << 16;
      sum += a + b;
    }
  }
  UNROLL for (uint mask = 8; mask > 0; mask /= 2) sum += lane_xor(sum, mask);
  if (lane % 16 == 0) {
    info[(half * rows + row) * 2] = scale * factor;
    info[(half * rows + row) * 2 + 1] = scale * offset * sum;
  }
}

// Inputs 4 lane .. of block k of a row x; those beyond the row are 0.
FN float4 inputs_of_block(DEVICE const float *x, uint features, uint k, uint lane) {
  const uint c = k * 128 + 4 * lane;
  float4 in;
  in.x = in.y = in.z = in.w = 0.0f;
  if (features % 4 == 0) {
    if (c < features) in = *(DEVICE const float4 *)(x + c);
  } else {
    if (c < features) in.x = x[c];
    if (c + 1 < features) in.y = x[c + 1];
    if (c + 2 < features) in.z = x[c + 2];
    if (c + 3 < features) in.w = x[c + 3];
  }
  return in;
}
FN float4 ones() {
  float4 v;
  v.x = v.y = v.z = v.w = 1.0f;
  return v;
}
// Scales them and rotates them.
template <int BLOCK>
FN void turn_inputs(float4 in, float4 s, uint lane, THREAD float *v) {
  v[0] = in.x * s.x;
  v[1] = in.y * s.y;
  v[2] = in.z * s.z;
  v[3] = in.w * s.w;
  if (BLOCK == 128) {
    rotate<128, 4>(v, lane);
    UNROLL for (int i = 0; i < 4; i++) v[i] *= 0.08838834764831845f;
  }
}
template <int BLOCK>
FN void turned_inputs(DEVICE const float *x, DEVICE const float *scale, bool scaled, uint features, uint k, uint lane, THREAD float *v) {
  const float4 in = inputs_of_block(x, features, k, lane);
  const float4 s = scaled ? *(DEVICE const float4 *)(scale + k * 128 + 4 * lane) : ones();
  turn_inputs<BLOCK>(in, s, lane, v);
}

// Rows of x for kernels that take several. Grid [inputs / 512, rows].
template <int PARTS, int BLOCK>
FN void pack_rows(Where at, DEVICE const float *x, DEVICE const float *scale, DEVICE uint *packed, DEVICE float *info, CONSTANT PackArgs &a) {
  wait_for_others();
  others_may_begin();
  const uint k = at.group.x * 4 + at.simd, row = at.group.y;
  if (k * 128 >= a.cols) return;  // the whole simdgroup
  float v[4];
  turned_inputs<BLOCK>(x + row * a.features, scale, a.scaled != 0, row < a.batch ? a.features : 0, k, at.lane, v);
  pack_block<PARTS>(v, at.lane, row, a.rows, a.factor, a.offset, packed + k * a.rows * (PARTS == BYTES ? 64 : 128), info + k * a.rows * 4);
}

// Which blocks group `group` of `groups` has: from share(group) to share(group + 1).
FN uint share_begin(uint group, uint groups, uint total) { return uint((unsigned long long)total * group / groups); }
// The group that has block `unit`.
FN uint share_owner(uint unit, uint groups, uint total) { return uint(((unsigned long long)(unit + 1) * groups - 1) / total); }

// A row of 128 outputs, 4 consecutive ones to a lane, on their way out.
template <int BLOCK, bool BIAS>
FN void finish_outputs(THREAD float *v, DEVICE const float *scale, DEVICE const float *bias, DEVICE float *y, CONSTANT StreamArgs &a, uint row, uint column, uint lane) {
  const uint n = column * 128 + 4 * lane;
  if (BLOCK == 128) {
    rotate<128, 4>(v, lane);
    UNROLL for (int i = 0; i < 4; i++) v[i] *= 0.08838834764831845f;
  }
  if (row >= a.batch) return;
  UNROLL for (int i = 0; i < 4; i++) {
    if (n + i >= a.outputs) return;
    if (a.scaled_out != 0) v[i] *= scale[n + i];
    if (BIAS) v[i] += bias[n + i];
    y[row * a.outputs + n + i] = v[i];
  }
}

// Sums of rows 4 j .. of a column over the simdgroups that share its outputs (SHARED of them), to the outputs or to memory for the group that
// comes last. All threads call it, after a barrier behind which `part` is written.
enum { PART_LINE = 136 };
template <int M> struct Part {
  enum { SIZE = 4 * (M < 4 ? M : 4) * PART_LINE };
};
template <int SHARED>
FN void sum_part(THREADGROUP const float *part, uint row, uint rows, uint lane, THREAD float *v) {
  UNROLL for (int i = 0; i < 4; i++) v[i] = 0.0f;
  UNROLL for (int s = 0; s < SHARED; s++) {
    const float4 p = *(THREADGROUP const float4 *)(part + (s * rows + row) * PART_LINE + 4 * lane);
    v[0] += p.x;
    v[1] += p.y;
    v[2] += p.z;
    v[3] += p.w;
  }
}

// Which matrices are shared: one, or those that pairs of row and expert have, one after another. Number index[pair] is place
// places[index[pair]] of the stack, or none of it.
struct Pairs {
  DEVICE const uint *index, *places;
  uint wide, count;  // blocks of a matrix's outputs, pairs
};

// The end of a group's part of a column (counted through all pairs). sums.write(part, j) writes the simdgroup's sums of rows 4 j .. 4 j + 3.
template <int M, int SHARED, int BLOCK, bool BIAS, bool EXPERTS, class Sums>
FN void end_column(Where at, THREAD const Sums &sums, uint column, bool whole, DEVICE const float *scale, DEVICE const float *bias, DEVICE float *parts,
                   DEVICE uint *tickets, DEVICE float *y, CONSTANT StreamArgs &a, THREAD const Pairs &pairs, THREADGROUP float *part) {
  enum { ROWS = M < 4 ? M : 4, STEPS = (M + 3) / 4 };
  const uint deep = round_up(a.cols, 128), total = deep * pairs.wide * pairs.count, group = at.group.x;
  const uint first = share_owner(column * deep, a.groups, total), last = share_owner(column * deep + deep - 1, a.groups, total);
  const uint slot = 2 * group + (group == first && share_begin(group, a.groups, total) < column * deep ? 1 : 0);
  UNROLL for (int j = 0; j < STEPS; j++) {
    group_barrier();  // nobody reads the sums before
    sums.write(part, j, at.simd, at.lane);
    group_barrier();
    // A simdgroup sums a row up, while the others go on with the next column. Rows are counted by themselves.
    if (at.simd >= ROWS) continue;
    const uint row = 4 * j + at.simd;
    float v[4];
    sum_part<SHARED>(part, at.simd, ROWS, at.lane, v);
    if (!whole) {
      float4 out;
      out.x = v[0];
      out.y = v[1];
      out.z = v[2];
      out.w = v[3];
      *(DEVICE float4 *)(parts + (slot * M + row) * 128 + 4 * at.lane) = out;
      if (!last_to_come(tickets + column * M + row, last - first + 1, at.lane)) continue;
      UNROLL for (int i = 0; i < 4; i++) v[i] = 0.0f;
      for (uint g = first; g <= last; g += 8) {
        float4 p[8];
        UNROLL for (int i = 0; i < 8; i++) {
          const uint from = 2 * (g + i) + (g + i == first && share_begin(first, a.groups, total) < column * deep ? 1 : 0);
          p[i].x = p[i].y = p[i].z = p[i].w = 0.0f;
          if (g + i <= last) p[i] = from_others(parts + (from * M + row) * 128 + 4 * at.lane);
        }
        UNROLL for (int i = 0; i < 8; i++) {
          v[0] += p[i].x;
          v[1] += p[i].y;
          v[2] += p[i].z;
          v[3] += p[i].w;
        }
      }
    }
    if (EXPERTS) {
      const uint pair = column / pairs.wide, expert = pairs.index[pair];
      if (pairs.places[expert] == ~0u) continue;
      finish_outputs<BLOCK, BIAS>(v, scale + expert * a.rows, bias, y + pair * a.outputs, a, row, column % pairs.wide, at.lane);
    } else {
      finish_outputs<BLOCK, BIAS>(v, scale, bias, y, a, row, column, at.lane);
    }
  }
}
