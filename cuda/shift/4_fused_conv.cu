// 4_fused_conv: fuses the shift into the 1x1 convolution after it, as address offsets
//
// Fixes: after 3_table the shifted tensor is written and read again needlessly
// Cost: C / F + C / P global loads and C multiply-adds per output, as the convolution alone; memory
// traffic of x and y once, instead of 3 C + K elements per pixel unfused
//
// y[n, k, oh, ow] = bias[k] + sum over c of w[k, c] * x[n, c, oh*stride_h + dh[c],
// ow*stride_w + dw[c]], 0 outside. The tile is the adder's 5_implicit_conv's; the taps are channels
// with their shifts instead of window positions, and the halo is a comparison in the gather.
//
// Offsets are 32-bit, which bounds the images per launch.
//
// T: __half, float or double, the element type of x, w, bias and y; TILE and SUM: the types of
// products and sums, float for __half. F, P, EACH_F, EACH_P, DEPTH, W_VECTOR, Y_VECTOR: as in
// 5_implicit_conv. ENTRY, ADD_TERM and RESULT: the kernel's name, its term and its sign, for
// fused_adder_conv.
//
// x: (images, C, H, W). w: (K, C). shifts: dh and dw of each channel. bias: one of each filter, or
// null. y: (images, K, OH, OW). shape: their geometry, C the channels and K the filters.
#ifndef T
#define T float
#endif
#ifndef SUM
#define SUM T
#endif
#define TILE SUM
#ifndef Y_VECTOR
#define Y_VECTOR 1
#endif
#ifndef ENTRY
#define ENTRY shift_conv
#define ADD_TERM(sum, x, w) ((sum) + (x) * (w))
#define RESULT(bias, sum) ((bias) + (sum))
#endif

#include <cuda_fp16.h>

#include "../adder/tile.cuh"
#include "table.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    ENTRY(const T* x, const T* w, const Shift* shifts, const T* bias, T* y,
          const __grid_constant__ Convolution shape) {
  const int channels = shape.channels, filters = shape.filters;
  const Pair size = shape.size, stride = shape.stride, out = shape.out;
  const int plane = out.h * out.w, pixels = shape.images * plane;
  const int pixel_tiles = (pixels - 1) / P + 1;
  const int first_p = (int)(blockIdx.x % pixel_tiles) * P;
  const int first_f = (int)(blockIdx.x / pixel_tiles) * F;

  Pixel pixel[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const int p = first_p + gathered_column(i);
    const int n = p / plane, q = p % plane;
    const int h = q / out.w * stride.h, w_ = q % out.w * stride.w;
    pixel[i] = {(n * channels * size.h + h) * size.w + w_, p < pixels ? h : NOWHERE, w_};
  }
  const auto decode = [&](int c) -> Tap {
    if (c >= channels) return {0, NOWHERE, 0, 0};
    const Shift shift = shifts[c];
    return {(c * size.h + shift.h) * size.w + shift.w, shift.h, shift.w, 0};
  };

  SUM sum[EACH_F][EACH_P] = {};
  sum_tile(sum, x, w, pixel, size.h, size.w, first_f, filters - first_f, channels, decode);

#pragma unroll
  for (int i = 0; i < EACH_P; i += Y_VECTOR) {
    const int p = first_p + position<EACH_P, THREADS_P>(THREAD_P, i);
    if (p >= pixels) continue;
    const int first = p / plane * filters * plane + p % plane;
#pragma unroll
    for (int f = 0; f < EACH_F; ++f) {
      const int k = first_f + position<EACH_F, THREADS_F>(THREAD_F, f);
      if (k >= filters) continue;
      const SUM offset = bias ? (SUM)bias[k] : (SUM)0;
      Vector<T, Y_VECTOR> result;
#pragma unroll
      for (int v = 0; v < Y_VECTOR; ++v) result.at[v] = (T)RESULT(offset, sum[f][i + v]);
      *(Vector<T, Y_VECTOR>*)(y + first + k * plane) = result;
    }
  }
}
