// fragments: packs w in the fragment layout of 3_tensor_cores
//
// Fixes: rows of w are not a multiple of the 256 bits of a product, and a lane would load single
//   words
// Cost: every word of w read once per tensor; 3_tensor_cores loads 16 bytes per lane, a warp's 512
// contiguous
//
// The bits of a filter, in the order (word, tap) of w, are split into steps of 256, and the filters
// of a group into tiles of 16: the A operand of one product. Lane 4 r + t of the warp has four
// words of it, those of filters r and r + 8 at word t of the step, then the same at word t + 4.
// Padding is 0.
//
// T: unsigned, the words of w (groups*filters, length), of 8 to 64 bits.
#ifndef T
#define T unsigned long long
#endif
#define BITS (8 * (int)sizeof(T))

extern "C" __global__ void fragments(const T* w, unsigned int* fragments, int groups, int filters,
                                     int length, int tiles, int steps) {
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at >= (long long)groups * tiles * steps * 128) return;
  const int place = (int)(at % 4), lane = (int)(at / 4 % 32), step = (int)(at / 128 % steps);
  const long long tile = at / 128 / steps;
  const int filter = (int)(tile % tiles) * 16 + place % 2 * 8 + lane / 4;
  const long long bit = ((long long)step * 8 + place / 2 * 4 + lane % 4) * 32;
  w += (tile / tiles * filters + filter) * length;
  unsigned int word = 0;
  for (int i = 0; i < 32; i += BITS) {
    const long long l = (bit + i) / BITS;
    if (filter < filters && l < length) word |= (unsigned int)(w[l] >> (bit + i) % BITS) << i;
  }
  fragments[at] = word;
}
