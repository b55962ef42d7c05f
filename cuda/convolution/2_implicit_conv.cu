// 2_implicit_conv: gather the windows straight into the tile of a product, without im2col
//
// Fixes: 1_im2col writes and reads a matrix kh*kw times x
// Cost: L / F + L / P global loads, (L / EACH_F + L / EACH_P) / (16 bytes) shared loads and L
// multiply-adds per output
//
// y[n, k, oh, ow] = bias[k] + sum over c, i, j of x[n, c, h, w] * w[k, c, i, j] with
// h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw, x being 0 outside the image. The code is the
// adder's 5_implicit_conv, which subtracts the sum from the bias.
#define adder_conv conv
#define ADD_TERM(sum, x, w) ((sum) - (x) * (w))

#include "../adder/5_implicit_conv.cu"
