FN float use(long double a) { return float(a); }
