// grad_w: the ordinary convolution's gradient of w, a product whose columns are gathered from x
//
// Fixes: im2col's copy, kh*kw times x, and a product of matrices few of whose tiles run at once
// Cost: one multiply-add a term; the loads of the adder's grad_w
//
// parts[s, k, c, i, j] = sum over the pixels of part s of x[n, c, h, w] * g[n, k, oh, ow]. The
// adder's grad_w, line for line.
#define ENTRY conv_grad_w
#define TERM(x, w, g) ((x) * (g))

#include "../adder/grad_w.cu"
