// The adder and the distances with sums by multiply-adds (isa.hpp), for a Zen 5.
#if defined(__x86_64__)
#define MULFREE_ISA zen5
#define MULFREE_SUM_BY_FMA
#include "distance_instance.hpp"

namespace mulfree {
extern const SumKernels zen5_kernels = {
    zen5::kernel_row<float, zen5::Adder<float>>(), zen5::kernel_row<double, zen5::Adder<double>>(),
    zen5::peak, zen5::distance_kernels(),
};
}
#endif
