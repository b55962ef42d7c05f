// 1_three_passes: one block per channel, with three passes: for the mean, the variance, and y
//
// Fixes: nothing; the formula as written
// Cost: three loads of x, one of the residual, a store and three divisions per element; uses only
// as many multiprocessors as there are channels
//
// y = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), with the mean and the
// variance of each channel over images and pixels, x of shape (images, channels, pixels). The sums
// are float64, since a thread adds thousands of elements sequentially.
//
// weight, bias: one of each channel. residual: like x; with RESIDUAL 0 it is not read. count:
// images * pixels. least: 0 for a ReLU, -infinity for none. mean, variance: the batch's, written by
// one thread for each channel; with_running: running_mean and running_variance are updated too, by
// momentum (publish in channel.cuh).
#include "channel.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm(const T* x, const T* weight, const T* bias, const T* residual, T* y, T* mean,
               T* variance, RUNNING* running_mean, RUNNING* running_variance, T eps,
               double momentum, int channels, int pixels,
               int count,  // images * pixels
               T least, bool with_running) {
  const int c = blockIdx.x;
  const auto place = [=](int i) {
    return ((long long)(i / pixels) * channels + c) * pixels + i % pixels;
  };

  double sum[1] = {}, squares[1] = {};
  for (int i = threadIdx.x; i < count; i += THREADS) sum[0] += x[place(i)];
  sum_over_block(sum);
  const double centre = sum[0] / count;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const double d = x[place(i)] - centre;
    squares[0] += d * d;
  }
  sum_over_block(squares);
  const Moments moments = {centre, squares[0]};
  if (threadIdx.x == 0)
    publish(moments, count, mean + c, variance + c, running_mean + c,
            running_variance + c, momentum, with_running);

  const Formula formula(moments, count, weight[c], bias[c], eps, least);
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const long long at = place(i);
    y[at] = formula(x[at], RESIDUAL ? residual[at] : T(0));
  }
}
