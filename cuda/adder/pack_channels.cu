// pack_channels: packs neighbouring channels into 32-bit words, four of 8 bits or two of 16
//
// Fixes: a pixel's channels are far apart in x, and 6_uint8 and 7_half2 need several per load
// Cost: every element read and written once per tensor, instead of once per tap; where planes are
// whole words, four pixels per load of a channel and per store of 16 bytes
//
// words[n, c, p] = x[n, EACH c .. EACH c + EACH - 1, p], the first in the lowest bits, for a batch
// of images of `channels` planes; channels beyond the last are 0 in x and in w, and |0 - 0| adds
// nothing. Weights are images of kh*kw pixels.
//
// T: unsigned char or unsigned short, the bits of an element. PIXELS: number per thread, 4 or 1; x
// and its planes must be aligned to it.
//
// plane: the pixels of a plane.
#ifndef T
#define T unsigned char
#endif
#ifndef PIXELS
#define PIXELS 4
#endif
#define EACH (4 / (int)sizeof(T))

#include "../vector.cuh"

extern "C" __global__ void pack_channels(const T* x, unsigned int* words, int images, int channels,
                                         long long plane) {
  const long long pixel = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * PIXELS;
  if (pixel >= plane) return;
  const int packed = (channels - 1) / EACH + 1;
  for (int n = blockIdx.z; n < images; n += gridDim.z) {
    for (int c = blockIdx.y; c < packed; c += gridDim.y) {
      const T* from = x + ((long long)n * channels + EACH * c) * plane + pixel;
      Vector<unsigned int, PIXELS> together = {};
#pragma unroll
      for (int i = 0; i < EACH; ++i, from += plane) {
        Vector<T, PIXELS> channel = {};
        if (EACH * c + i < channels) channel = *(const Vector<T, PIXELS>*)from;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p)
          together.at[p] |= (unsigned int)channel.at[p] << 32 / EACH * i;
      }
      *(Vector<unsigned int, PIXELS>*)(words + ((long long)n * packed + c) * plane + pixel) =
          together;
    }
  }
}
