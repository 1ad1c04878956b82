FN void use() { simdgroup_matrix<float, 9, 9> m; }
