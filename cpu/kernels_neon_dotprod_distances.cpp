#if defined(__aarch64__)
#define MULFREE_ISA neon_dotprod
#include "distance_instance.hpp"

namespace mulfree {
extern const DistanceKernels neon_dotprod_distances = neon_dotprod::distance_kernels();
}
#endif
