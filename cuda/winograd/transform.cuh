#include "../geometry.cuh"

// The tiles of an image, or of some: M x M outputs each, counted through rows and images.
struct Tiles {
  int planes;  // of an image: channels, or filters
  Pair size, pad;
  int count, rows, columns;  // in all, and of an image
  int first, last;           // the range of a launch
};

// A transform's matrix, TILE x SIDE, its entries known while compiling: zeros cost nothing, ones
// and minus ones an addition. Sums start at -0, which the compiler leaves out: x + -0 is x.
#define NOTHING T(-0.0)

__device__ constexpr double matrix[TILE][SIDE] = MATRIX;

__device__ __forceinline__ void add(T& sum, double factor, T value) {
  if (factor == 1)
    sum += value;
  else if (factor == -1)
    sum -= value;
  else if (factor != 0)
    sum += T(factor) * value;
}
