// Reference results of a GPU run: float64 from the formulas, one thread per number.
//
// A tap l of the sum reads channel at[3 l] of x, at[3 l + 1] rows and at[3 l + 2] columns from the
// output pixel's place (oh * stride, ow * stride); outside the image x is 0. That covers a window, a
// shift, and a shift with its 1x1. TERM, and its slopes BY_X and BY_W, are functions of (x, w).
#ifndef T
#define T float
#endif
#ifndef TERM
#define TERM(x, w) ((x) * (w))
#define BY_X(x, w) (w)
#define BY_W(x, w) (x)
#endif

struct Sizes {
  int images, channels, height, width, filters, taps, stride, out_h, out_w;
};

__device__ __forceinline__ double pixel(const T* x, const Sizes& s, const int* tap, int n, int oh,
                                        int ow) {
  const int h = oh * s.stride + tap[1], w = ow * s.stride + tap[2];
  if (h < 0 || h >= s.height || w < 0 || w >= s.width) return 0;
  return (double)x[(((long long)n * s.channels + tap[0]) * s.height + h) * s.width + w];
}

extern "C" __global__ void forward(const T* x, const T* w, const int* at, double* y, int images,
                                   int channels, int height, int width, int filters, int taps,
                                   int stride, int out_h, int out_w) {
  const Sizes s{images, channels, height, width, filters, taps, stride, out_h, out_w};
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= (long long)images * filters * out_h * out_w) return;
  const int ow = i % out_w, oh = i / out_w % out_h, k = i / out_w / out_h % filters;
  const int n = i / out_w / out_h / filters;
  double sum = 0;
  for (int l = 0; l < taps; ++l)
    sum += TERM(pixel(x, s, at + 3 * l, n, oh, ow), (double)w[k * taps + l]);
  y[i] = sum;
}

// One block a weight: its threads take the pixels in turns.
extern "C" __global__ void by_w(const T* g, const T* x, const T* w, const int* at, double* grad_w,
                                int images, int channels, int height, int width, int filters,
                                int taps, int stride, int out_h, int out_w) {
  const Sizes s{images, channels, height, width, filters, taps, stride, out_h, out_w};
  __shared__ double sums[256];
  const int k = blockIdx.x / taps, l = blockIdx.x % taps, plane = out_h * out_w;
  double sum = 0;
  for (int p = threadIdx.x; p < images * plane; p += blockDim.x) {
    const int n = p / plane, oh = p % plane / out_w, ow = p % out_w;
    const double seen = pixel(x, s, at + 3 * l, n, oh, ow), weight = (double)w[k * taps + l];
    sum += BY_W(seen, weight) * (double)g[((long long)n * filters + k) * plane + p % plane];
  }
  sums[threadIdx.x] = sum;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) grad_w[blockIdx.x] = sums[0];
}

extern "C" __global__ void by_x(const T* g, const T* x, const T* w, const int* at, double* grad_x,
                                int images, int channels, int height, int width, int filters,
                                int taps, int stride, int out_h, int out_w) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= (long long)images * channels * height * width) return;
  const int column = i % width, row = i / width % height, c = i / width / height % channels;
  const int n = i / width / height / channels;
  double sum = 0;
  for (int l = 0; l < taps; ++l) {
    const int h = row - at[3 * l + 1], v = column - at[3 * l + 2];
    if (at[3 * l] != c || h < 0 || v < 0 || h % stride || v % stride) continue;
    if (h / stride >= out_h || v / stride >= out_w) continue;
    for (int k = 0; k < filters; ++k) {
      const double weight = (double)w[k * taps + l];
      const long long at_g = (((long long)n * filters + k) * out_h + h / stride) * out_w + v / stride;
      sum += BY_X((double)x[i], weight) * (double)g[at_g];
    }
  }
  grad_x[i] = sum;
}
