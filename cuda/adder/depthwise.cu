// depthwise: one thread per vertical strip of outputs, with the rows of x passing through registers
//
// Fixes: 5_implicit_conv gathers a tile for many filters, but here each pixel has only one
// Cost: kw * ((ROWS - 1)*sh + kh) / ROWS loads of x if windows have no gaps between them, 1 store
// and 2 kh*kw adds per output
//
// y[n, k, oh, ow] = bias[k] - sum over i, j of |x[n, k/MULTIPLIER, h, w] - w[k, i, j]| with
// h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw. Outside the image x is 0, and the tap counts. The
// terms are added in 5_implicit_conv's order, for bit-identical results.
//
// Threads are numbered through columns, strips and planes: loads are coalesced, overlapping windows
// hit the cache, and small planes fill a block too. A thread loads each row of its strip once, and
// adds it to every output whose window contains it.
//
// T: float or double. ROWS: outputs per thread. KERNEL, STRIDE and DILATION, _H and _W: the window.
// MULTIPLIER: filters per channel. ADD_TERM: how a term is added.
//
// x: (images, groups, H, W). w: (K, kh, kw), K = groups * MULTIPLIER. bias: one of each filter, or
// null. y: (images, K, OH, OW). shape: their geometry.
#ifndef T
#define T float
#endif
#ifndef ROWS
#define ROWS 8
#endif
#ifndef KERNEL_H
#define KERNEL_H 3
#endif
#ifndef KERNEL_W
#define KERNEL_W 3
#endif
#ifndef STRIDE_H
#define STRIDE_H 1
#endif
#ifndef STRIDE_W
#define STRIDE_W 1
#endif
#ifndef DILATION_H
#define DILATION_H 1
#endif
#ifndef DILATION_W
#define DILATION_W 1
#endif
#ifndef MULTIPLIER
#define MULTIPLIER 1
#endif
#ifndef ADD_TERM
#define ADD_TERM(sum, x, w) ((sum) + fabs((x) - (w)))
#endif

#include "../geometry.cuh"

#define THREADS 128
#define LOADED ((ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1)

// Is row `row` of the strip row i of output `out`'s window?
__device__ __forceinline__ constexpr bool meets(int row, int out, int i) {
  return row == out * STRIDE_H + i * DILATION_H;
}

__device__ __forceinline__ constexpr bool meets_any(int row) {
  for (int out = 0; out < ROWS; ++out)
    for (int i = 0; i < KERNEL_H; ++i)
      if (meets(row, out, i)) return true;
  return false;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    adder_conv(const T* x, const T* w, const T* bias, T* y,
               const __grid_constant__ Convolution shape) {
  const unsigned int filters = shape.groups * MULTIPLIER, planes = shape.images * filters;
  const unsigned int t = blockIdx.x * THREADS + threadIdx.x;
  const unsigned int strips = (shape.out.h - 1) / ROWS + 1, line = t / shape.out.w;
  const unsigned int plane = line / strips;
  if (plane >= planes) return;

  const int column = t - line * shape.out.w, first = (line - plane * strips) * ROWS;
  const int k = plane % filters;
  const int h = first * STRIDE_H - shape.pad.h, w_ = column * STRIDE_W - shape.pad.w;
  x += ((long long)(plane / MULTIPLIER) * shape.size.h + h) * shape.size.w + w_;
  w += k * (KERNEL_H * KERNEL_W);

  T weights[KERNEL_H][KERNEL_W];
#pragma unroll
  for (int i = 0; i < KERNEL_H; ++i)
#pragma unroll
    for (int j = 0; j < KERNEL_W; ++j) weights[i][j] = w[i * KERNEL_W + j];

  const T shift = bias ? bias[k] : (T)0;
  T sum[ROWS] = {};
#pragma unroll
  for (int row = 0; row < LOADED; ++row, x += shape.size.w) {
    if (!meets_any(row)) continue;
    const unsigned int end = (unsigned)(h + row) < (unsigned)shape.size.h ? shape.size.w : 0;
    T values[KERNEL_W];
#pragma unroll
    for (int j = 0; j < KERNEL_W; ++j)
      values[j] = (unsigned)(w_ + j * DILATION_W) < end ? x[j * DILATION_W] : (T)0;
#pragma unroll
    for (int out = 0; out < ROWS; ++out)
#pragma unroll
      for (int i = 0; i < KERNEL_H; ++i)
        if (meets(row, out, i))
#pragma unroll
          for (int j = 0; j < KERNEL_W; ++j)
            sum[out] = ADD_TERM(sum[out], values[j], weights[i][j]);
  }

  y += ((long long)plane * shape.out.h + first) * shape.out.w + column;
#pragma unroll
  for (int out = 0; out < ROWS; ++out, y += shape.out.w)
    if (first + out < shape.out.h) *y = shift - sum[out];
}
