FN float use(DEVICE const float *a, THREADGROUP const float *b, bool c) { return *(c ? a : b); }
