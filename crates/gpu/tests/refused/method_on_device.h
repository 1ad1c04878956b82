struct S { float v; FN float get() const { return v; } };
FN float use(DEVICE const S *s) { return s->get(); }
