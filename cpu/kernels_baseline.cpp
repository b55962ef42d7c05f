#define MULFREE_ISA baseline
#include "instance.hpp"
