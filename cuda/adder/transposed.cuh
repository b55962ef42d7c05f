// Shared by the gradients of x: every pixel sums over the outputs whose windows contain it.
//
// The columns are pixels of x, gathered from g, and the rows are the weights of C channels. With a
// stride only every stride-th tap of a window has an output, so pixels are processed phase by
// phase: those of a phase, first + u*stride along an axis, have the same taps, i = tap + s*step, at
// output out + u - s*back. A grid has as many blocks for every phase as the largest needs.
//
// A thread's pixels are contiguous, and so are its channels. Double buffering is as in tile.cuh.
//
// T: float or double. C, P, EACH_C, EACH_P, DEPTH: the tile; EACH_P is one 16-byte vector.
#ifndef T
#define T float
#endif
#ifndef C
#define C 64
#endif
#ifndef P
#define P 64
#endif
#ifndef EACH_C
#define EACH_C 8
#endif
#ifndef EACH_P
#define EACH_P 4
#endif
#ifndef DEPTH
#define DEPTH 8
#endif

#include "../geometry.cuh"
#include "gather.cuh"

#define THREADS_C (C / EACH_C)
#define THREADS_P (P / EACH_P)
#define THREADS (THREADS_C * THREADS_P)
#define COLUMNS (P > THREADS ? P / THREADS : 1)   // columns per thread
#define ROW_STEP (THREADS > P ? THREADS / P : 1)  // distance of its rows
#define ROWS (DEPTH / ROW_STEP)                   // and their number
#define WEIGHT_LOADS ((C * DEPTH + THREADS - 1) / THREADS)

#define THREAD_P (threadIdx.x % THREADS_P * EACH_P)  // a thread's first pixel of the tile
#define THREAD_C (threadIdx.x / THREADS_P * EACH_C)  // and its first channel

// One axis of the convolution, and the phase of its pixels that a block computes.
struct Axis {
  int size, kernel, stride, pad, dilation, step, out_size;
  int first, count;    // the phase's first pixel, and their number
  int tap, taps, out;  // its first tap, their number, and the output of its first tap
};

// Pixel h is tap i of output o if o*stride = h + pad - i*dilation.
__device__ __forceinline__ void set_phase(Axis& a, int first) {
  a.first = first;
  a.count = (a.size - 1 - first) / a.stride + 1;
  a.tap = 0;
  while (a.tap < a.step && a.tap < a.kernel && (first + a.pad - a.tap * a.dilation) % a.stride)
    ++a.tap;
  a.taps = a.tap < a.step && a.tap < a.kernel ? (a.kernel - 1 - a.tap) / a.step + 1 : 0;
  a.out = (first + a.pad - a.tap * a.dilation) / a.stride;
}

// What a block computes: pixels of one phase, some channels of one group.
struct Part {
  Axis h, w;
  int groups, channels, filters;  // per group
  int pixels, length;             // of the phase, in all images; terms of a sum
  int group, first_c, first_p;

  __device__ __forceinline__ bool empty() const { return first_p >= pixels; }

  // A pixel's element of x in the group's first channel, or -1.
  __device__ __forceinline__ int element(int p) const {
    if (p >= pixels) return -1;
    const int plane = h.count * w.count, n = p / plane;
    const int row = h.first + p % plane / w.count * h.stride;
    const int column = w.first + p % w.count * w.stride;
    return ((n * groups + group) * channels * h.size + row) * w.size + column;
  }

  // Its output for the first tap of the first filter, which may be outside.
  __device__ __forceinline__ Pixel pixel(int p) const {
    const int plane = h.count * w.count, n = p / plane;
    const int u = p % plane / w.count, v = p % w.count;
    return {((n * groups + group) * filters * h.out_size + u) * w.out_size + v,
            p < pixels ? u : NOWHERE, v};
  }

  // The offset from there to the output of term l, and that term's weight in the first channel.
  __device__ __forceinline__ Tap term(int l) const {
    const int taps_w = max(1, w.taps), taps = max(1, h.taps) * taps_w;
    const int k = l / taps, s = l % taps / taps_w, t = l % taps_w;
    const int oh = h.out - s * (h.step * h.dilation / h.stride);
    const int ow = w.out - t * (w.step * w.dilation / w.stride);
    const int i = h.tap + s * h.step, j = w.tap + t * w.step;
    return {(k * h.out_size + oh) * w.out_size + ow, l < length ? oh : NOWHERE, ow,
            (k * channels * h.kernel + i) * w.kernel + j};
  }
};

// In shared memory, to save registers; computed by one thread for all.
__device__ __forceinline__ const Part& part_of_block(const Convolution& g) {
  __shared__ Part part;
  if (threadIdx.x == 0) {
    Axis h = {g.size.h, g.kernel.h, g.stride.h, g.pad.h, g.dilation.h, g.step.h, g.out.h};
    Axis w = {g.size.w, g.kernel.w, g.stride.w, g.pad.w, g.dilation.w, g.step.w, g.out.w};
    const int phases_w = min(w.stride, w.size), phases = min(h.stride, h.size) * phases_w;
    const int phase = blockIdx.x % phases, block = blockIdx.x / phases;
    set_phase(h, phase / phases_w);
    set_phase(w, phase % phases_w);
    const int largest = g.images * ((h.size - 1) / h.stride + 1) * ((w.size - 1) / w.stride + 1);
    const int pixel_tiles = (largest - 1) / P + 1, channel_tiles = (g.channels - 1) / C + 1;
    part = {h,
            w,
            g.groups,
            g.channels,
            g.filters,
            g.images * h.count * w.count,
            g.filters * h.taps * w.taps,
            block / pixel_tiles / channel_tiles,
            block / pixel_tiles % channel_tiles * C,
            block % pixel_tiles * P};
  }
  __syncthreads();
  return part;
}

typedef T GradTile[DEPTH][P];
typedef T WeightTile[DEPTH][C + 4];

// Loop over the terms of the sums step by step: add(gs, ws) adds those of a tile. take_g(g) and
// take_w(w) convert elements for the tiles; for a missing output, 0.
template <class TakeG, class TakeW, class Add>
__device__ __forceinline__ void sum_windows(const Part& part, const T* g, const T* w,
                                            const TakeG& take_g, const TakeW& take_w,
                                            const Add& add) {
  __shared__ Tap terms[2][DEPTH];
  __shared__ alignas(16) GradTile g_tile[2];
  __shared__ alignas(16) WeightTile w_tile[2];
  const int window = part.h.kernel * part.w.kernel;

  Pixel pixel[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i)
    pixel[i] = part.pixel(part.first_p + (int)threadIdx.x % P + i * THREADS);
  const auto decode = [&](int start) {
    if (threadIdx.x < DEPTH)
      terms[start / DEPTH % 2][threadIdx.x] = part.term(start + (int)threadIdx.x);
  };

  const int first_weight = (part.group * part.filters * part.channels + part.first_c) * window;
  T fetched_g[COLUMNS][ROWS], fetched_w[WEIGHT_LOADS];
  const auto fetch = [&](int start) {
    const Tap* step = terms[start / DEPTH % 2];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Tap term = step[threadIdx.x / P + r * ROW_STEP];
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        fetched_g[i][r] = gather(g, pixel[i], term, part.h.out_size, part.w.out_size, T(0));
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS, c = t / DEPTH, l = t % DEPTH;
      const bool inside = c < C && part.first_c + c < part.channels && start + l < part.length;
      fetched_w[i] = inside ? w[first_weight + c * window + step[l].weight] : T(0);
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        g_tile[buffer][threadIdx.x / P + r * ROW_STEP][threadIdx.x % P + i * THREADS] =
            take_g(fetched_g[i][r]);
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS, c = t / DEPTH, l = t % DEPTH;
      if (c < C) w_tile[buffer][l][c] = take_w(fetched_w[i]);
    }
  };

  decode(0);
  decode(DEPTH);
  __syncthreads();
  fetch(0);
  store(0);
  __syncthreads();
  for (int start = 0; start < part.length; start += DEPTH) {
    const int buffer = start / DEPTH % 2;
    const bool more = start + DEPTH < part.length;
    if (more) fetch(start + DEPTH);
    decode(start + 2 * DEPTH);
    add(g_tile[buffer], w_tile[buffer]);
    if (more) store(1 - buffer);
    __syncthreads();
  }
}

// Recompute a thread's pixels that are NaN term by term: the zero that a tile holds for a missing
// output is not a term, but makes NaN with an infinity. slope(w, at) is the factor of g, `at` the
// pixel.
template <class Slope>
__device__ __forceinline__ void mend_nan(const Part& part, const T* g, const T* w, T* grad_x,
                                         const Slope& slope) {
  const int window = part.h.kernel * part.w.kernel, plane = part.h.size * part.w.size;
#pragma unroll 1
  for (int e = 0; e < EACH_C * EACH_P; ++e) {
    const int p = part.first_p + THREAD_P + e % EACH_P, c = part.first_c + THREAD_C + e / EACH_P;
    const int at = part.element(p) + c * plane;
    if (p >= part.pixels || c >= part.channels || !isnan(grad_x[at])) continue;
    const Pixel pixel = part.pixel(p);
    const T* weights = w + (part.group * part.filters * part.channels + c) * window;
    T sum = 0;
    for (int l = 0; l < part.length && !isnan(sum); ++l) {
      const Tap term = part.term(l);
      if ((unsigned)(pixel.h + term.h) < (unsigned)part.h.out_size &&
          (unsigned)(pixel.w + term.w) < (unsigned)part.w.out_size)
        sum += slope(weights[term.weight], at) * g[pixel.offset + term.offset];
    }
    grad_x[at] = sum;
  }
}
