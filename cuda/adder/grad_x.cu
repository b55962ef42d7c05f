// grad_x: AdderNet's gradient of x as a gather: every pixel sums over the windows that contain it
//
// Fixes: a scatter needs atomic additions, and clip(w - x, -1, 1) * g takes four instructions
// Cost: 2 instructions per term, a saturated add and a multiply-add; loads as in 5_implicit_conv
//
// grad_x[n, c, h, w] = sum over k, i, j of clip(w[k, c, i, j] - x[n, c, h, w], -1, 1) times
// g[n, k, oh, ow], with oh*sh - ph + i*dh = h and ow*sw - pw + j*dw = w. transposed.cuh has the
// tile; a thread's pixels of x stay in registers.
//
// Since clip(d, -1, 1) = 2 saturate(d/2 + 1/2) - 1, a term is saturate(w/2 + (1/2 - x/2)) * g, two
// instructions, and the sum of g, the same for all channels, is subtracted at the end. A block uses
// this form only where its rounding error is at the level of float32's:
//   - no |x| of its tile above 16: 1/2 - x/2 would lose the digits of a small w - x;
//   - some |w| or |x| of at least 1/4: if all are small, twice the sum and the sum of g cancel;
//   - no NaN in w or x, which saturate turns into 0;
//   - no |g| above 1e30: twice the sum could be infinite, or infinity minus infinity.
// w and g are checked as they are loaded, so a block may find at the end that it must start again
// with the formula as written, four instructions or six; float64 always uses that.
//
// T, C, P, EACH_C, EACH_P, DEPTH: see transposed.cuh.
//
// g: (images, groups * filters, OH, OW), the gradient of the outputs. w: (groups * filters,
// channels, kh, kw). x and grad_x: (images, groups * channels, H, W). shape: their geometry.
#include "transposed.cuh"

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

// NaN fails both comparisons and propagates.
__device__ __forceinline__ T clip(T d) { return d > 1 ? T(1) : d < -1 ? T(-1) : d; }

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    adder_grad_x(const T* g, const T* x, const T* w, T* grad_x, const Convolution shape) {
  const Part& part = part_of_block(shape);
  if (part.empty()) return;

  const int plane = shape.size.h * shape.size.w;
  int at[EACH_P];  // the pixel in channel 0 of the group, or -1
#pragma unroll
  for (int p = 0; p < EACH_P; ++p) at[p] = part.element(part.first_p + THREAD_P + p);
  const auto index = [&](int c, int p) {  // of a thread's pixel, or -1
    const int channel = part.first_c + THREAD_C + c;
    return at[p] >= 0 && channel < shape.channels ? at[p] + channel * plane : -1;
  };

  T own[EACH_C][EACH_P], sum[EACH_C][EACH_P], sum_g[EACH_P];
  bool extreme = false, wide = false, again = false;
  bool direct = sizeof(T) == sizeof(double);
  const auto take_g = [&](T value) {
    extreme |= fabs(value) > T(1e30);
    return value;
  };
  const auto take_w = [&](T value) {
    extreme |= isnan(value);
    wide |= fabs(value) >= T(0.25);
    return direct ? value : T(0.5) * value;
  };
  const auto add = [&](const GradTile& gs, const WeightTile& ws) {
    if (direct || sizeof(T) == sizeof(double)) {
#pragma unroll 1
      for (int l = 0; l < DEPTH; ++l)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p)
#pragma unroll
          for (int c = 0; c < EACH_C; ++c)
            sum[c][p] += clip(ws[l][THREAD_C + c] - own[c][p]) * gs[l][THREAD_P + p];
    } else {
#pragma unroll
      for (int l = 0; l < DEPTH; ++l) {
#pragma unroll
        for (int p = 0; p < EACH_P; ++p) sum_g[p] += gs[l][THREAD_P + p];
#pragma unroll
        for (int c = 0; c < EACH_C; ++c)
#pragma unroll
          for (int p = 0; p < EACH_P; ++p)
            sum[c][p] += saturated_sum(ws[l][THREAD_C + c], own[c][p]) * gs[l][THREAD_P + p];
      }
    }
  };

  do {
#pragma unroll
    for (int p = 0; p < EACH_P; ++p) {
      sum_g[p] = 0;
#pragma unroll
      for (int c = 0; c < EACH_C; ++c) {
        sum[c][p] = 0;
        own[c][p] = index(c, p) >= 0 ? x[index(c, p)] : T(0);
        extreme |= !(fabs(own[c][p]) <= T(16));
        wide |= fabs(own[c][p]) >= T(0.25);
      }
    }
    direct = direct || __syncthreads_or(extreme);
    if (!direct)
#pragma unroll
      for (int c = 0; c < EACH_C; ++c)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p) own[c][p] = T(0.5) - T(0.5) * own[c][p];
    sum_windows(part, g, w, take_g, take_w, add);
    again = !direct && (__syncthreads_or(extreme) || !__syncthreads_or(wide));
    direct |= again;
  } while (again);

  bool nan = false;
#pragma unroll
  for (int p = 0; p < EACH_P; ++p)
#pragma unroll
    for (int c = 0; c < EACH_C; ++c) {
      nan |= isnan(sum[c][p]);
      if (index(c, p) >= 0)
        grad_x[index(c, p)] = direct ? sum[c][p] : 2 * sum[c][p] - sum_g[p];
    }
  if (nan)
    mend_nan(part, g, w, grad_x, [x](T weight, int at) { return clip(weight - x[at]); });
}
