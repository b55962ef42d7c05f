// grad_w: the ordinary convolution's gradient of w, a product with columns gathered from x
//
// Fixes: im2col's copy, kh*kw times x, and a matrix product with too few tiles to fill a GPU
// Cost: one multiply-add per term; the loads of the adder's grad_w
//
// parts[s, k, c, i, j] = sum over the pixels of part s of x[n, c, h, w] * g[n, k, oh, ow]. The code
// is the adder's grad_w.
#define ENTRY conv_grad_w
#define TERM(x, w, g) ((x) * (g))

#include "../adder/grad_w.cu"
