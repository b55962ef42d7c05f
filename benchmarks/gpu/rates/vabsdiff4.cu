// Throughput of the two instructions of an L1 distance, on registers only.
//
// Every thread keeps CHAINS independent sums and lengthens each STEPS times a round; nothing is
// loaded. Launch enough blocks of 256 threads to fill every multiprocessor several times over.
// With T threads in all, a launch does
//
//   vabsdiff4_acc(unsigned* out, unsigned seed, int rounds)
//       T * rounds * STEPS * CHAINS VABSDIFF4.ACC, each 4 absolute differences, summed
//   vabsdiff4_dp4a(unsigned* out, unsigned seed, int rounds)
//       as many pairs VABSDIFF4 + IDP.4A, the same in two steps
//   fadd_pair(float* out, float seed, int rounds)
//       as many pairs of FADD: a difference, and a sum with its absolute value
//
// and writes one value a thread to out[T]. Results a clock and multiprocessor are that number over
// (seconds * clock * multiprocessors). Pass a seed that is not 0, and rounds that last about 10 ms.
#define CHAINS 16
#define STEPS 16

__device__ __forceinline__ unsigned vabsdiff4_add(unsigned a, unsigned b, unsigned sum) {
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
  return sum;
}

extern "C" __global__ void __launch_bounds__(256)
    vabsdiff4_acc(unsigned* out, unsigned seed, int rounds) {
  unsigned a[CHAINS], sum[CHAINS], b = seed * (threadIdx.x + 1);
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) a[i] = seed ^ (0x9e3779b9u * (i + 1)), sum[i] = 0;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) sum[i] = vabsdiff4_add(a[i], b, sum[i]);
  }
  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total ^= sum[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(256)
    vabsdiff4_dp4a(unsigned* out, unsigned seed, int rounds) {
  unsigned a[CHAINS], sum[CHAINS], b = seed * (threadIdx.x + 1);
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) a[i] = seed ^ (0x9e3779b9u * (i + 1)), sum[i] = 0;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) {
        // The other operand depends on the sum, or the difference would be hoisted out of the loop.
        sum[i] = __dp4a(__vabsdiffu4(a[i], sum[i]), b, sum[i]);
      }
  }
  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total ^= sum[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(256) fadd_pair(float* out, float seed, int rounds) {
  float sum[CHAINS], w = seed + threadIdx.x;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum[i] = seed * i;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) sum[i] = seed + fabsf(sum[i] - w);
  }
  float total = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total += sum[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
