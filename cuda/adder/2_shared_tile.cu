// 2_shared_tile: a 16x16 block of outputs shares its operands through shared memory
//
// Fixes: 1_naive reads each a[m, l] again for every p, and each b[l, p] again for every m
// Cost: 2 L / 16 global loads, 2 L shared loads and 2 L adds per output
//
// out[z, m, p] = -sum over l of |a[z % a_batch, m, l] - b[z, l, p]|, as in 1_naive: a is (a_batch,
// M, L), b (gridDim.z, L, P) and out (gridDim.z, M, P).
//
// The block loops over the sum in steps of 16. In each step its 256 threads load one 16x16 tile of
// a and one of b, one element each, synchronise, and use every element 16 times. Outside the
// matrices both tiles are zero-padded, and |0 - 0| adds nothing.
#ifndef T
#define T float
#endif
#define TILE 16

extern "C" __global__ void __launch_bounds__(TILE* TILE)
    adder_matmul(const T* a, const T* b, T* out, int M, int L, int P, int a_batch) {
  __shared__ T a_tile[TILE][TILE];
  __shared__ T b_tile[TILE][TILE];

  const int tx = threadIdx.x, ty = threadIdx.y;
  const int p = blockIdx.x * TILE + tx;
  const int m = blockIdx.y * TILE + ty;
  a += (long long)(blockIdx.z % a_batch) * M * L;
  b += (long long)blockIdx.z * L * P;

  T sum = 0;
  for (int start = 0; start < L; start += TILE) {
    const int a_column = start + tx, b_row = start + ty;
    a_tile[ty][tx] = m < M && a_column < L ? a[(long long)m * L + a_column] : T(0);
    b_tile[ty][tx] = p < P && b_row < L ? b[(long long)b_row * P + p] : T(0);
    __syncthreads();
#pragma unroll
    for (int l = 0; l < TILE; ++l) sum += fabs(a_tile[ty][l] - b_tile[l][tx]);
    __syncthreads();
  }
  if (m < M && p < P) out[((long long)blockIdx.z * M + m) * P + p] = -sum;
}
