// pack: packs signs, or thermometer codes of 1 to 4 bits, of neighbouring channels into words
//
// Fixes: a sign takes 32 bits in x instead of 1, and is far from the next channel's
// Cost: every element read once per tensor; two comparisons and a fraction of a store per sign
//
// A channel has LEVELS bits, lowest first: a sign is 1 where x >= 0 (-0 too, NaN not); a code has
// ones for the levels below its value, clamped to LEVELS, so that the number of differing bits of
// two codes is the difference of their values. Bit l of channel c is bit c LEVELS + l of words[n,
// :, pixel]; bits beyond the last channel are 0. A thread packs as many channels as a word has
// bits, which fill LEVELS words, of one pixel, or of four where planes are whole vectors. Weights
// are images of kh*kw pixels.
//
// T: the element type of x, for signs the unsigned integer of its size, since a comparison of
// floats would flush negative denormals to 0. NOT_NAN: the bits of infinity, the largest that are
// not NaN. WORD: unsigned, of 8 to 64 bits, at least LEVELS. PIXELS: 4 or 1; x, words and their
// planes must be aligned to it.
//
// plane: the pixels of a plane.
#ifndef T
#define T unsigned int
#define NOT_NAN 0x7f800000u
#endif
#ifndef WORD
#define WORD unsigned long long
#endif
#ifndef LEVELS
#define LEVELS 1
#endif
#ifndef PIXELS
#define PIXELS 4
#endif
#define BITS (8 * (int)sizeof(WORD))

#include "../vector.cuh"

__device__ __forceinline__ WORD bits_of(T x) {
#ifdef NOT_NAN
  return x <= (T)NOT_NAN || x == (T)((T)1 << (8 * sizeof(T) - 1));
#else
  return (WORD)((1u << (x < LEVELS ? x : LEVELS)) - 1);
#endif
}

extern "C" __global__ void pack(const T* x, WORD* words, int images, int channels,
                                long long plane) {
  const long long pixel = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * PIXELS;
  if (pixel >= plane) return;
  const int length = ((long long)channels * LEVELS - 1) / BITS + 1;
  for (int n = blockIdx.z; n < images; n += gridDim.z) {
    for (int first = blockIdx.y * BITS; first < channels; first += gridDim.y * BITS) {
      const T* from = x + ((long long)n * channels + first) * plane + pixel;
      WORD* to = words + ((long long)n * length + first / BITS * LEVELS) * plane + pixel;
      int left = length - first / BITS * LEVELS;
      Vector<WORD, PIXELS> word = {};
#pragma unroll
      for (int i = 0; i < BITS; ++i, from += plane) {
        Vector<WORD, PIXELS> code = {};
        if (first + i < channels) {
          const auto channel = *(const Vector<T, PIXELS>*)from;
#pragma unroll
          for (int p = 0; p < PIXELS; ++p) code.at[p] = bits_of(channel.at[p]);
        }
        const int used = i * LEVELS % BITS;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) word.at[p] |= code.at[p] << used;
        if (used + LEVELS < BITS) continue;
        if (left-- > 0) *(Vector<WORD, PIXELS>*)to = word;
        to += plane;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p)
          word.at[p] = used + LEVELS > BITS ? code.at[p] >> (BITS - used) % BITS : 0;
      }
    }
  }
}
