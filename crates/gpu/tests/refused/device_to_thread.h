FN float use(DEVICE const float *p) { THREAD const float *q = p; return *q; }
