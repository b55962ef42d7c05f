// 4_vectorised_loads: 16 bytes per load, from global to shared memory and from there to registers
//
// Fixes: 3_register_tile moves one word per instruction, so loads still take a fifth of issue slots
// Cost: 2 L / TILE global loads, 2 L / EACH / (16 bytes) shared loads and 2 L adds per output
//
// out[z, m, p] = -sum over l of |a[z % a_batch, m, l] - b[z, l, p]|, as in 1_naive: a is (a_batch,
// M, L), b (gridDim.z, L, P) and out (gridDim.z, M, P).
//
// The tile of a is stored transposed, so that a thread's rows are contiguous like its columns of b,
// and both are read as vectors: for 8x8 outputs, 4 shared loads for 128 adds. Its rows (columns)
// come in groups of one vector, the groups THREADS vectors apart, so that neighbouring threads read
// neighbouring vectors. Padding of the transposed tile's rows puts the stores of a warp, which run
// along l, into different banks.
//
// T: float or double. TILE: outputs along each side of a block. EACH: of a thread. L_VECTOR,
// P_VECTOR: elements per vector along rows of a, and of b and out; L and P must be multiples.
#ifndef T
#define T float
#endif
#ifndef TILE
#define TILE 128
#endif
#ifndef EACH
#define EACH 8
#endif
#ifndef L_VECTOR
#define L_VECTOR 1
#endif
#ifndef P_VECTOR
#define P_VECTOR 1
#endif
#define THREADS (TILE / EACH)                // threads along each side of the block
#define FETCHED 4                            // elements of each tile that a thread loads per step
#define DEPTH (FETCHED * THREADS / EACH)     // terms per step
#define VECTOR (16 / (int)sizeof(T))         // elements in one shared load

template <int n>
struct alignas(n * sizeof(T)) Vector {
  T at[n];
};

// Element i of a thread's EACH, as a position in the tile.
__device__ __forceinline__ int position(int thread, int i) {
  return (i / VECTOR * THREADS + thread) * VECTOR + i % VECTOR;
}

__device__ __forceinline__ void load_values(T (&values)[EACH], const T* row, int thread) {
#pragma unroll
  for (int i = 0; i < EACH; i += VECTOR) {
    const auto loaded = *(const Vector<VECTOR>*)(row + position(thread, i));
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) values[i + v] = loaded.at[v];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS* THREADS, 512 / (THREADS * THREADS))
    adder_matmul(const T* a, const T* b, T* out, int M, int L, int P, int a_batch) {
  __shared__ alignas(16) T a_tile[DEPTH][TILE + VECTOR];
  __shared__ alignas(16) T b_tile[DEPTH][TILE];

  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  const int first_m = blockIdx.y * TILE, first_p = blockIdx.x * TILE;
  a += (long long)(blockIdx.z % a_batch) * M * L;
  b += (long long)blockIdx.z * L * P;

  T sum[EACH][EACH] = {};
  for (int start = 0; start < L; start += DEPTH) {
#pragma unroll
    for (int i = 0; i < FETCHED / L_VECTOR; ++i) {
      const int t = threadIdx.x + i * THREADS * THREADS;
      const int m = t / (DEPTH / L_VECTOR), l = t % (DEPTH / L_VECTOR) * L_VECTOR;
      Vector<L_VECTOR> loaded = {};
      if (first_m + m < M && start + l < L)
        loaded = *(const Vector<L_VECTOR>*)(a + (long long)(first_m + m) * L + start + l);
#pragma unroll
      for (int v = 0; v < L_VECTOR; ++v) a_tile[l + v][m] = loaded.at[v];
    }
#pragma unroll
    for (int i = 0; i < FETCHED / P_VECTOR; ++i) {
      const int t = threadIdx.x + i * THREADS * THREADS;
      const int l = t / (TILE / P_VECTOR), p = t % (TILE / P_VECTOR) * P_VECTOR;
      Vector<P_VECTOR> loaded = {};
      if (first_p + p < P && start + l < L)
        loaded = *(const Vector<P_VECTOR>*)(b + (long long)(start + l) * P + first_p + p);
      *(Vector<P_VECTOR>*)&b_tile[l][p] = loaded;
    }
    __syncthreads();
#pragma unroll
    for (int l = 0; l < DEPTH; ++l) {
      T a_values[EACH], b_values[EACH];
      load_values(a_values, a_tile[l], ty);
      load_values(b_values, b_tile[l], tx);
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
    const int m = first_m + position(ty, i);
#pragma unroll
    for (int j = 0; j < EACH; j += P_VECTOR) {
      const int p = first_p + position(tx, j);
      Vector<P_VECTOR> result;
#pragma unroll
      for (int v = 0; v < P_VECTOR; ++v) result.at[v] = -sum[i][j + v];
      if (m < M && p < P) *(Vector<P_VECTOR>*)(out + (long long)m * P + p) = result;
    }
  }
}
