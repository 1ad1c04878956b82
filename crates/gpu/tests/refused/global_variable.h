static int counter;
FN int use() { return counter++; }
