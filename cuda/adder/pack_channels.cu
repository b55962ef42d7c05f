// pack_channels: four channels of 8 bits side by side in one 32-bit word
//
// Fixes: a window's bytes lie far apart in x, and 6_uint8 wants four taps in one load
// Cost: one byte read and one byte written per element, once per tensor and not once per tap; four
// loads of 4 bytes and one store of 16 bytes for four pixels, where planes are whole words
//
// words[n, c, p] = x[n, 4c .. 4c+3, p] for a batch of images of `channels` planes; channels beyond
// the last are 0 in x and in w alike, and |0 - 0| adds nothing. Weights are images of kh*kw pixels.
//
// PIXELS: how many a thread takes, 4 or 1; 4 divides the plane and the address of x.
#ifndef PIXELS
#define PIXELS 4
#endif

#include "../vector.cuh"

#if PIXELS == 4
typedef unsigned int Bytes;
#else
typedef unsigned char Bytes;
#endif

extern "C" __global__ void pack_channels(const unsigned char* x, unsigned int* words, int images,
                                         int channels, long long plane) {
  const long long pixel = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * PIXELS;
  if (pixel >= plane) return;
  const int packed = (channels + 3) / 4;
  for (int n = blockIdx.z; n < images; n += gridDim.z) {
    for (int c = blockIdx.y; c < packed; c += gridDim.y) {
      const unsigned char* from = x + ((long long)n * channels + 4 * c) * plane + pixel;
      unsigned int channel[4];
#pragma unroll
      for (int i = 0; i < 4; ++i, from += plane)
        channel[i] = 4 * c + i < channels ? *(const Bytes*)from : 0;
      Vector<unsigned int, PIXELS> together;
#pragma unroll
      for (int p = 0; p < PIXELS; ++p) {
        const unsigned int byte = 0x40 + 0x11 * p;  // number p of one channel, then of the next
        together.at[p] = __byte_perm(__byte_perm(channel[0], channel[1], byte),
                                          __byte_perm(channel[2], channel[3], byte), 0x5410);
      }
      *(Vector<unsigned int, PIXELS>*)(words + ((long long)n * packed + c) * plane + pixel) =
          together;
    }
  }
}
