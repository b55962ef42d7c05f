// The kernels that need VPOPCNTDQ.
#if defined(__x86_64__)
#define MULFREE_ISA avx512_popcount
#include "ops/low_bits.hpp"

namespace mulfree {
extern const PopcountKernels avx512_popcount_kernels = MULFREE_ISA::popcount_kernels();
}
#endif
