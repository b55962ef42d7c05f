#if !defined(__aarch64__)
#define MULFREE_ISA baseline
#include "distance_instance.hpp"

namespace mulfree {
extern const DistanceKernels baseline_distances = baseline::distance_kernels();
}
#endif
