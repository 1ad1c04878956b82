FN int use(int n) { if (n > 0) goto end; n++; end: return n; }
