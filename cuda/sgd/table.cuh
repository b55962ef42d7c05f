// The tensors of one launch, passed by value: a block finds its tensor by its number.
#ifndef T
#define T float
#endif

#define TENSORS 120  // limited by 4 KiB of arguments
#define THREADS 256
#define EACH 4
#define PART (THREADS * EACH)  // elements per block

struct Table {
  const T* gradients[TENSORS];
  T* parameters[TENSORS];
  T* velocities[TENSORS];  // null without momentum
  int sizes[TENSORS];
  int firsts[TENSORS];  // the first block of each tensor, ascending
  int count;
};

// The tensor of this block: the last whose first block is not beyond it.
__device__ inline int tensor_of(const Table& table, int block) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.firsts[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}
