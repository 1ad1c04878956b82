FN int use() { static int n; return n++; }
