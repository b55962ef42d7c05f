// The sum of one value of every thread, in the same order whatever the launch; each thread gets it.
//
// THREADS is a power of 2. All threads of the block must arrive.
template <class Sum>
__device__ inline Sum block_sum(Sum value) {
  __shared__ Sum partial[THREADS];
  __syncthreads();  // of an earlier call all have read their answer
  partial[threadIdx.x] = value;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  __syncthreads();
  return partial[0];
}
