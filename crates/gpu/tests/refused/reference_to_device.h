FN void set(THREAD float &v) { v = 1.0f; }
FN void use(DEVICE float *p) { set(p[0]); }
