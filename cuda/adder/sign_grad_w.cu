// sign_grad_w: grad_w with the sign of the difference, the true derivative by w
//
// Fixes: a sum of signs is not a matrix product; as array code it is a launch per filter and tap
// Cost: the loads of grad_w; a difference, two comparisons, two selects, a multiply-add per term
//
// parts[s, k, c, i, j] = sum over the pixels of part s of sign(x[n, c, h, w] - w[k, c, i, j]) times
// g[n, k, oh, ow]. The code is grad_w's.
#ifndef T
#define T float
#endif

// 0 for 0 and for NaN.
__device__ __forceinline__ T sign(T d) { return d > 0 ? T(1) : d < 0 ? T(-1) : d; }

#define ENTRY adder_sign_grad_w
#define TERM(x, w, g) (sign((x) - (w)) * (g))

#define RESIDENT THREADS  // a term needs extra registers

#include "grad_w.cu"
