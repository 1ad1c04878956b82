FN void use(DEVICE const float *p) { p[0] = 1.0f; }
