// col2im: accumulate each column entry into the pixel it was copied from, the adjoint of im2col
//
// Fixes: nothing; a scatter would need atomic additions, whose order changes from run to run
// Cost: at most kh*kw loads and adds per pixel of x, one store
//
// A gather: each thread owns one pixel of x and visits the windows that contain it. Tap (i, j) of
// output (oh, ow) is in row h if oh*sh - ph + i*dh = h, so the thread checks, tap by tap, whether
// such an oh exists. The order of additions is fixed: the result is deterministic.
//
// x[n, c, h, w] = sum of cols[n, (c, i, j), (oh, ow)] over all i, j, oh, ow with h = oh*sh - ph +
// i*dh and w = ow*sw - pw + j*dw. x: (images, channels, H, W). cols: (images, channels * kh * kw,
// OH * OW). shape: their geometry.
#ifndef T
#define T float
#endif

#include "../geometry.cuh"

extern "C" __global__ void col2im(const T* cols, T* x, const Convolution shape) {
  const int channels = shape.channels;  // all of them, one group
  const Pair size = shape.size, kernel = shape.kernel, stride = shape.stride, pad = shape.pad;
  const Pair dilation = shape.dilation, out = shape.out;
  const long long plane = (long long)size.h * size.w, out_plane = (long long)out.h * out.w;
  const long long pixel = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (pixel >= plane) return;
  const int h = (int)(pixel / size.w) + pad.h, w = (int)(pixel % size.w) + pad.w;

  for (int n = blockIdx.z; n < shape.images; n += gridDim.z) {
    for (int c = blockIdx.y; c < channels; c += gridDim.y) {
      const long long image_channel = (long long)n * channels + c;
      T sum = 0;
      for (int i = 0; i < kernel.h; ++i) {
        const int down = h - i * dilation.h, oh = down / stride.h;
        if (down < 0 || down % stride.h || oh >= out.h) continue;
        for (int j = 0; j < kernel.w; ++j) {
          const int right = w - j * dilation.w, ow = right / stride.w;
          if (right < 0 || right % stride.w || ow >= out.w) continue;
          const long long row = (image_channel * kernel.h + i) * kernel.w + j;
          sum += cols[row * out_plane + (long long)oh * out.w + ow];
        }
      }
      x[image_channel * plane + pixel] = sum;
    }
  }
}
