// im2col: copy the pixels under every place of the sliding window into the columns of a matrix
//
// Fixes: nothing; it turns a convolution into a matrix product, at kh*kw times the memory
// Cost: one load per element of cols that is inside x, one store for four elements of at most 4
// bytes where rows allow, else for one; two divisions a thread, none in the loops
//
// cols[n, (c, i, j), (oh, ow)] = x[n, c, oh*sh - ph + i*dh, ow*sw - pw + j*dw], or 0 outside x.
// A thread takes four output pixels through all taps of a channel: neighbours, which it stores at
// once, or pixels a block's width apart, so that neighbouring threads store what lies together. A
// launch takes a range of the output pixels, so that the matrix of a large image need not exist at
// once. The row and image strides of cols are arguments too: the launcher lays the images of a
// chunk side by side when a product over all of them follows.
//
// T is any type of the element's size: the values are moved as bits. STORE: elements in one store,
// 4 or 1; 4 divides `count` and both strides, and cols is aligned to it.
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
        const T* row[EACH];  // where the window's row begins, be it outside
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
