// The adder and the distances with sums by multiply-adds (isa.hpp), for AMD's processors with AVX-512: Zen 4 and 5.
#if defined(__x86_64__)
#define MULFREE_ISA avx512_amd
#define MULFREE_SUM_BY_FMA
#include "distance_instance.hpp"

namespace mulfree {
extern const SumKernels avx512_amd_kernels = {
    avx512_amd::kernel_row<float, avx512_amd::Adder<float>>(),
    avx512_amd::kernel_row<double, avx512_amd::Adder<double>>(),
    avx512_amd::peak,
    avx512_amd::distance_kernels(),
};
}
#endif
