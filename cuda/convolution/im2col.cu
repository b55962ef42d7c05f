// im2col: copy the pixels under every place of the sliding window into the columns of a matrix
//
// Fixes: nothing; it turns a convolution into a matrix product, at kh*kw times the memory
// Cost: one load and one store per element of cols, no arithmetic on the data
//
// cols[n, (c, i, j), (oh, ow)] = x[n, c, oh*sh - ph + i*dh, ow*sw - pw + j*dw], or 0 outside x.
// Neighbouring threads write neighbouring output pixels of one row, so stores are coalesced and,
// at stride 1, loads are too. A launch takes a range of the output pixels, so that the matrix of a
// large image need not exist at once. The row and image strides of cols are arguments too: the
// launcher lays the images of a chunk side by side when a product over all of them follows.
//
// T is any type of the element's size: the values are moved as bits.
#ifndef T
#define T float
#endif

extern "C" __global__ void im2col(const T* x, T* cols, int images, int channels, int height,
                                  int width, int kernel_h, int kernel_w, int stride_h, int stride_w,
                                  int pad_h, int pad_w, int dilation_h, int dilation_w, int out_h,
                                  int out_w, long long first, long long count,
                                  long long row_stride, long long image_stride) {
  const long long column = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (column >= count) return;
  const long long pixel = first + column;
  const int top = (int)(pixel / out_w) * stride_h - pad_h;
  const int left = (int)(pixel % out_w) * stride_w - pad_w;

  const int taps = kernel_h * kernel_w;
  for (int n = blockIdx.z; n < images; n += gridDim.z) {
    for (int row = blockIdx.y; row < channels * taps; row += gridDim.y) {
      const int c = row / taps, i = row % taps / kernel_w, j = row % kernel_w;
      const int h = top + i * dilation_h, w = left + j * dilation_w;
      T value{};
      if (h >= 0 && h < height && w >= 0 && w < width)
        value = x[(((long long)n * channels + c) * height + h) * width + w];
      cols[n * image_stride + row * row_stride + column] = value;
    }
  }
}
