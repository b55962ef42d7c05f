#if defined(__x86_64__)
#define MULFREE_ISA avx2
#include "instance.hpp"
#endif
