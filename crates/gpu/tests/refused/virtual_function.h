struct Shape { virtual float area(); };
FN float use(THREAD Shape &s) { return s.area(); }
