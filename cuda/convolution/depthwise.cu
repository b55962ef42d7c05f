// depthwise: one thread per vertical strip of outputs, with the rows of x passing through registers
//
// Fixes: 2_implicit_conv gathers a tile for many filters, but here each pixel has only one
// Cost: kw * ((ROWS - 1)*sh + kh) / ROWS loads of x if windows have no gaps between them, 1 store
// and kh*kw multiply-adds per output
//
// y[n, k, oh, ow] = bias[k] + sum over i, j of x[n, k/MULTIPLIER, h, w] * w[k, i, j] with
// h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw, x being 0 outside the image. The code is the
// adder's depthwise, which subtracts the sum from the bias.
#define adder_conv conv
#define ADD_TERM(sum, x, w) ((sum) - (x) * (w))

#include "../adder/depthwise.cu"
