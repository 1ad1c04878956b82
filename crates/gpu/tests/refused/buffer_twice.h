ENTRY void k(device float *p [[buffer(0)]], device float *q [[buffer(0)]]) { p[0] = q[0]; }
