#if defined(__aarch64__)
#define MULFREE_ISA neon
#include "instance.hpp"
#endif
