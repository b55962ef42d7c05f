// What the kernels of shift share: its table, and division by a number known before the launch.

#include "../geometry.cuh"

struct alignas(8) Shift {
  int h, w;  // at most the image's size: further than that is nothing but zeros
};

// What a launch of the bare shift moves: planes in a row. It is passed by value.
struct Planes {
  int total;            // elements written
  int first, channels;  // the channel of the first plane, and the number of channels
  Pair size, out;       // of a plane read, and of one written
  Pair stride;
  unsigned long long by_channels, by_plane, by_width;  // to divide by the channels and `out`
  unsigned long long by_stride[2];
};

// n / d for 0 <= n < 2^31, where `by` holds a multiplier in its low half and a shift in its high
// one: three instructions, a division takes about twenty.
__device__ __forceinline__ int divide(int n, unsigned long long by) {
  return (int)((unsigned long long)(unsigned)n * (unsigned)by >> (unsigned)(by >> 32));
}
