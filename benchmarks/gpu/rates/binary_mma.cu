// Throughput of the binary tensor-core product, AND and popcount, on registers only.
//
// Every warp keeps CHAINS independent 16x8 accumulators and lengthens each STEPS times a round.
// Launch enough blocks of 256 threads to fill every multiprocessor. With V warps in all, a launch
// of
//
//   binary_and_popc(int* out, unsigned seed, int rounds)
//
// does V * rounds * STEPS * CHAINS products of 16x8x256, each 32768 bits ANDed and counted, and
// writes one value a thread to out. Bit products a clock and multiprocessor are that number times
// 32768 over (seconds * clock * multiprocessors). It needs sm_80 or newer; on sm_80 to sm_90 the
// product is one instruction, BMMA.168256.AND.POPC, on newer ones several. Pass a seed that is not
// 0, and rounds that last about 10 ms.
#define CHAINS 8
#define STEPS 8

extern "C" __global__ void __launch_bounds__(256)
    binary_and_popc(int* out, unsigned seed, int rounds) {
  const unsigned bits = seed * (0x9e3779b9u + 2 * threadIdx.x);
  const unsigned a[4] = {bits, bits ^ 0x55555555u, bits * 3, ~bits};
  const unsigned b[2] = {bits * 5, bits * 7};
  int sum[CHAINS][4] = {};
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i)
        asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(sum[i][0]), "+r"(sum[i][1]), "+r"(sum[i][2]), "+r"(sum[i][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  int total = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total ^= sum[i][0] ^ sum[i][1] ^ sum[i][2] ^ sum[i][3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
