template <class T> FN float first(T *p) { return *p; }
FN float use(DEVICE float *a) { return first(a); }
