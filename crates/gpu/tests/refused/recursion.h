FN int use(int n) { return n > 0 ? use(n - 1) : 0; }
