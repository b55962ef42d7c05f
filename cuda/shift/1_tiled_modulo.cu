// 1_tiled_modulo: a block loads a 16x16 tile to shared memory and writes its inner 14x14
//
// Fixes: nothing; the kernel published by the shift networks' authors
// Cost: 256 threads for at most 196 outputs, 1.3 loads per output and more where the tile does not
// fit the plane (16x16 planes: 4 threads per output), two barriers per tile, four divisions per
// thread
//
// y[n, c, h, w] = x[n, c, h + dh, w + dw], 0 outside, for modulo shifts only: dw = c % 3 - 1, dh =
// c / 3 % 3 - 1, and the last C mod 9 channels are not shifted. direction = -1 is the opposite
// shift, for the gradient. A grid-stride loop allows any number of blocks; the published launch
// uses at most 128.
//
// T is any type of the element's size: values are copied as bits.
//
// x and y: `planes` planes of height x width, the channels of all images one after another; the
// first plane is of channel `first`.
#ifndef T
#define T float
#endif

#define SIDE 16

__device__ __forceinline__ void shift_tiles(const T* x, T* y, int planes, int first, int channels,
                                            int height, int width, int direction, int kernel_size,
                                            int dilation) {
  __shared__ T tile[SIDE][SIDE];
  const T zero{};
  const int halo = dilation * (kernel_size / 2), inner = SIDE - 2 * halo;
  const int shifted = channels / (kernel_size * kernel_size) * (kernel_size * kernel_size);
  const int tiles_h = (height - 1) / inner + 1, tiles_w = (width - 1) / inner + 1;
  const unsigned tiles = (unsigned)planes * tiles_h * tiles_w;
  const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;

  for (unsigned t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int plane = t / tiles_w / tiles_h, c = (first + plane) % channels;
    const int h = t / tiles_w % tiles_h * inner + row - halo;
    const int w = t % tiles_w * inner + column - halo;
    const bool inside = (unsigned)h < (unsigned)height && (unsigned)w < (unsigned)width;
    const int place = (plane * height + h) * width + w;

    tile[row][column] = inside ? x[place] : zero;
    __syncthreads();
    if (inside && row >= halo && row < SIDE - halo && column >= halo && column < SIDE - halo) {
      int dh = 0, dw = 0;
      if (c < shifted) {
        dh = direction * dilation * (c / kernel_size % kernel_size - kernel_size / 2);
        dw = direction * dilation * (c % kernel_size - kernel_size / 2);
      }
      y[place] = tile[row + dh][column + dw];
    }
    __syncthreads();
  }
}

#ifndef GENERIC
extern "C" __global__ void __launch_bounds__(SIDE* SIDE)
    shift_tiled_modulo(const T* x, T* y, int planes,
                       int first,  // channel of the first plane
                       int channels, int height, int width, int direction) {
  shift_tiles(x, y, planes, first, channels, height, width, direction, 3, 1);
}
#endif
