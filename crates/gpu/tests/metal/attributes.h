// Address spaces as attributes: distinct, and nothing converts between them; `thread` is the default one.
#pragma once
typedef _Float16 half;
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2))) const
#define threadgroup __attribute__((address_space(3)))
#define thread
#define ENTRY
#define SHARED_STORAGE static
