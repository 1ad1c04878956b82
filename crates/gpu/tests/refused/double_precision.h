FN float use(float a) { double b = a; return float(b); }
