FN void use() { throw 1; }
