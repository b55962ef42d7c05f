// The sum of one value per thread, in a fixed order, returned to every thread.
//
// THREADS is a power of 2. All threads of the block must call it.
template <class Sum>
__device__ inline Sum block_sum(Sum value) {
  __shared__ Sum partial[THREADS];
  __syncthreads();  // all have read the result of an earlier call
  partial[threadIdx.x] = value;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  __syncthreads();
  return partial[0];
}
