// strided: 3_table with a stride, its adjoint, and unaligned arrays
//
// Fixes: 3_table copies contiguous elements, and with a stride they are not
// Cost: one load per output inside the image; one store of 16 bytes and three divisions by
// multiplication per thread
//
// y[n, c, h, w] = x[n, c, h*stride_h + dh[c], w*stride_w + dw[c]], 0 outside. With BACKWARD the
// adjoint for a stride, x the gradient of the outputs and y that of the image: y[n, c, h, w] =
// x[n, c, (h - dh[c]) / stride_h, (w - dw[c]) / stride_w] where that leaves no remainder, else 0.
//
// Threads are numbered through all planes, as in 3_table. The first output is located by division,
// the others by increments.
//
// T is any type of the element's size: values are copied as bits. STORE: elements per store, 16
// bytes or one.
//
// x and y: the planes of a launch. shifts: dh and dw of each channel. planes: sizes and divisors,
// see table.cuh.
#ifndef T
#define T float
#endif
#ifndef STORE
#define STORE (16 / (int)sizeof(T))
#endif

#include "../vector.cuh"
#include "table.cuh"

#define THREADS 256
#define EACH (16 / (int)sizeof(T))

extern "C" __global__ void __launch_bounds__(THREADS)
    shift_strided(const T* x, T* y, const Shift* shifts, const Planes planes) {
  const int total = planes.total, channels = planes.channels;
  const Pair size = planes.size, out = planes.out, stride = planes.stride;
  const int start = (int)(blockIdx.x * THREADS + threadIdx.x) * EACH;
  if (start >= total) return;

  const int image = size.h * size.w, plane = divide(start, planes.by_plane);
  const int p = start - plane * out.h * out.w;
  int h = divide(p, planes.by_width), w = p - h * out.w;
  int c = planes.first + plane;
  c -= divide(c, planes.by_channels) * channels;
  Shift shift = shifts[c];
  x += plane * image;

  const T zero{};
  Vector<T, STORE> moved[EACH / STORE];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#ifdef BACKWARD
    const int row = divide(h - shift.h, planes.by_stride[0]);
    const int column = divide(w - shift.w, planes.by_stride[1]);
    const bool met = row * stride.h == h - shift.h && column * stride.w == w - shift.w;
#else
    const int row = h * stride.h + shift.h, column = w * stride.w + shift.w;
    const bool met = true;
#endif
    const bool inside = (unsigned)row < (unsigned)size.h && (unsigned)column < (unsigned)size.w;
    moved[i / STORE].at[i % STORE] =
        met && inside && start + i < total ? x[row * size.w + column] : zero;
    if (++w == out.w) {
      w = 0;
      if (++h == out.h) {
        h = 0;
        x += image;
        if (++c == channels) c = 0;
        shift = shifts[c];
      }
    }
  }

  if (start + EACH <= total) {
#pragma unroll
    for (int i = 0; i < EACH; i += STORE) *(Vector<T, STORE>*)(y + start + i) = moved[i / STORE];
  } else {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (start + i < total) y[start + i] = moved[i / STORE].at[i % STORE];
  }
}
