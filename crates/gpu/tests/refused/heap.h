FN int use() { thread int *p = new int(1); return *p; }
