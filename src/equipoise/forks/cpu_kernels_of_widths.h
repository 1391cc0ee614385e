/* The passes for each width that a processor may have: cpu_kernels.c includes this for float and for bfloat16. */

#define WIDTH 4
#define TARGET
#include "cpu_kernels_of_width.h"
#undef WIDTH
#undef TARGET

#if defined(__x86_64__)
#define WIDTH 8
#define TARGET __attribute__((target("avx2,fma")))
#include "cpu_kernels_of_width.h"
#undef WIDTH
#undef TARGET

#define WIDTH 16
#define TARGET __attribute__((target("avx512f,avx512bw")))
#include "cpu_kernels_of_width.h"
#undef WIDTH
#undef TARGET
#endif
