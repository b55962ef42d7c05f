// 3_table: 16 bytes of contiguous outputs per thread, without shared memory, shifts from a table
//
// Fixes: 2_tiled_generic has idle threads, barriers and divisions, copies one element at a time,
// and supports only modulo shifts
// Cost: one store of 16 bytes; for it one load of 16 bytes where the shifted address is aligned,
// else a load for each element of 4 bytes or more that is inside the image, or five of 4 bytes for
// all smaller ones; three divisions by multiplication, no shared memory and no barrier
//
// y[n, c, h, w] = x[n, c, h + dh[c], w + dw[c]], 0 outside. (The adjoint is the same kernel with
// the opposite shifts.) Threads are numbered through all planes, whatever their size, so that every
// store is aligned: a thread's outputs may be in several rows and planes. Within one plane they
// have one offset, dh * width + dw, and `inside` has a bit for each that is inside the image: for
// rows one range of the plane, for columns one range per row.
//
// T is any type of the element's size: values are copied as bits. x and y are aligned to 16 bytes
// and of equal size; strided handles all other cases.
//
// x and y: the planes of a launch. shifts: dh and dw of each channel. planes: sizes and divisors,
// see table.cuh.
#ifndef T
#define T float
#endif

#include "../vector.cuh"
#include "table.cuh"

#define THREADS 256
#define EACH (16 / (int)sizeof(T))

// The bits from .. to - 1, from <= to, clamped to the outputs.
__device__ __forceinline__ unsigned range(int from, int to) {
  return (1u << min(max(to, 0), EACH)) - (1u << min(max(from, 0), EACH));
}

// Elements of 4 bytes or more are loaded one by one; smaller ones as words, which are realigned.
template <class Element, bool whole = sizeof(Element) >= 4>
struct Segment {
  Vector<Element, EACH> moved{};

  __device__ __forceinline__ void take(const Element* x, int start, int offset, unsigned inside) {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (inside >> i & 1) moved.at[i] = (x + start)[offset + i];
  }
};

template <class Element>
struct Segment<Element, false> {
  static constexpr int packed = 4 / sizeof(Element), bits = 8 * sizeof(Element);
  static constexpr unsigned all = (1u << packed) - 1;
  static constexpr unsigned element = (1u << bits) - 1;       // the bits of the first
  static constexpr unsigned ones = 0xffffffffu / element;     // the lowest bit of each
  static constexpr unsigned spread = packed == 4 ? 0x204081 : 0x8001;  // bit i times it: ones' i-th

  Vector<unsigned, 4> moved{};

  __device__ __forceinline__ void take(const Element* x, int start, int offset, unsigned inside) {
    const int cut = offset & (packed - 1);
    const unsigned* words = (const unsigned*)x + start / packed + (offset - cut) / packed;
    const unsigned needed = inside << cut;
    unsigned word[5];
#pragma unroll
    for (int i = 0; i < 5; ++i)
      word[i] = needed >> i * packed & all ? words[i] : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned kept = ((inside >> i * packed & all) * spread & ones) * element;
      moved.at[i] |= __funnelshift_r(word[i], word[i + 1], cut * bits) & kept;
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    shift_table(const T* x, T* y, const Shift* shifts, const Planes planes) {
  const int channels = planes.channels, height = planes.size.h, width = planes.size.w;
  const int start = (int)(blockIdx.x * THREADS + threadIdx.x) * EACH;
  if (start >= planes.total) return;

  const int image = height * width, plane = divide(start, planes.by_plane);
  int c = planes.first + plane;
  c -= divide(c, planes.by_channels) * channels;
  int p = start - plane * image;  // position of output 0 in the plane; negative in later planes
  int row = divide(p, planes.by_width) * width - p;  // index of an output that begins a row

  Segment<T> segment;
  for (; -p < EACH; p -= image, row = -p) {
    const Shift shift = shifts[c];
    const int down = shift.h * width, offset = down + shift.w;
    unsigned columns = 0;
    for (; row < EACH; row += width)
      columns |= range(row + max(-shift.w, 0), row + width - max(shift.w, 0));
    const unsigned inside = columns & range(max(-down, 0) - p, image - max(down, 0) - p);
    if (offset % EACH == 0 && inside == range(0, EACH))
      segment.moved = *(const decltype(segment.moved)*)(x + start + offset);
    else
      segment.take(x, start, offset, inside);
    if (++c == channels) c = 0;
  }
  *(decltype(segment.moved)*)(y + start) = segment.moved;
}
