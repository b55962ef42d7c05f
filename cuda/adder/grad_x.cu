// grad_x: AdderNet's gradient of x, gathered: every pixel sums the outputs whose windows hold it
//
// Fixes: a scatter needs atomic additions, and clip(w - x, -1, 1) * g takes four instructions
// Cost: 2 instructions a term, a saturated add and a multiply-add; loads as in 5_implicit_conv
//
// grad_x[n, c, h, w] = sum over k, i, j of clip(w[k, c, i, j] - x[n, c, h, w], -1, 1) times
// g[n, k, oh, ow], with oh*sh - ph + i*dh = h and ow*sw - pw + j*dw = w. The tile is
// 5_implicit_conv's with g in the place of x: its columns are gathered from g, its rows are the
// weights of C channels, and the thread's own pixels of x stay in registers. With a stride only
// every stride-th tap meets an output, so a launch takes the pixels of one phase,
// h = first_h + u*sh, whose taps are the same: i = i_first + s*i_step, at output row
// u + oh_first - s*oh_step.
//
// Since clip(d, -1, 1) = 2 saturate(d/2 + 1/2) - 1, a term is saturate(w/2 + (1/2 - x/2)) * g, two
// instructions, and the sum of g, the same for all channels, is taken off at the end. A block uses
// that form only where its rounding stays at the level of float32's own:
//   - no |x| of its tile above 16: 1/2 - x/2 would lose the digits of a small w - x;
//   - some |w| or |x| of at least 1/4: if all are small, twice the sum and the sum of g cancel;
//   - no NaN in w or x, which saturate turns into 0, and no infinite g: infinity minus infinity.
// Otherwise, and always in float64, it takes the formula as it stands, four instructions or six.
// What a block cannot see, the largest |w| and |g|, the launcher hands it in global memory.
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

#include "gather.cuh"

#define THREADS_C (C / EACH_C)
#define THREADS_P (P / EACH_P)
#define THREADS (THREADS_C * THREADS_P)
#define COLUMNS (P > THREADS ? P / THREADS : 1)   // columns that a thread gathers
#define ROW_STEP (THREADS > P ? THREADS / P : 1)  // distance of the rows that it gathers
#define ROWS (DEPTH / ROW_STEP)                   // and their number
#define WEIGHT_LOADS ((C * DEPTH + THREADS - 1) / THREADS)

// saturate(a + b) in one instruction. CuPy compiles with -ftz=true, under which the intrinsic
// __saturatef is no longer folded into the addition before it.
__device__ __forceinline__ T saturated_sum(T a, T b) {
#ifdef MULFREE_EMULATOR
  return __saturatef(a + b);
#else
  float sum;
  asm("add.ftz.sat.f32 %0, %1, %2;" : "=f"(sum) : "f"((float)a), "f"((float)b));
  return sum;
#endif
}

// Stands for g where there is no output. As a number it is 0, and 0 * NaN would be NaN: the formula
// as it stands has to leave such terms out.
#define NO_TERM T(-0.0)
__device__ __forceinline__ bool is_term(T g) { return g != 0 || !signbit(g); }

// NaN fails both comparisons and stays.
__device__ __forceinline__ T clip(T d) { return d > 1 ? T(1) : d < -1 ? T(-1) : d; }

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    adder_grad_x(const T* g, const T* x, const T* w, const T* largest_w, const T* largest_g,
                 T* grad_x, int images, int groups, int channels,  // of one group, like filters
                 int height, int width, int filters, int kernel_h, int kernel_w, int stride_h,
                 int stride_w, int out_h, int out_w, int first_h, int first_w, int i_first,
                 int i_step, int i_count, int oh_first, int oh_step, int j_first, int j_step,
                 int j_count, int ow_first, int ow_step) {
  __shared__ Tap taps[2][DEPTH];
  __shared__ alignas(16) T g_tile[2][DEPTH][P];
  __shared__ alignas(16) T w_tile[2][DEPTH][C + 4];

  const int rows = (height - first_h - 1) / stride_h + 1;  // of this phase
  const int columns = (width - first_w - 1) / stride_w + 1;
  const int plane = rows * columns, pixels = images * plane;
  const int window = kernel_h * kernel_w, phase_taps = i_count * j_count;
  const int length = filters * phase_taps;
  const int pixel_tiles = (pixels - 1) / P + 1, channel_tiles = (channels - 1) / C + 1;
  const int first_p = (int)(blockIdx.x % pixel_tiles) * P;
  const int first_c = (int)(blockIdx.x / pixel_tiles % channel_tiles) * C;
  const int group = blockIdx.x / pixel_tiles / channel_tiles;

  // A thread's pixels are neighbours, and so are its channels; its part of x stays in registers.
  const int thread_p = threadIdx.x % THREADS_P * EACH_P;
  const int thread_c = threadIdx.x / THREADS_P * EACH_C;
  int at[EACH_P];  // the pixel in channel 0 of the group, or -1
  T own[EACH_C][EACH_P];
  bool extreme = isnan(*largest_w) || !isfinite(*largest_g), wide = *largest_w >= T(0.25);
#pragma unroll
  for (int p = 0; p < EACH_P; ++p) {
    const int q = first_p + thread_p + p;
    const int n = q / plane, h = first_h + q % plane / columns * stride_h;
    const int w_ = first_w + q % columns * stride_w;
    at[p] = q < pixels ? ((n * groups + group) * channels * height + h) * width + w_ : -1;
#pragma unroll
    for (int c = 0; c < EACH_C; ++c) {
      const int channel = first_c + thread_c + c;
      own[c][p] = at[p] >= 0 && channel < channels ? x[at[p] + channel * height * width] : T(0);
      extreme |= !(fabs(own[c][p]) <= T(16));
      wide |= fabs(own[c][p]) >= T(0.25);
    }
  }
  const bool direct =
      __syncthreads_or(extreme) || !__syncthreads_or(wide) || sizeof(T) == sizeof(double);
  if (!direct)
#pragma unroll
    for (int c = 0; c < EACH_C; ++c)
#pragma unroll
      for (int p = 0; p < EACH_P; ++p) own[c][p] = T(0.5) - T(0.5) * own[c][p];

  Pixel pixel[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const int p = first_p + threadIdx.x % P + i * THREADS;
    const int n = p / plane, u = p % plane / columns, v = p % columns;
    pixel[i] = {((n * groups + group) * filters * out_h + u) * out_w + v, p < pixels ? u : NOWHERE,
                v};
  }

  const auto decode_taps = [&](int start) {
    const int l = start + threadIdx.x;
    if (threadIdx.x >= DEPTH) return;
    const int k = l / phase_taps, s = l % phase_taps / j_count, t = l % j_count;
    const int oh = oh_first - s * oh_step, ow = ow_first - t * ow_step;
    const int i = i_first + s * i_step, j = j_first + t * j_step;
    taps[start / DEPTH % 2][threadIdx.x] = {(k * out_h + oh) * out_w + ow,
                                            l < length ? oh : NOWHERE, ow,
                                            k * channels * window + i * kernel_w + j};
  };

  const int first_weight = (group * filters * channels + first_c) * window;
  T fetched_g[COLUMNS][ROWS], fetched_w[WEIGHT_LOADS];
  const auto fetch = [&](int start) {
    const Tap* step = taps[start / DEPTH % 2];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Tap tap = step[threadIdx.x / P + r * ROW_STEP];
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        fetched_g[i][r] = gather(g, pixel[i], tap, out_h, out_w, NO_TERM);
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS, c = t / DEPTH, l = t % DEPTH;
      const bool inside = c < C && first_c + c < channels && start + l < length;
      fetched_w[i] = inside ? w[first_weight + c * window + step[l].weight] : T(0);
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        g_tile[buffer][threadIdx.x / P + r * ROW_STEP][threadIdx.x % P + i * THREADS] =
            fetched_g[i][r];
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS, c = t / DEPTH, l = t % DEPTH;
      if (c < C) w_tile[buffer][l][c] = direct ? fetched_w[i] : T(0.5) * fetched_w[i];
    }
  };

  T sum[EACH_C][EACH_P] = {}, sum_g[EACH_P] = {};
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
    const auto& gs = g_tile[buffer];
    const auto& ws = w_tile[buffer];
    if (direct || sizeof(T) == sizeof(double)) {
#pragma unroll 1
      for (int l = 0; l < DEPTH; ++l)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p)
          if (is_term(gs[l][thread_p + p]))
#pragma unroll
            for (int c = 0; c < EACH_C; ++c)
              sum[c][p] += clip(ws[l][thread_c + c] - own[c][p]) * gs[l][thread_p + p];
    } else {
#pragma unroll
      for (int l = 0; l < DEPTH; ++l) {
#pragma unroll
        for (int p = 0; p < EACH_P; ++p) sum_g[p] += gs[l][thread_p + p];
#pragma unroll
        for (int c = 0; c < EACH_C; ++c)
#pragma unroll
          for (int p = 0; p < EACH_P; ++p)
            sum[c][p] += saturated_sum(ws[l][thread_c + c], own[c][p]) * gs[l][thread_p + p];
      }
    }
    if (more) store(1 - buffer);
    __syncthreads();
  }

#pragma unroll
  for (int p = 0; p < EACH_P; ++p)
#pragma unroll
    for (int c = 0; c < EACH_C; ++c) {
      const int channel = first_c + thread_c + c;
      if (at[p] >= 0 && channel < channels)
        grad_x[at[p] + channel * height * width] =
            direct ? sum[c][p] : 2 * sum[c][p] - sum_g[p];
    }
}
