#if defined(__x86_64__)
#define MULFREE_ISA avx2
#include "distance_instance.hpp"

namespace mulfree {
extern const DistanceKernels avx2_distances = avx2::distance_kernels();
}
#endif
