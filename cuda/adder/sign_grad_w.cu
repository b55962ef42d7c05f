// sign_grad_w: grad_w with the sign of the difference, the true derivative by w
//
// Fixes: a signed sum is no product of matrices, and as array code it is a launch a filter and tap
// Cost: the loads of grad_w; a difference, two comparisons, two choices and a multiply-add a term
//
// parts[s, k, c, i, j] = sum over the pixels of part s of sign(x[n, c, h, w] - w[k, c, i, j]) times
// g[n, k, oh, ow]. grad_w, line for line.
#ifndef T
#define T float
#endif

// Neither above nor below 0 is 0, or NaN.
__device__ __forceinline__ T sign(T d) { return d > 0 ? T(1) : d < 0 ? T(-1) : d; }

#define ENTRY adder_sign_grad_w
#define TERM(x, w, g) (sign((x) - (w)) * (g))

#define RESIDENT THREADS  // a term needs registers of its own

#include "grad_w.cu"
