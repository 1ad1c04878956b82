FN float first(const float *p) { return *p; }
FN float use(DEVICE const float *p) { return first(p); }
