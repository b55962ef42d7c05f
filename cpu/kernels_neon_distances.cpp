#if defined(__aarch64__)
#define MULFREE_ISA neon
#include "distance_instance.hpp"

namespace mulfree {
extern const DistanceKernels neon_distances = neon::distance_kernels();
}
#endif
