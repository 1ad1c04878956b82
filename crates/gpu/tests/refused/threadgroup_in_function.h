FN float use() { threadgroup float s[4]; s[0] = 1.0f; return s[0]; }
