FN int use() { auto f = [](int a) { return a; }; return f(1); }
