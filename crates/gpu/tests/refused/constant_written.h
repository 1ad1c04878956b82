FN void use(CONSTANT float *p) { *p = 1.0f; }
