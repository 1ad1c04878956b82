FN float first(DEVICE const float *p) { return *p; }
FN float use(THREADGROUP const float *p) { return first(p); }
