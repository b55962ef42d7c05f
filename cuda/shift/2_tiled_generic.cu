// 2_tiled_generic: the tile for any kernel size and dilation, with the halo they need
//
// Fixes: 1_tiled_modulo supports only 3x3 with dilation 1
// Cost: the tile writes (16 - 2 halo)^2 outputs, halo = dilation * (k / 2): 2.0 threads and 1.7
// loads per output at 5x5, 16 threads and 14 loads at 7x7 with dilation 2, on planes of 56x56; six
// divisions per thread
//
// The code is 1_tiled_modulo's, with the kernel size and the dilation as arguments: dw = dilation *
// (c % k - k / 2), dh = dilation * (c / k % k - k / 2). The halo is at most 7.
//
// x and y: `planes` planes of height x width, the channels of all images one after another; the
// first plane is of channel `first`. direction: 1, or -1 for the opposite shift. kernel_size: k.
// shift_tiles of 1_tiled_modulo has the same parameters.
#define GENERIC

#include "1_tiled_modulo.cu"

extern "C" __global__ void __launch_bounds__(SIDE* SIDE)
    shift_tiled_generic(const T* x, T* y, int planes,
                        int first,  // channel of the first plane
                        int channels, int height, int width, int direction, int kernel_size,
                        int dilation) {
  shift_tiles(x, y, planes, first, channels, height, width, direction, kernel_size, dilation);
}
