// col2im: sum each column entry back onto the pixel it was copied from, the adjoint of im2col
//
// Fixes: nothing; a scatter would need atomic additions, whose order changes from run to run
// Cost: at most kh*kw loads and adds per pixel of x, one store
//
// A gather: each thread owns one pixel of x and visits the windows that contain it. Tap (i, j)
// of output (oh, ow) lies on row h where oh*sh - ph + i*dh = h, so the pixel asks, tap by tap,
// whether such an oh exists. Additions always come in the same order: the result is repeatable.
#ifndef T
#define T float
#endif

extern "C" __global__ void col2im(const T* cols, T* x, int images, int channels, int height,
                                  int width, int kernel_h, int kernel_w, int stride_h, int stride_w,
                                  int pad_h, int pad_w, int dilation_h, int dilation_w, int out_h,
                                  int out_w) {
  const long long plane = (long long)height * width, out_plane = (long long)out_h * out_w;
  const long long pixel = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (pixel >= plane) return;
  const int h = (int)(pixel / width) + pad_h, w = (int)(pixel % width) + pad_w;

  for (int n = blockIdx.z; n < images; n += gridDim.z) {
    for (int c = blockIdx.y; c < channels; c += gridDim.y) {
      const long long image_channel = (long long)n * channels + c;
      T sum = 0;
      for (int i = 0; i < kernel_h; ++i) {
        const int down = h - i * dilation_h, oh = down / stride_h;
        if (down < 0 || down % stride_h || oh >= out_h) continue;
        for (int j = 0; j < kernel_w; ++j) {
          const int right = w - j * dilation_w, ow = right / stride_w;
          if (right < 0 || right % stride_w || ow >= out_w) continue;
          const long long row = (image_channel * kernel_h + i) * kernel_w + j;
          sum += cols[row * out_plane + (long long)oh * out_w + ow];
        }
      }
      x[image_channel * plane + pixel] = sum;
    }
  }
}
