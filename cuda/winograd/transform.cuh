#include "../geometry.cuh"

// The tiles of images: M x M outputs each, numbered through rows and images.
struct Tiles {
  int planes;  // per image: channels, or filters
  Pair size, pad;
  int count, rows, columns;  // in total, and per image
  int first, last;           // the range of a launch
};

// A transform's matrix, TILE x SIDE, as compile-time constants: zeros cost nothing, ones and minus
// ones an addition. Sums start at -0, which the compiler eliminates: x + -0 is x.
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
