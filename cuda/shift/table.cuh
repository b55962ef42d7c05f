// Shared by the kernels of shift: the table, and division by numbers known before the launch.

#include "../geometry.cuh"

struct alignas(8) Shift {
  int h, w;  // clamped to the image's size, beyond which all is zero
};

// The planes of a launch of the plain shift. Passed by value.
struct Planes {
  int total;            // elements written
  int first, channels;  // the channel of the first plane, and the number of channels
  Pair size, out;  // of an input and of an output plane
  Pair stride;
  unsigned long long by_channels, by_plane, by_width;  // divisors: the channels and `out`
  unsigned long long by_stride[2];
};

// n / d for 0 <= n < 2^31, where `by` holds a multiplier in its low half and a shift in its high
// half: three instructions instead of about twenty for a division.
__device__ __forceinline__ int divide(int n, unsigned long long by) {
  return (int)((unsigned long long)(unsigned)n * (unsigned)by >> (unsigned)(by >> 32));
}
