// The shared part of the implicit products: a block's tile of sums over l, two buffers deep.
//
// A tile has F rows times P columns; a thread owns EACH_F x EACH_P of its sums. Step s of the sum
// uses one of two buffers; meanwhile the elements of step s + 1 travel from global memory to
// registers, and from there, after the arithmetic, into the other buffer: one barrier a step. DEPTH
// threads decode the taps of step s + 2 for all; a column costs no division. Past the end of the
// sum both operands are 0.
//
// T: an element in global memory. TILE: the same in shared memory, where arithmetic finds it. F, P,
// EACH_F, EACH_P, DEPTH: the tile. W_VECTOR: weights in one global load. X_PAD: elements after a row
// of the tile of x. SUM and ADD_TERM: the type of a sum and how a term is added.
#ifndef TILE
#define TILE T
#endif
#ifndef F
#define F 64
#endif
#ifndef P
#define P 128
#endif
#ifndef EACH_F
#define EACH_F 8
#endif
#ifndef EACH_P
#define EACH_P 8
#endif
#ifndef DEPTH
#define DEPTH 8
#endif
#ifndef W_VECTOR
#define W_VECTOR 1
#endif
#ifndef X_PAD
#define X_PAD 0
#endif

#include "gather.cuh"

#define THREADS_F (F / EACH_F)
#define THREADS_P (P / EACH_P)
#define THREADS (THREADS_F * THREADS_P)
#define VECTOR (16 / (int)sizeof(TILE))  // elements in one shared load
#define COLUMNS (P > THREADS ? P / THREADS : 1)     // columns that a thread gathers
#define ROW_STEP (THREADS > P ? THREADS / P : 1)    // distance of the rows that it gathers
#define ROWS (DEPTH / ROW_STEP)                     // and their number
#define WEIGHT_LOADS ((F * DEPTH / W_VECTOR + THREADS - 1) / THREADS)

__device__ __forceinline__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Element i of the `each` that a thread owns, as a position in the tile: vectors side by side with
// those of its neighbours.
template <int each, int threads>
__device__ __forceinline__ int position(int thread, int i) {
  constexpr int n = smaller(each, VECTOR);
  return (i / n * threads + thread) * n + i % n;
}

template <int each, int threads>
__device__ __forceinline__ void load_values(TILE (&values)[each], const TILE* row, int thread) {
  constexpr int n = smaller(each, VECTOR);
#pragma unroll
  for (int i = 0; i < each; i += n) {
    const auto loaded = *(const Vector<TILE, n>*)(row + position<each, threads>(thread, i));
#pragma unroll
    for (int v = 0; v < n; ++v) values[i + v] = loaded.at[v];
  }
}

// The column that a thread gathers i-th, and the row and column of its first sum.
__device__ __forceinline__ int gathered_column(int i) { return threadIdx.x % P + i * THREADS; }
#define THREAD_F (threadIdx.x / THREADS_P)
#define THREAD_P (threadIdx.x % THREADS_P)

// Add the terms of a tile. decode(start), fetch(start) and store(buffer) are the three stages that a
// step of DEPTH terms goes through before its arithmetic, with a barrier between any two.
template <class Decode, class Fetch, class Store>
__device__ __forceinline__ void sum_steps(SUM (&sum)[EACH_F][EACH_P],
                                          const TILE (&x_tile)[2][DEPTH][P + X_PAD],
                                          const TILE (&w_tile)[2][DEPTH][F + VECTOR], int length,
                                          const Decode& decode, const Fetch& fetch,
                                          const Store& store) {
  decode(0);
  decode(DEPTH);
  __syncthreads();
  fetch(0);
  store(0);
  __syncthreads();
  for (int start = 0; start < length; start += DEPTH) {
    const int buffer = start / DEPTH % 2;
    const bool more = start + DEPTH < length;
    if (more) fetch(start + DEPTH);
    decode(start + 2 * DEPTH);
#pragma unroll
    for (int l = 0; l < DEPTH; ++l) {
      TILE x_values[EACH_P], w_values[EACH_F];
      load_values<EACH_P, THREADS_P>(x_values, x_tile[buffer][l], THREAD_P);
      load_values<EACH_F, THREADS_F>(w_values, w_tile[buffer][l], THREAD_F);
#pragma unroll
      for (int f = 0; f < EACH_F; ++f)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p)
          sum[f][p] = ADD_TERM(sum[f][p], x_values[p], w_values[f]);
    }
    if (more) store(1 - buffer);
    __syncthreads();
  }
}

// Add the terms l < length of the sums of a tile: columns gathered from x at `pixel`, and at most
// `rows` rows of w (length elements each) from first_row on. decode(l) is the tap of row l, any
// h of NOWHERE past the end.
template <class Decode>
__device__ __forceinline__ void sum_tile(SUM (&sum)[EACH_F][EACH_P], const T* x, const T* w,
                                         const Pixel (&pixel)[COLUMNS], int height, int width,
                                         int first_row, int rows, int length,
                                         const Decode& decode) {
  __shared__ Tap taps[2][DEPTH];
  __shared__ alignas(16) TILE x_tile[2][DEPTH][P + X_PAD];
  __shared__ alignas(16) TILE w_tile[2][DEPTH][F + VECTOR];

  const auto decode_taps = [&](int start) {
    if (threadIdx.x < DEPTH)
      taps[start / DEPTH % 2][threadIdx.x] = decode(start + (int)threadIdx.x);
  };

  T fetched_x[COLUMNS][ROWS];
  Vector<T, W_VECTOR> fetched_w[WEIGHT_LOADS];
  const auto fetch = [&](int start) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Tap tap = taps[start / DEPTH % 2][threadIdx.x / P + r * ROW_STEP];
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        fetched_x[i][r] = gather(x, pixel[i], tap, height, width, (T)0);
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS;
      const int f = t / (DEPTH / W_VECTOR), l = start + t % (DEPTH / W_VECTOR) * W_VECTOR;
      fetched_w[i] = {};
      if (f < F && f < rows && l < length)
        fetched_w[i] = *(const Vector<T, W_VECTOR>*)(w + (first_row + f) * length + l);
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        x_tile[buffer][threadIdx.x / P + r * ROW_STEP][gathered_column(i)] =
            (TILE)fetched_x[i][r];
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      const int t = threadIdx.x + i * THREADS;
      const int f = t / (DEPTH / W_VECTOR), l = t % (DEPTH / W_VECTOR) * W_VECTOR;
      if (f < F)
#pragma unroll
        for (int v = 0; v < W_VECTOR; ++v) w_tile[buffer][l + v][f] = (TILE)fetched_w[i].at[v];
    }
  };

  sum_steps(sum, x_tile, w_tile, length, decode_taps, fetch, store);
}
