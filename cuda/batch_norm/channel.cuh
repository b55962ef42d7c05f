// Shared by the kernels of batch normalisation: the addresses of a channel's elements, sums over a
// block, the formula, and the statistics.
//
// T: float or double. RUNNING: type of the running statistics. VECTOR: elements per vector, which
// divides `pixels`, those of a plane. THREADS: per block. RESIDUAL, 0 or 1: whether there is one.
// (With a branch in the kernel the compiler would split the vectors.)
#ifndef T
#define T float
#endif
#ifndef RUNNING
#define RUNNING float
#endif
#ifndef VECTOR
#define VECTOR 1
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef RESIDUAL
#define RESIDUAL 1
#endif
#define STEP (THREADS * VECTOR)  // elements per step of a block

#include "../vector.cuh"
using Elements = Vector<T, VECTOR>;

// A thread's elements of one channel, THREADS vectors apart. Numbered image by image, element i is
// pixel i % pixels of image i / pixels; only the first needs a division.
struct Walk {
  long long at;  // offset from the tensor's beginning

  __device__ Walk(int i, int channel, int channels, int pixels)
      : pixels(pixels), pixel(i % pixels), pixels_on(STEP % pixels) {
    const long long image = (long long)channels * pixels;
    at = i / pixels * image + (long long)channel * pixels + pixel;
    on = STEP / pixels * image + pixels_on;
    over = image - pixels;
  }
  __device__ void next() {
    at += on;
    pixel += pixels_on;
    if (pixel >= pixels) pixel -= pixels, at += over;
  }
  __device__ void back() {
    at -= on;
    pixel -= pixels_on;
    if (pixel < 0) pixel += pixels, at -= over;
  }

 private:
  int pixels, pixel, pixels_on;
  long long on, over;
};

// By intrinsics on one uint4: the compiler would split a struct of elements into scalar accesses.
// Loaded memory must not be written by the same kernel.
__device__ __forceinline__ Elements load(const T* a, const Walk& walk) {
  if (VECTOR == 1) return {__ldg(a + walk.at)};
  const uint4 bits = __ldg((const uint4*)(a + walk.at));
  Elements values;
  memcpy(&values, &bits, sizeof values);
  return values;
}
__device__ __forceinline__ void store(T* a, const Walk& walk, const Elements& values) {
  if (VECTOR == 1) {
    a[walk.at] = values.at[0];
    return;
  }
  uint4 bits;
  memcpy(&bits, &values, sizeof values);
  __stwb((uint4*)(a + walk.at), bits);
}

// Sums over all threads, returned to each: always in the same order, hence deterministic.
template <class Sum, int n>
__device__ __forceinline__ void sum_over_block(Sum (&sums)[n]) {
  __shared__ Sum of_warp[n][THREADS / 32];
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int apart = 16; apart; apart /= 2)
      sums[i] += __shfl_xor_sync(0xffffffff, sums[i], apart);
  __syncthreads();  // the previous sums have been read
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < n; ++i) of_warp[i][threadIdx.x / 32] = sums[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) {
    sums[i] = lane < THREADS / 32 ? of_warp[i][lane] : Sum(0);
#pragma unroll
    for (int apart = 16; apart; apart /= 2)
      sums[i] += __shfl_xor_sync(0xffffffff, sums[i], apart);
  }
}

// The mean of some numbers, and the sum of their squared distances from it.
struct Moments {
  double mean, squares;
};

// y = relu((x - mean) * scale + bias + residual), relative to the mean because x * scale + shift
// would cancel where the mean is many deviations from zero. The ReLU is a lower bound: 0, or
// -infinity without one.
struct Formula {
  T mean, scale, bias, least;

  __device__ Formula(T mean, T variance, T weight, T bias, T eps, T least)
      : mean(mean), scale(weight / sqrt(variance + eps)), bias(bias), least(least) {}

  // The rounding error of the mean in T is added to the bias.
  __device__ Formula(const Moments& m, int count, T weight, T bias, T eps, T least)
      : Formula(T(m.mean), T(m.squares / count), weight, bias, eps, least) {
    this->bias -= T(m.mean - mean) * scale;
  }

  __device__ T operator()(T x, T residual) const {
    const T y = (x - mean) * scale + bias + residual;
    return y < least ? least : y;  // NaN stays NaN
  }
  __device__ Elements operator()(const Elements& x, const Elements& residual) const {
    Elements y;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) y.at[v] = (*this)(x.at[v], residual.at[v]);
    return y;
  }
};

// y of `length` elements of channel c from element `first` on.
__device__ __forceinline__ void normalise(const Formula& formula, const T* __restrict__ x,
                                          const T* __restrict__ residual, T* __restrict__ y,
                                          int first, int length, int c, int channels, int pixels) {
  Walk walk(first + (int)threadIdx.x * VECTOR, c, channels, pixels);
#pragma unroll 4
  for (int i = threadIdx.x * VECTOR; i < length; i += STEP, walk.next())
    store(y, walk, formula(load(x, walk), RESIDUAL ? load(residual, walk) : Elements{}));
}

// One thread per channel writes the batch's statistics and updates the running ones in place: the
// batch's variance is biased, the running one uses the unbiased.
__device__ __forceinline__ void publish(const Moments& moments, int count, T* mean, T* variance,
                                        RUNNING* running_mean, RUNNING* running_variance,
                                        double momentum, bool with_running) {
  *mean = T(moments.mean);
  *variance = T(moments.squares / count);
  if (!with_running) return;
  *running_mean = RUNNING((1 - momentum) * *running_mean + momentum * moments.mean);
  *running_variance =
      RUNNING((1 - momentum) * *running_variance + momentum * (moments.squares / (count - 1)));
}
