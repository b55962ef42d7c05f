#if defined(__x86_64__)
#define MULFREE_ISA avx512
#include "distance_instance.hpp"

namespace mulfree {
extern const DistanceKernels avx512_distances = avx512::distance_kernels();
}
#endif
