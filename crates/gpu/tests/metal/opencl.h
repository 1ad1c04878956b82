// Address spaces as OpenCL's, without generic pointers.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define constant __constant const
#define threadgroup __local
#define thread __private
#define MATRIX_IS_VECTOR  // this mode has no arrays of class objects in a class
#define ENTRY __kernel
#define SHARED_STORAGE
