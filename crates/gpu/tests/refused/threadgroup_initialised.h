ENTRY void k(device float *p [[buffer(0)]]) { SHARED_STORAGE threadgroup float s = p[0]; p[0] = s; }
