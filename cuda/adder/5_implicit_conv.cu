// 5_implicit_conv: gather pixels straight into the tile, and prefetch the next tile meanwhile
//
// Fixes: 4_vectorised_loads needs im2col's copy, kh*kw times x, and stalls on the load of each tile
// Cost: L / F + L / P global loads, (L / EACH_F + L / EACH_P) / (16 bytes) shared loads and
// 2 L adds per output
//
// y[n, k, oh, ow] = bias[k] - sum over c, i, j of |x[n, c, h, w] - w[k, c, i, j]| with
// h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw. Outside the image x is 0, and the tap counts.
//
// A block owns F filters of one group times P output pixels, numbered through all images, so that
// small planes fill a tile too; tile.cuh computes their sums. Past the end of a sum both operands
// are 0, and |0 - 0| adds nothing.
//
// Offsets are 32-bit, which bounds the images per launch.
//
// T: float or double. F, P, EACH_F, EACH_P, DEPTH, W_VECTOR: the tile, and weights per global load;
// L = C/groups*kh*kw must be a multiple. Y_VECTOR: outputs per store; OH*OW must be a multiple.
// LARGE_WINDOW: the window has more rows than 16 or columns than 15. SUM, ADD_TERM and the like: as
// in tile.cuh, for 6_uint8 and 7_half2. PARAMETERS, Y, AT and RESULT: the epilogue, which may
// depend on the pixel, for binary/2_register_tile.
//
// x: (images, groups * channels, H, W). w: (groups * filters, channels, kh, kw). bias: one of each
// filter, or null. y: (images, groups * filters, OH, OW). shape: their geometry; channels and
// filters are those of a group.
#ifndef T
#define T float
#endif
#ifndef Y_VECTOR
#define Y_VECTOR 1
#endif
#ifndef SUM
#define SUM T
#endif
#ifndef ADD_TERM
#define ADD_TERM(sum, x, w) ((sum) + fabs((x) - (w)))
#endif
#ifndef RESULT
#define PARAMETERS const SUM* bias
#define Y SUM
#define AT(place) 0  // the epilogue needs no pixel
#define RESULT(sum, filter, at) ((bias ? bias[filter] : (SUM)0) - (sum))
#endif

#include "../geometry.cuh"
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    adder_conv(const T* x, const T* w, PARAMETERS, Y* y,
               const __grid_constant__ Convolution shape) {
  const int groups = shape.groups, channels = shape.channels, filters = shape.filters;
  const Pair size = shape.size, kernel = shape.kernel, stride = shape.stride, pad = shape.pad;
  const Pair dilation = shape.dilation, out = shape.out;
  const int plane = out.h * out.w, window = kernel.h * kernel.w;
  const int length = channels * window;
  const int pixels = shape.images * plane;
  const int pixel_tiles = (pixels - 1) / P + 1, filter_tiles = (filters - 1) / F + 1;
  const int first_p = (int)(blockIdx.x % pixel_tiles) * P;
  const int first_f = (int)(blockIdx.x / pixel_tiles % filter_tiles) * F;
  const int group = blockIdx.x / pixel_tiles / filter_tiles;

#ifdef LARGE_WINDOW
  Pixel pixel[COLUMNS];
#else
  WindowPixel<T> pixel[COLUMNS];
#endif
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const int p = first_p + gathered_column(i);
    const int n = p / plane, q = p % plane;
    const int h = q / out.w * stride.h - pad.h, w_ = q % out.w * stride.w - pad.w;
    const int offset = ((n * groups + group) * channels * size.h + h) * size.w + w_;
#ifdef LARGE_WINDOW
    pixel[i] = {offset, p < pixels ? h : NOWHERE, w_};
#else
    const unsigned int outside = outside_bits(h, kernel.h, dilation.h, size.h) |
                                 outside_bits(w_, kernel.w, dilation.w, size.w) << 16;
    pixel[i] = {x + offset, p < pixels ? outside | NO_PLACE : ~0u};
#endif
  }

  // The tap of the thread's first row; then advances by DEPTH rows per call.
  int c = threadIdx.x / window, i = threadIdx.x % window / kernel.w, j = threadIdx.x % kernel.w;
  const int step_c = DEPTH / window, step_i = DEPTH % window / kernel.w, step_j = DEPTH % kernel.w;
  const auto decode = [&](int l) {
    const int h = i * dilation.h, w_ = j * dilation.w;
    const int offset = (c * size.h + h) * size.w + w_;
#ifdef LARGE_WINDOW
    const Tap tap = {offset, l < length ? h : NOWHERE, w_, 0};
#else
    const WindowTap tap = {offset, l < length ? ROW_BIT(i) | COLUMN_BIT(j) : NO_PLACE};
#endif
    j += step_j;
    i += step_i + (j >= kernel.w);
    c += step_c + (i >= kernel.h);
    if (j >= kernel.w) j -= kernel.w;
    if (i >= kernel.h) i -= kernel.h;
    return tap;
  };

  SUM sum[EACH_F][EACH_P] = {};
  sum_tile(sum, x, w, pixel, size.h, size.w, group * filters + first_f, filters - first_f, length,
           decode);

#pragma unroll
  for (int i = 0; i < EACH_P; i += Y_VECTOR) {
    const int p = first_p + position<EACH_P, THREADS_P>(THREAD_P, i);
    if (p >= pixels) continue;
    const int place = p % plane, first = p / plane * groups * filters * plane + place;
    [[maybe_unused]] decltype(AT(place)) at[Y_VECTOR];
#pragma unroll
    for (int v = 0; v < Y_VECTOR; ++v) at[v] = AT(place + v);
#pragma unroll
    for (int f = 0; f < EACH_F; ++f) {
      const int k = first_f + position<EACH_F, THREADS_F>(THREAD_F, f);
      if (k >= filters) continue;
      const int filter = group * filters + k;
      Vector<Y, Y_VECTOR> outputs;
#pragma unroll
      for (int v = 0; v < Y_VECTOR; ++v) outputs.at[v] = RESULT(sum[f][i + v], filter, at[v]);
      *(Vector<Y, Y_VECTOR>*)(y + first + filter * plane) = outputs;
    }
  }
}
