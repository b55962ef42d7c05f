// What the kernels of shift share: its table, and division by a number known before the launch.

struct alignas(8) Shift {
  int h, w;  // at most the image's size: further than that is nothing but zeros
};

// n / d for 0 <= n < 2^31, where `by` holds a multiplier in its low half and a shift in its high
// one: three instructions, a division takes about twenty.
__device__ __forceinline__ int divide(int n, unsigned long long by) {
  return (int)((unsigned long long)(unsigned)n * (unsigned)by >> (unsigned)(by >> 32));
}
