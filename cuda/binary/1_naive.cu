// 1_naive: one thread per output; two words of signs are multiplied by XOR
//
// Fixes: nothing; the formula as written, with 64 products in two 32-bit instructions
// Cost: 2 L global loads of words and L XORs and counts per output, L the words of a window
//
// y[n, k, oh, ow] = scale[k] * (terms - 2 distance), where the distance is the number of bits in which
// the taps inside the image and those of w differ, and there are `terms` of them; or bias[k] -
// distance, over all taps, for the low-bit adder convolution (answer.cuh). Words of x and of w are
// pack.cu's.
//
// Y, SCALE, ADDER: as in answer.cuh. `tap_terms`: channels per group; shape.channels is its words.
//
// x: (images, groups, words, H, W). w: (groups * filters, words, kh, kw). values: scale or bias,
// one of each filter, or null for a scale of 1 or a bias of 0. y: (images, groups * filters, OH,
// OW). The unnamed parameter is for 2_register_tile.
#define T unsigned long long

#include "answer.cuh"

extern "C" __global__ void binary_conv(const T* x, const T* w, const int*,
                                       const PER_FILTER* values, int tap_terms, Y* y,
                                       const __grid_constant__ Convolution shape) {
  const int filters = shape.groups * shape.filters, words = shape.channels;
  const Pair size = shape.size, kernel = shape.kernel, out = shape.out;
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= shape.images * filters * out.h * out.w) return;
  const int column = at % out.w, row = at / out.w % out.h;
  const int filter = at / out.w / out.h % filters, n = at / out.w / out.h / filters;
  x += (n * shape.groups + filter / shape.filters) * words * size.h * size.w;
  w += filter * words * kernel.h * kernel.w;

  int distance = 0, taps = 0;
  for (int i = 0; i < kernel.h; ++i) {
    for (int j = 0; j < kernel.w; ++j) {
      const int h = row * shape.stride.h - shape.pad.h + i * shape.dilation.h;
      const int w_ = column * shape.stride.w - shape.pad.w + j * shape.dilation.w;
      const bool inside = (unsigned)h < (unsigned)size.h && (unsigned)w_ < (unsigned)size.w;
#ifndef ADDER
      if (!inside) continue;
#endif
      ++taps;
      for (int c = 0; c < words; ++c)
        distance += ones_in((inside ? x[(c * size.h + h) * size.w + w_] : 0) ^
                            w[(c * kernel.h + i) * kernel.w + j]);
    }
  }
  y[at] = answer(distance, taps * tap_terms, values, filter);
}
