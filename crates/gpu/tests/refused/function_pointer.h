FN int one(int a) { return a; }
FN int use() { int (*f)(int) = one; return f(1); }
