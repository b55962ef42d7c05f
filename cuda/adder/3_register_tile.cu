// 3_register_tile: register blocking: a thread computes 4x4 outputs
//
// Fixes: 2_shared_tile needs two shared loads for every two adds, so shared memory is the
//   bottleneck
// Cost: 2 L / 64 global loads, 2 L / 4 shared loads and 2 L adds per output
//
// out[z, m, p] = -sum over l of |a[z % a_batch, m, l] - b[z, l, p]|, as in 1_naive: a is (a_batch,
// M, L), b (gridDim.z, L, P) and out (gridDim.z, M, P).
//
// The block owns 64x64 outputs. For each l a thread reads 4 values of a and 4 of b for 16 outputs:
// 8 shared loads for 32 adds. Its columns are 16 apart, so that neighbouring threads read
// neighbouring words of b, and all read the same words of a: no bank conflicts.
#ifndef T
#define T float
#endif
#define TILE 64
#define DEPTH 16  // terms per step
#define THREADS 16  // threads along each side of the block
#define EACH (TILE / THREADS)

extern "C" __global__ void __launch_bounds__(THREADS* THREADS)
    adder_matmul(const T* a, const T* b, T* out, int M, int L, int P, int a_batch) {
  __shared__ T a_tile[TILE][DEPTH];
  __shared__ T b_tile[DEPTH][TILE];

  const int tx = threadIdx.x, ty = threadIdx.y;
  const int first_m = blockIdx.y * TILE, first_p = blockIdx.x * TILE;
  a += (long long)(blockIdx.z % a_batch) * M * L;
  b += (long long)blockIdx.z * L * P;

  T sum[EACH][EACH] = {};
  for (int start = 0; start < L; start += DEPTH) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int t = (i * THREADS + ty) * THREADS + tx;
      const int m = t / DEPTH, a_column = start + t % DEPTH;
      a_tile[m][t % DEPTH] =
          first_m + m < M && a_column < L ? a[(long long)(first_m + m) * L + a_column] : T(0);
      const int p = t % TILE, b_row = start + t / TILE;
      b_tile[t / TILE][p] =
          first_p + p < P && b_row < L ? b[(long long)b_row * P + first_p + p] : T(0);
    }
    __syncthreads();
#pragma unroll
    for (int l = 0; l < DEPTH; ++l) {
      T a_values[EACH], b_values[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        a_values[i] = a_tile[ty + i * THREADS][l];
        b_values[i] = b_tile[l][tx + i * THREADS];
      }
#pragma unroll
      for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int j = 0; j < EACH; ++j) sum[i][j] += fabs(a_values[i] - b_values[j]);
    }
    __syncthreads();
  }

  out += (long long)blockIdx.z * M * P;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int m = first_m + ty + i * THREADS;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const int p = first_p + tx + j * THREADS;
      if (m < M && p < P) out[(long long)m * P + p] = -sum[i][j];
    }
  }
}
