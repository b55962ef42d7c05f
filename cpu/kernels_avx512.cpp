#if defined(__x86_64__)
#define MULFREE_ISA avx512
#include "instance.hpp"
#endif
