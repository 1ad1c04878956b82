ENTRY void k(constant bool &b [[buffer(0)]], device float *p [[buffer(1)]]) { p[0] = b ? 1.0f : 0.0f; }
