FN float use(THREADGROUP const float *p) { return *(DEVICE const float *)p; }
