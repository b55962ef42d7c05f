#if !defined(__aarch64__)
#define MULFREE_ISA baseline
#include "instance.hpp"
#endif
