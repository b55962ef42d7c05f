// Throughput of XOR and population count of words, on registers only.
//
// As vabsdiff4.cu: every thread keeps CHAINS independent sums and lengthens each STEPS times a round.
// With T threads in all, a launch of
//
//   popc_of_xor(unsigned* out, unsigned seed, int rounds)
//
// does T * rounds * STEPS * CHAINS exclusive ors of 32 bits, each counted by a POPC and added, and
// writes one value a thread to out[T].
#define CHAINS 16
#define STEPS 16

extern "C" __global__ void __launch_bounds__(256)
    popc_of_xor(unsigned* out, unsigned seed, int rounds) {
  unsigned sum[CHAINS];
  const unsigned b = seed * (threadIdx.x + 1);
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum[i] = 0x9e3779b9u * (i + seed);
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) sum[i] += __popc(sum[i] ^ b);
  }
  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total ^= sum[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
