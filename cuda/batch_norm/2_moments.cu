// 2_moments: splits channels into parts, one block each, and computes the moments of every part
//
// Fixes: 1_three_passes has one block per channel, reads x once for the mean and once more for the
// variance, 4 bytes at a time, and divides for every index
// Cost: one load of 16 bytes for 4 elements, 16 bytes of moments stored for 4096
//
// A part stays in registers, so its variance costs no second load. 2_normalise combines the parts.
//
// x: (images, channels, pixels). parts_moments[c * parts + p]: the mean, and the sum of the squared
// distances from it, of elements p * THREADS * EACH and on of channel c, numbered image by image.
// count: images * pixels. parts: of a channel.
#include "part.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_moments(const T* x, Moments* parts_moments, int channels, int pixels, int count,
                       int parts) {
  const int c = blockIdx.x / parts, first = (int)(blockIdx.x % parts) * (THREADS * EACH);
  Walk walk(first + (int)threadIdx.x * VECTOR, c, channels, pixels);
  const Part part(x, walk, min(THREADS * EACH, count - first));
  const Moments moments = part.moments();
  if (threadIdx.x == 0) parts_moments[blockIdx.x] = moments;
}
