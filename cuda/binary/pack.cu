// pack: signs, or thermometer codes of 1 to 4 bits, of neighbouring channels side by side in a word
//
// Fixes: a sign takes 32 bits in x, 32 times what it says, and lies far from the next channel's
// Cost: every element read once a tensor; two comparisons a sign, and its share of a store
//
// A channel has LEVELS bits, lowest first: a sign is 1 where x >= 0 (-0 too, NaN not); a code has ones
// for the levels below its value, which is taken for LEVELS at most, so that two codes differ in as
// many bits as their values do. Bit l of channel c is bit c LEVELS + l of the words[n, :, pixel]; what
// is beyond the last channel is 0. A thread takes as many channels as a word has bits, which fill
// LEVELS words, of one pixel, or of four where planes are whole vectors. Weights are images of kh*kw
// pixels.
//
// T: the element of x, for signs the unsigned integer with its bits, since a comparison of floats
// takes the least negative ones for 0 where the compiler flushes them. NOT_NAN: the largest bits of no
// NaN, infinity's. WORD: unsigned, of 8 to 64 bits, LEVELS at least. PIXELS: 4 or 1; x must begin, and
// its planes end, at a multiple of so many elements, and words too.
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
