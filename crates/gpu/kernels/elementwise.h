// One value a thread.
FN float silu(float v) { return v / (1.0f + exp_f32(-v)); }

FN void swiglu(Where at, DEVICE const float *gate, DEVICE const float *up, DEVICE float *y, CONSTANT CountArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.count) y[i] = silu(gate[i]) * up[i];
}

// Rows 2 p of x are gates, rows 2 p + 1 what they are for.
FN void swiglu_pairs(Where at, DEVICE const float *x, DEVICE float *y, CONSTANT RowsArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.rows * a.cols) {
    const uint gate = 2 * (i / a.cols) * a.cols + i % a.cols;
    y[i] = silu(x[gate]) * x[gate + a.cols];
  }
}

FN void add(Where at, DEVICE const float *x, DEVICE const float *z, DEVICE float *y, CONSTANT CountArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.count) y[i] = x[i] + z[i];
}

// Each row of x times the sigmoid of its gate.
FN void gated(Where at, DEVICE const float *x, DEVICE const float *gate, DEVICE float *y, CONSTANT RowsArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.rows * a.cols) y[i] = x[i] / (1.0f + exp_f32(-gate[i / a.cols]));
}

// Columns from..from + cols of rows of x_cols.
FN void columns(Where at, DEVICE const float *x, DEVICE float *y, CONSTANT ColumnsArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.rows * a.cols) y[i] = x[i / a.cols * a.x_cols + a.from + i % a.cols];
}

// Rows index[0], index[1], ... of x.
FN void gather(Where at, DEVICE const float *x, DEVICE const uint *index, DEVICE float *y, CONSTANT RowsArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.rows * a.cols) y[i] = x[index[i / a.cols] * a.cols + i % a.cols];
}

// out[row] = (base[row]) + sum over slots of weight times y[row * slots + slot], in order.
template <bool BASE>
FN void combine(Where at, DEVICE const float *y, DEVICE const float *weight, DEVICE const float *base, DEVICE float *out,
                CONSTANT CombineArgs &a) {
  const uint i = at.group.x * 256 + at.thread_;
  if (i < a.rows * a.cols) {
    const uint row = i / a.cols, col = i % a.cols;
    float sum = 0.0f;
    for (uint slot = 0; slot < a.slots; slot++) sum += weight[row * a.slots + slot] * y[(row * a.slots + slot) * a.cols + col];
    out[i] = BASE ? base[i] + sum : sum;
  }
}
