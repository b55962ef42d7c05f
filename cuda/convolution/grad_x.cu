// grad_x: the ordinary convolution's gradient of x as a gather, a transposed convolution
//
// Fixes: a matrix kh*kw times x, written and read again by col2im
// Cost: one multiply-add per term; the loads of the adder's grad_x
//
// grad_x[n, c, h, w] = sum over k, i, j of w[k, c, i, j] * g[n, k, oh, ow], with
// oh*sh - ph + i*dh = h and ow*sw - pw + j*dw = w.
//
// T, C, P, EACH_C, EACH_P, DEPTH: see transposed.cuh.
//
// g: (images, groups * filters, OH, OW), the gradient of the outputs. w: (groups * filters,
// channels, kh, kw). grad_x: (images, groups * channels, H, W). shape: their geometry.
#include "../adder/transposed.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    conv_grad_x(const T* g, const T* w, T* grad_x, const Convolution shape) {
  const Part& part = part_of_block(shape);
  if (part.empty()) return;

  T sum[EACH_C][EACH_P] = {};
  const auto itself = [](T value) { return value; };
  sum_windows(part, g, w, itself, itself, [&](const GradTile& gs, const WeightTile& ws) {
#pragma unroll
    for (int l = 0; l < DEPTH; ++l)
#pragma unroll
      for (int c = 0; c < EACH_C; ++c)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p)
          sum[c][p] += ws[l][THREAD_C + c] * gs[l][THREAD_P + p];
  });

  bool nan = false;
#pragma unroll
  for (int p = 0; p < EACH_P; ++p) {
    const int at = part.element(part.first_p + THREAD_P + p);
#pragma unroll
    for (int c = 0; c < EACH_C; ++c) {
      nan |= isnan(sum[c][p]);
      if (at >= 0 && part.first_c + THREAD_C + c < shape.channels)
        grad_x[at + (part.first_c + THREAD_C + c) * shape.size.h * shape.size.w] = sum[c][p];
    }
  }
  if (nan) mend_nan(part, g, w, grad_x, [](T weight, int) { return weight; });
}
