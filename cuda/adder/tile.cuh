// Shared by the implicit convolutions: a block's tile of sums over l, double-buffered.
//
// A tile has F rows times P columns; a thread owns EACH_F x EACH_P of its sums. Step s of the sum
// uses one of two buffers; meanwhile the elements of step s + 1 are loaded from global memory to
// registers, and stored, after the arithmetic, into the other buffer: one barrier per step. DEPTH
// threads advance to the taps of step s + 2 for all; no division inside the loop. Past the end of
// the sum both operands are 0.
//
// T: the element type in global memory. TILE: in shared memory and arithmetic. F, P, EACH_F,
// EACH_P, DEPTH: the tile. W_VECTOR: weights per global load. X_PAD: padding of a row of the tile
// of x. SUM and ADD_TERM: the accumulator type and how a term is added. PART and ADD_PART, if each
// step has a separate accumulator: its type, and how it is added to the sum.
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
#ifndef BLOCKS
#define BLOCKS ((EACH_F * EACH_P > 64 ? 256 : 384) / THREADS)  // that fit the registers
#endif
#define VECTOR (16 / (int)sizeof(TILE))  // elements per shared load
#define COLUMNS larger(P / THREADS, smaller(smaller(VECTOR, 4), P * DEPTH / THREADS))
#define ROW_THREADS (P / COLUMNS)         // threads per gathered row, COLUMNS columns each
#define ROW_STEP (THREADS / ROW_THREADS)  // distance of a thread's rows
#define ROWS (DEPTH / ROW_STEP)           // and their number
#define WEIGHT_LOADS ((F * DEPTH / W_VECTOR + THREADS - 1) / THREADS)

__device__ __forceinline__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Element i of the `each` that a thread owns, as a position in the tile: vectors of neighbouring
// threads are adjacent.
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

// A thread's i-th gathered column, and the row and column of its first sum.
__device__ __forceinline__ int gathered_column(int i) {
  return position<COLUMNS, ROW_THREADS>(threadIdx.x % ROW_THREADS, i);
}
#define THREAD_F (threadIdx.x / THREADS_P)
#define THREAD_P (threadIdx.x % THREADS_P)

// Add the terms of a tile. decode(start), fetch(start) and store(buffer) are the pipeline stages of
// a step of DEPTH terms before its arithmetic, with a barrier between any two.
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
#ifdef PART
    PART part[EACH_F][EACH_P] = {};
#else
    auto& part = sum;
#endif
#pragma unroll
    for (int l = 0; l < DEPTH; ++l) {
      TILE x_values[EACH_P], w_values[EACH_F];
      load_values<EACH_P, THREADS_P>(x_values, x_tile[buffer][l], THREAD_P);
      load_values<EACH_F, THREADS_F>(w_values, w_tile[buffer][l], THREAD_F);
#pragma unroll
      for (int f = 0; f < EACH_F; ++f)
#pragma unroll
        for (int p = 0; p < EACH_P; ++p)
          part[f][p] = ADD_TERM(part[f][p], x_values[p], w_values[f]);
    }
#ifdef PART
#pragma unroll
    for (int f = 0; f < EACH_F; ++f)
#pragma unroll
      for (int p = 0; p < EACH_P; ++p) sum[f][p] = ADD_PART(sum[f][p], part[f][p]);
#endif
    if (more) store(1 - buffer);
    __syncthreads();
  }
}

// Add the terms l < length of the sums of a tile: columns gathered from x at `pixel`, and at most
// `rows` rows of w (length elements each) from first_row on. decode(l) is the tap of row l, outside
// for every pixel past the end; a thread calls it for its first row, then for every DEPTH-th.
template <class Columns, class Decode>
__device__ __forceinline__ void sum_tile(SUM (&sum)[EACH_F][EACH_P], const T* x, const T* w,
                                         const Columns& pixel, int height, int width, int first_row,
                                         int rows, int length, const Decode& decode) {
  __shared__ decltype(decode(0)) taps[2][DEPTH];
  __shared__ alignas(16) TILE x_tile[2][DEPTH][P + X_PAD];
  __shared__ alignas(16) TILE w_tile[2][DEPTH][F + VECTOR];

  const auto decode_taps = [&](int start) {
    if (threadIdx.x < DEPTH)
      taps[start / DEPTH % 2][threadIdx.x] = decode(start + (int)threadIdx.x);
  };

  // Begin, in the first step, and end of the weights that the thread loads.
  const T* weights[WEIGHT_LOADS];
  int end[WEIGHT_LOADS];
#pragma unroll
  for (int i = 0; i < WEIGHT_LOADS; ++i) {
    const int t = threadIdx.x + i * THREADS;
    const int f = t / (DEPTH / W_VECTOR), l = t % (DEPTH / W_VECTOR) * W_VECTOR;
    weights[i] = w + (first_row + f) * length + l;
    end[i] = f < F && f < rows ? length - l : 0;
  }

  const T outside = {};
  T fetched_x[ROWS][COLUMNS];
  Vector<T, W_VECTOR> fetched_w[WEIGHT_LOADS];
  const auto fetch = [&](int start) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const auto tap = taps[start / DEPTH % 2][threadIdx.x / ROW_THREADS + r * ROW_STEP];
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        fetched_x[r][i] = gather(x, pixel[i], tap, height, width, outside);
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
      fetched_w[i] = {};
      if (start < end[i]) fetched_w[i] = *(const Vector<T, W_VECTOR>*)(weights[i] + start);
    }
  };
  const auto store = [&](int buffer) {
    constexpr int n = smaller(COLUMNS, VECTOR);  // contiguous, in one store
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < COLUMNS; i += n) {
        Vector<TILE, n> values;
#pragma unroll
        for (int v = 0; v < n; ++v) values.at[v] = (TILE)fetched_x[r][i + v];
        TILE* row = x_tile[buffer][threadIdx.x / ROW_THREADS + r * ROW_STEP];
        *(Vector<TILE, n>*)(row + gathered_column(i)) = values;
      }
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
