FN float use(ushort a) { return as_type<float>(a); }
