// nearest: the k smallest numbers of each row, in order, among those that were kept before
//
// Fixes: sorting all of a row, or storing it
// Cost: k passes over the row's numbers and those kept, one comparison each, and k sums of a block
//
// A block has a row. Each pass finds the smallest number that comes behind the last one found, the
// threads' own in a round and then the smallest of these: of equal numbers the one at the smaller
// index is before the other, so there are no two alike, and the order of the threads does not
// matter. The indices of a row's numbers follow one another from `first` on, behind those of the
// kept ones. A number that is NaN counts as infinite.
//
// T: float, double or int, no number negative. kept and indices hold `found` entries a row, sorted,
// and best and best_indices get `k`; both are `most` apart.
//
// numbers: (rows, columns), a row for each block; the number of column j has the index first + j.
#ifndef T
#define T float
#endif

#define THREADS 256

struct Entry {
  T number;
  long long index;
};

__device__ __forceinline__ bool before(const Entry& a, const Entry& b) {
  return a.number < b.number || (a.number == b.number && a.index < b.index);
}

__device__ __forceinline__ float furthest(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double furthest(double) { return furthest(0.0f); }
__device__ __forceinline__ int furthest(int) { return 0x7fffffff; }

extern "C" __global__ void __launch_bounds__(THREADS)
    nearest(const T* numbers, int columns, long long first, const T* kept, const long long* indices,
            int found, T* best, long long* best_indices, int k, int most) {
  __shared__ Entry smallest[THREADS];
  const long long row = blockIdx.x;
  numbers += row * columns;
  kept += row * most, indices += row * most;
  best += row * most, best_indices += row * most;

  Entry last = {(T)-1, -1};
  for (int i = 0; i < k; ++i) {
    Entry own = {furthest(T()), 0x7fffffffffffffffll};
    const auto offer = [&](const Entry& entry) {
      if (before(last, entry) && before(entry, own)) own = entry;
    };
    for (int j = threadIdx.x; j < found; j += THREADS) offer({kept[j], indices[j]});
    for (int j = threadIdx.x; j < columns; j += THREADS) {
      const T number = numbers[j];
      offer({number == number ? number : furthest(number), first + j});
    }
    smallest[threadIdx.x] = own;
    for (int half = THREADS / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half && before(smallest[threadIdx.x + half], smallest[threadIdx.x]))
        smallest[threadIdx.x] = smallest[threadIdx.x + half];
    }
    __syncthreads();
    last = smallest[0];
    __syncthreads();  // before the next pass writes
    if (threadIdx.x == 0) best[i] = last.number, best_indices[i] = last.index;
  }
}
