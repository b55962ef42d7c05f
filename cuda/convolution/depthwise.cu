// depthwise: a thread a strip of one plane's column, its rows on their way through registers
//
// Fixes: 2_implicit_conv gathers a tile for many filters, and here each pixel meets one
// Cost: kw * ((ROWS - 1)*sh + kh) / ROWS loads of x where no row lies between the windows', 1 store
// and kh*kw multiply-adds per output
//
// y[n, k, oh, ow] = bias[k] + sum over i, j of x[n, k/MULTIPLIER, h, w] * w[k, i, j] with
// h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw, x being 0 outside the image. The adder's depthwise,
// line for line, which takes the sum off the bias.
#define adder_conv conv
#define ADD_TERM(sum, x, w) ((sum) - (x) * (w))

#include "../adder/depthwise.cu"
