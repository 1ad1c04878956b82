FN float use(float a) { return __shfl_xor_sync(~0u, a, 1); }
