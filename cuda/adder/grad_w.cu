// grad_w: AdderNet's gradient of w, an implicit product over pixels, with columns gathered from x
//
// Fixes: as a difference of two products, im2col and a pass that subtracts each channel's mean
// Cost: 2 instructions per term, a difference and a multiply-add; pixels / F + pixels / P global
// loads per weight
//
// parts[s, k, c, i, j] = sum over the pixels of part s of (x[n, c, h, w] - w[k, c, i, j]) times
// g[n, k, oh, ow], with h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw. Outside the image x is 0, and
// the pixel counts. F x P tiles of weights are too few to fill a GPU, so the sum over the pixels of
// all images is split into parts of `part` each; add_parts reduces them, always in the same order.
//
// As in the shift's fused_grad_w pixels are rows, which are summed over, and taps are columns:
// offsets still add up to the element's. A sum keeps its weight in a register. The last pixels,
// fewer than a step, are added one by one: a step would be padded with zeros, and (0 - w) * 0 is
// not 0 if w is infinite.
//
// T: float or double. F, P, EACH_F, EACH_P, DEPTH: the tile, P taps. ENTRY and TERM: the kernel's
// name and its term, for sign_grad_w and the ordinary convolution's grad_w.
//
// g: (images, groups * filters, OH, OW), the gradient of the outputs. x: (images, groups *
// channels, H, W). w: (groups * filters, channels, kh, kw). parts: one array like w for every block
// along y. shape: their geometry. part: pixels of a part, the last one may have fewer.
#ifndef T
#define T float
#endif
#ifndef ENTRY
#define ENTRY adder_grad_w
#define TERM(x, w, g) (((x) - (w)) * (g))
#endif
#ifndef F
#define F 64
#define P 96
#define EACH_F 8
#define EACH_P 4
#endif
// Threads per multiprocessor, as many as the registers of their sums allow.
#ifndef RESIDENT
#define RESIDENT (EACH_F == 8 || sizeof(T) == 8 ? 384 : 576)
#endif
#define X_PAD (16 / (int)sizeof(T))  // avoids bank conflicts of the transposed stores

struct Sum {
  T total, w;
};
#define SUM Sum
#define ADD_TERM(sum, x, g) (Sum{(sum).total + TERM(x, (sum).w, g), (sum).w})

#include "../geometry.cuh"
#include "tile.cuh"

// Blocks that fit the registers; at most 16 on sm_75 and sm_86.
#define RESIDENT_BLOCKS (RESIDENT / THREADS < 16 ? RESIDENT / THREADS : 16)
#define LINES (THREADS / DEPTH)  // filters, or taps, per load of the block
#define FILTER_LOADS ((F - 1) / LINES + 1)
#define TAP_LOADS ((P - 1) / LINES + 1)

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS)
    ENTRY(const T* g, const T* x, const T* w, T* parts, const __grid_constant__ Convolution shape,
          int part) {
  const int groups = shape.groups, channels = shape.channels, filters = shape.filters;
  const Pair size = shape.size, kernel = shape.kernel, stride = shape.stride, pad = shape.pad;
  const Pair dilation = shape.dilation, out = shape.out;
  __shared__ Tap pixels[2][DEPTH];
  __shared__ alignas(16) TILE x_tile[2][DEPTH][P + X_PAD];
  __shared__ alignas(16) TILE g_tile[2][DEPTH][F + VECTOR];

  const int plane = out.h * out.w, window = kernel.h * kernel.w, taps = channels * window;
  const int first_pixel = blockIdx.y * part;
  const int length = smaller(part, shape.images * plane - first_pixel);
  const int whole = length / DEPTH * DEPTH;
  const int tap_tiles = (taps - 1) / P + 1, filter_tiles = (filters - 1) / F + 1;
  const int first_t = (int)(blockIdx.x % tap_tiles) * P;
  const int first_f = (int)(blockIdx.x / tap_tiles % filter_tiles) * F;
  const int group = blockIdx.x / tap_tiles / filter_tiles;
  const int line = threadIdx.x / DEPTH, l = threadIdx.x % DEPTH;

  const auto column = [&](int t) -> Pixel {
    const int c = t / window, h = t % window / kernel.w * dilation.h, w_ = t % kernel.w * dilation.w;
    return {(c * size.h + h) * size.w + w_, t < taps ? h : NOWHERE, w_};
  };
  const auto row = [&](int p) -> Tap {
    const int n = (first_pixel + p) / plane, q = (first_pixel + p) % plane;
    const int h = q / out.w * stride.h - pad.h, w_ = q % out.w * stride.w - pad.w;
    return {((n * groups + group) * channels * size.h + h) * size.w + w_, p < length ? h : NOWHERE,
            w_, (n * groups + group) * filters * plane + q};
  };

  Pixel tap[TAP_LOADS];
#pragma unroll
  for (int i = 0; i < TAP_LOADS; ++i) tap[i] = column(first_t + line + i * LINES);

  const auto decode = [&](int start) {
    if (threadIdx.x < DEPTH)
      pixels[start / DEPTH % 2][threadIdx.x] = row(start + (int)threadIdx.x);
  };
  T fetched_x[TAP_LOADS], fetched_g[FILTER_LOADS];
  const auto fetch = [&](int start) {
    const Tap pixel = pixels[start / DEPTH % 2][l];
#pragma unroll
    for (int i = 0; i < TAP_LOADS; ++i)
      fetched_x[i] = gather(x, tap[i], pixel, size.h, size.w, (T)0);
#pragma unroll
    for (int i = 0; i < FILTER_LOADS; ++i) {
      const int f = first_f + line + i * LINES;
      fetched_g[i] = f < filters && start + l < length ? g[pixel.weight + f * plane] : (T)0;
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < TAP_LOADS; ++i)
      if (P % LINES == 0 || line + i * LINES < P) x_tile[buffer][l][line + i * LINES] = fetched_x[i];
#pragma unroll
    for (int i = 0; i < FILTER_LOADS; ++i)
      if (F % LINES == 0 || line + i * LINES < F) g_tile[buffer][l][line + i * LINES] = fetched_g[i];
  };

  const int first_weight = group * filters * taps;
  // The filter and the tap of a thread's sums.
  const auto filter_of = [&](int f) { return first_f + position<EACH_F, THREADS_F>(THREAD_F, f); };
  const auto tap_of = [&](int t) { return first_t + position<EACH_P, THREADS_P>(THREAD_P, t); };
  Sum sum[EACH_F][EACH_P];
#pragma unroll
  for (int f = 0; f < EACH_F; ++f)
#pragma unroll
    for (int t = 0; t < EACH_P; ++t) {
      const bool inside = filter_of(f) < filters && tap_of(t) < taps;
      sum[f][t] = {0, inside ? w[first_weight + filter_of(f) * taps + tap_of(t)] : (T)0};
    }
  sum_steps(sum, x_tile, g_tile, whole, decode, fetch, store);


#pragma unroll 1
  for (int p = whole; p < length; ++p) {
    const Tap pixel = row(p);
    T g_values[EACH_F];
#pragma unroll
    for (int f = 0; f < EACH_F; ++f)
      g_values[f] = filter_of(f) < filters ? g[pixel.weight + filter_of(f) * plane] : (T)0;
#pragma unroll
    for (int t = 0; t < EACH_P; ++t) {
      const T x_value = gather(x, column(tap_of(t)), pixel, size.h, size.w, (T)0);
#pragma unroll
      for (int f = 0; f < EACH_F; ++f) sum[f][t] = ADD_TERM(sum[f][t], x_value, g_values[f]);
    }
  }

  T* own = parts + (long long)blockIdx.y * groups * filters * taps + first_weight;
#pragma unroll
  for (int f = 0; f < EACH_F; ++f)
#pragma unroll
    for (int t = 0; t < EACH_P; ++t)
      if (filter_of(f) < filters && tap_of(t) < taps)
        own[filter_of(f) * taps + tap_of(t)] = sum[f][t].total;
}
