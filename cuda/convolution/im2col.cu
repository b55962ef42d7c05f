// im2col: copy every position of the sliding window into a column of a matrix
//
// Fixes: nothing; it turns a convolution into a matrix product, at kh*kw times the memory
// Cost: one load per element of cols that is inside x, one store for four elements of at most 4
// bytes where rows allow, else for one; two divisions per thread, none in the loops
//
// cols[n, (c, i, j), (oh, ow)] = x[n, c, oh*sh - ph + i*dh, ow*sw - pw + j*dw], or 0 outside x.
// A thread copies all taps of a channel for four output pixels: contiguous ones, with one store, or
// pixels a block's width apart, for coalesced stores. A launch covers a range of output pixels, so
// that the matrix of a large image need not be stored at once. The row and image strides of cols
// are arguments: the launcher places the images of a chunk side by side for a product over all of
// them.
//
// T is any type of the element's size: values are copied as bits. STORE: elements per store, 4 or
// 1; 4 must divide `count` and both strides, and cols be aligned to it.
//
// x: (images, channels, H, W). shape: the geometry. first, count: the range of output pixels; the
// first is column 0 of cols. row_stride, image_stride: elements from a row (c, i, j) of cols to the
// next, and from an image to the next.
#ifndef T
#define T float
#endif
#ifndef STORE
#define STORE 4
#endif

#include "../geometry.cuh"
#include "../vector.cuh"

#define EACH 4

extern "C" __global__ void im2col(const T* x, T* cols, const Convolution shape, long long first,
                                  long long count, long long row_stride, long long image_stride) {
  const int channels = shape.channels;  // all of them, one group
  const Pair size = shape.size, kernel = shape.kernel, stride = shape.stride, pad = shape.pad;
  const Pair dilation = shape.dilation, out = shape.out;
  const long long column =
      blockIdx.x * (long long)blockDim.x * EACH + threadIdx.x * STORE;  // of the first pixel
  if (column >= count) return;
  const int apart = STORE == EACH ? 1 : blockDim.x;

  int top[EACH], left[EACH];
  const long long pixel = first + column;
  int oh = (int)(pixel / out.w), ow = (int)(pixel % out.w);
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    top[k] = oh * stride.h - pad.h;
    left[k] = ow * stride.w - pad.w;
    oh += apart / out.w;
    ow += apart % out.w;
    if (ow >= out.w) {
      ow -= out.w;
      ++oh;
    }
  }

  for (int n = blockIdx.z; n < shape.images; n += gridDim.z) {
    for (int c = blockIdx.y; c < channels; c += gridDim.y) {
      const T* plane = x + ((long long)n * channels + c) * size.h * size.w;
      T* to = cols + n * image_stride + (long long)c * kernel.h * kernel.w * row_stride + column;
      for (int i = 0; i < kernel.h; ++i) {
        const T* row[EACH];  // begin of the window's row, possibly outside
        unsigned end[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
          const int h = top[k] + i * dilation.h;
          row[k] = plane + ((long long)h * size.w + left[k]);
          const bool wanted = STORE == EACH || column + k * apart < count;
          end[k] = wanted && (unsigned)h < (unsigned)size.h ? size.w : 0;
        }
#pragma unroll 1
        for (int j = 0; j < kernel.w; ++j, to += row_stride) {
          Vector<T, STORE> moved[EACH / STORE]{};
#pragma unroll
          for (int k = 0; k < EACH; ++k)
            if ((unsigned)(left[k] + j * dilation.w) < end[k])
              moved[k / STORE].at[k % STORE] = row[k][j * dilation.w];
#pragma unroll
          for (int k = 0; k < EACH; k += STORE)
            if (STORE == EACH || column + k * apart < count)
              *(Vector<T, STORE>*)(to + k * apart) = moved[k / STORE];
        }
      }
    }
  }
}
