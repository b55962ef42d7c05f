// Shared by the backward kernels of batch normalisation. The gradient after the ReLU is flow = grad
// where y > 0 or NaN, and everything else follows from two sums per channel.
//
// RELU, 0 or 1: whether there is one; without it the flow is grad, and y is not read. RESIDUAL:
// whether to store its gradient, the flow.
#ifndef RELU
#define RELU 1
#endif

struct Sums {
  double flow, along;  // of flow, and of flow * (x - mean)
};

__device__ __forceinline__ Elements flow_of(const Elements& grad, const Elements& y) {
  Elements flow;
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) flow.at[v] = y.at[v] <= 0 ? T(0) : grad.at[v];
  return flow;
}

__device__ __forceinline__ void add(T (&sums)[2], const Elements& flow, const Elements& x, T mean) {
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) {
    sums[0] += flow.at[v];
    sums[1] += flow.at[v] * (x.at[v] - mean);
  }
}

// grad_x = weight * inverse * (flow - sum(flow) / count
//                              - (x - mean) * inverse^2 * sum(flow * (x - mean)) / count)
// with inverse = 1 / sqrt(variance + eps); given statistics do not depend on x, and leave only the
// first term.
struct Gradient {
  T mean, inverse, slope, constant, along;
  bool given;

  __device__ Gradient(const Sums& sums, T mean, T variance, T weight, T eps, int count, bool given)
      : mean(mean),
        inverse(1 / sqrt(variance + eps)),
        slope(weight * inverse),
        constant(T(sums.flow / count)),
        along(T(sums.along / count) * inverse * inverse),
        given(given) {}

  __device__ Elements operator()(const Elements& flow, const Elements& x) const {
    Elements grad_x;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      const T centred = flow.at[v] - constant - (x.at[v] - mean) * along;
      grad_x.at[v] = slope * (given ? flow.at[v] : centred);
    }
    return grad_x;
  }

  // Called by one thread per channel.
  __device__ void publish(const Sums& sums, T* grad_weight, T* grad_bias) const {
    *grad_weight = T(sums.along) * inverse;
    *grad_bias = T(sums.flow);
  }
};
