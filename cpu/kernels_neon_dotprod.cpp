#if defined(__aarch64__)
#define MULFREE_ISA neon_dotprod
#include "instance.hpp"
#endif
