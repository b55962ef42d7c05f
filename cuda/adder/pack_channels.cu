// pack_channels: four channels of 8 bits side by side in one 32-bit word
//
// Fixes: a window's bytes lie far apart in x, and 6_uint8 wants four taps in one load
// Cost: one byte read and one byte written per element, once per tensor and not once per tap
//
// words[n, c, p] = x[n, 4c .. 4c+3, p] for a batch of images of `channels` planes; channels beyond
// the last are 0 in x and in w alike, and |0 - 0| adds nothing. Weights are images of kh*kw pixels.

extern "C" __global__ void pack_channels(const unsigned char* x, unsigned int* words, int images,
                                         int channels, long long plane) {
  const long long pixel = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (pixel >= plane) return;
  const int packed = (channels + 3) / 4;
  for (int n = blockIdx.z; n < images; n += gridDim.z) {
    for (int c = blockIdx.y; c < packed; c += gridDim.y) {
      unsigned int word = 0;
      for (int i = 0; i < 4 && 4 * c + i < channels; ++i)
        word |= (unsigned int)x[((long long)n * channels + 4 * c + i) * plane + pixel] << (8 * i);
      words[((long long)n * packed + c) * plane + pixel] = word;
    }
  }
}
