// 5_implicit_conv: gather pixels straight into the tile, and fetch the next tile meanwhile
//
// Fixes: 4_vectorised_loads needs im2col's copy, kh*kw times x, and waits for each tile it loads
// Cost: L / F + L / P global loads, (L / EACH_F + L / EACH_P) / (16 bytes) shared loads and
// 2 L adds per output
//
// y[n, k, oh, ow] = bias[k] - sum over c, i, j of |x[n, c, h, w] - w[k, c, i, j]| with
// h = oh*sh - ph + i*dh, w = ow*sw - pw + j*dw. Outside the image x is 0, and the tap counts.
//
// A block owns F filters of one group times P output pixels, taken through all images in a row, so
// that small planes fill a tile too. A thread owns EACH_F x EACH_P of them. Step s of the sum uses
// one of two buffers; meanwhile the elements of step s + 1 travel from global memory to registers,
// and from there, after the arithmetic, into the other buffer: one barrier a step. DEPTH threads
// decode the taps of step s + 2 for all; a pixel costs no division. Past the end of the sum both
// operands are 0, and |0 - 0| adds nothing.
//
// Offsets have 32 bits: the launcher passes no more images at once than that allows.
//
// T: float or double. F, P, EACH_F, EACH_P, DEPTH: the tile. W_VECTOR: weights in one global load;
// L = C/groups*kh*kw must be a multiple. Y_VECTOR: outputs in one store; OH*OW must be a multiple.
// SUM and ADD_TERM: the type of a sum and how a term is added, for 6_uint8.
#ifndef T
#define T float
#endif
#ifndef F
#define F 64
#endif
#ifndef P
#define P 128
#endif
#ifndef EACH_F
#define EACH_F 8
#endif
#ifndef EACH_P
#define EACH_P 8
#endif
#ifndef DEPTH
#define DEPTH 8
#endif
#ifndef W_VECTOR
#define W_VECTOR 1
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

#include "gather.cuh"

#define THREADS_F (F / EACH_F)
#define THREADS_P (P / EACH_P)
#define THREADS (THREADS_F * THREADS_P)
#define VECTOR (16 / (int)sizeof(T))  // elements in one shared load
#define COLUMNS (P > THREADS ? P / THREADS : 1)     // columns that a thread gathers
#define ROW_STEP (THREADS > P ? THREADS / P : 1)    // distance of the rows that it gathers
#define ROWS (DEPTH / ROW_STEP)                     // and their number
#define WEIGHT_LOADS ((F * DEPTH / W_VECTOR + THREADS - 1) / THREADS)

__device__ __forceinline__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Element i of the `each` that a thread owns, as a position in the tile: vectors side by side with
// those of its neighbours.
template <int each, int threads>
__device__ __forceinline__ int position(int thread, int i) {
  constexpr int n = smaller(each, VECTOR);
  return (i / n * threads + thread) * n + i % n;
}

template <int each, int threads>
__device__ __forceinline__ void load_values(T (&values)[each], const T* row, int thread) {
  constexpr int n = smaller(each, VECTOR);
#pragma unroll
  for (int i = 0; i < each; i += n) {
    const auto loaded = *(const Vector<T, n>*)(row + position<each, threads>(thread, i));
#pragma unroll
    for (int v = 0; v < n; ++v) values[i + v] = loaded.at[v];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    adder_conv(const T* x, const T* w, const SUM* bias, SUM* y, int images, int groups,
               int channels,  // of one group, like filters
               int height, int width, int filters, int kernel_h, int kernel_w, int stride_h,
               int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int out_h,
               int out_w) {
  __shared__ Tap taps[2][DEPTH];
  __shared__ alignas(16) T x_tile[2][DEPTH][P];
  __shared__ alignas(16) T w_tile[2][DEPTH][F + VECTOR];

  const int plane = out_h * out_w, window = kernel_h * kernel_w;
  const int length = channels * window;
  const int pixels = images * plane;
  const int pixel_tiles = (pixels - 1) / P + 1, filter_tiles = (filters - 1) / F + 1;
  const int first_p = (int)(blockIdx.x % pixel_tiles) * P;
  const int first_f = (int)(blockIdx.x / pixel_tiles % filter_tiles) * F;
  const int group = blockIdx.x / pixel_tiles / filter_tiles;

  const int first_filter = group * filters + first_f;

  Pixel pixel[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const int p = first_p + threadIdx.x % P + i * THREADS;
    const int n = p / plane, q = p % plane;
    const int h = q / out_w * stride_h - pad_h, w_ = q % out_w * stride_w - pad_w;
    pixel[i] = {((n * groups + group) * channels * height + h) * width + w_,
                p < pixels ? h : NOWHERE, w_};
  }

  const auto decode_taps = [&](int start) {
    const int l = start + threadIdx.x;
    if (threadIdx.x >= DEPTH) return;
    const int c = l / window, i = l % window / kernel_w, j = l % kernel_w;
    const int h = i * dilation_h, w_ = j * dilation_w;
    taps[start / DEPTH % 2][threadIdx.x] = {(c * height + h) * width + w_,
                                            l < length ? h : NOWHERE, w_, 0};
  };

  T fetched_x[COLUMNS][ROWS];
  Vector<T, W_VECTOR> fetched_w[WEIGHT_LOADS];
  const auto fetch = [&](int start) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Tap tap = taps[start / DEPTH % 2][threadIdx.x / P + r * ROW_STEP];
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        fetched_x[i][r] = gather(x, pixel[i], tap, height, width, (T)0);
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS;
      const int f = t / (DEPTH / W_VECTOR), l = start + t % (DEPTH / W_VECTOR) * W_VECTOR;
      fetched_w[i] = {};
      if (f < F && first_f + f < filters && l < length)
        fetched_w[i] = *(const Vector<T, W_VECTOR>*)(w + (first_filter + f) * length + l);
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        x_tile[buffer][threadIdx.x / P + r * ROW_STEP][threadIdx.x % P + i * THREADS] =
            fetched_x[i][r];
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS;
      const int f = t / (DEPTH / W_VECTOR), l = t % (DEPTH / W_VECTOR) * W_VECTOR;
      if (f < F)
#pragma unroll
        for (int v = 0; v < W_VECTOR; ++v) w_tile[buffer][l + v][f] = fetched_w[i].at[v];
    }
  };

  const int thread_p = threadIdx.x % THREADS_P, thread_f = threadIdx.x / THREADS_P;
  SUM sum[EACH_F][EACH_P] = {};

  decode_taps(0);
  decode_taps(DEPTH);
  __syncthreads();
  fetch(0);
  store(0);
  __syncthreads();
  for (int start = 0; start < length; start += DEPTH) {
    const int buffer = start / DEPTH % 2;
    const bool more = start + DEPTH < length;
    if (more) fetch(start + DEPTH);
    decode_taps(start + 2 * DEPTH);
#pragma unroll
    for (int l = 0; l < DEPTH; ++l) {
      T x_values[EACH_P], w_values[EACH_F];
      load_values<EACH_P, THREADS_P>(x_values, x_tile[buffer][l], thread_p);
      load_values<EACH_F, THREADS_F>(w_values, w_tile[buffer][l], thread_f);
#pragma unroll
      for (int f = 0; f < EACH_F; ++f)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p)
          sum[f][p] = ADD_TERM(sum[f][p], x_values[p], w_values[f]);
    }
    if (more) store(1 - buffer);
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < EACH_P; i += Y_VECTOR) {
    const int p = first_p + position<EACH_P, THREADS_P>(thread_p, i);
    if (p >= pixels) continue;
    const int first = p / plane * groups * filters * plane + p % plane;
#pragma unroll
    for (int f = 0; f < EACH_F; ++f) {
      const int k = first_f + position<EACH_F, THREADS_F>(thread_f, f);
      if (k >= filters) continue;
      const int filter = group * filters + k;
      Vector<SUM, Y_VECTOR> result;
#pragma unroll
      for (int v = 0; v < Y_VECTOR; ++v) result.at[v] = bias[filter] - sum[f][i + v];
      *(Vector<SUM, Y_VECTOR>*)(y + first + filter * plane) = result;
    }
  }
}
