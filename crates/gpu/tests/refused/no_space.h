FN float first(const float *p) { return *p; }
