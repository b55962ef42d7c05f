// From the distance between a window and a filter to an output.
//
// Both operands are bits, and their distance is the number of those that differ. For signs, bit 1
// for x >= 0, the product of two is 1 where bits agree and -1 where they differ, so a sum of
// `terms` products is terms - 2 distance; a tap outside the image is neither sign, and has no term.
// For thermometer codes, v ones for the value v, the distance is the sum of |x - w|, and a tap
// outside is a 0 that counts. ADDER selects the latter.
//
// Y: the element type of y; SCALE: the type in which a sum of signs is multiplied by its filter's
// scale.
#ifdef ADDER
#define Y int
#define PER_FILTER int  // the bias
#else
#ifndef Y
#define Y float
#endif
#ifndef SCALE
#define SCALE float
#endif
#define PER_FILTER SCALE  // the scale
#endif

#include <cuda_fp16.h>

#include "../geometry.cuh"

// `values` has one per filter, or is null for a scale of 1 or a bias of 0.
__device__ __forceinline__ Y answer(int distance, int terms, const PER_FILTER* values, int filter) {
#ifdef ADDER
  return (values ? values[filter] : 0) - distance;
#else
  const SCALE sum = (SCALE)(terms - 2 * distance);
  return (Y)(values ? values[filter] * sum : sum);
#endif
}

// The range, begin to end, of the rows (or columns) first, first + dilation, ... inside 0 to size.
struct Range {
  int begin, end;
};

__device__ __forceinline__ Range range_inside(int first, int kernel, int dilation, int size) {
  Range inside = {0, kernel};
  while (inside.begin < inside.end && first + inside.begin * dilation < 0) ++inside.begin;
  while (inside.begin < inside.end && first + (inside.end - 1) * dilation >= size) --inside.end;
  return inside;
}

// The part of a window inside the image, for output (row, column).
struct Inside {
  Range rows, columns;
};

__device__ __forceinline__ Inside taps_inside(const Convolution& shape, int row, int column) {
#ifdef ADDER
  return {{0, shape.kernel.h}, {0, shape.kernel.w}};
#else
  const int h = row * shape.stride.h - shape.pad.h, w = column * shape.stride.w - shape.pad.w;
  return {range_inside(h, shape.kernel.h, shape.dilation.h, shape.size.h),
          range_inside(w, shape.kernel.w, shape.dilation.w, shape.size.w)};
#endif
}

__device__ __forceinline__ int count(const Inside& taps) {
  return (taps.rows.end - taps.rows.begin) * (taps.columns.end - taps.columns.begin);
}

// The ones in a rectangle of taps, as one to four signed sums of ones.cu: calls add(place, sign),
// where place is a row of filters.
template <class Add>
__device__ __forceinline__ void corners(const Inside& taps, const Convolution& shape,
                                        const Add& add) {
  const int width = shape.kernel.w + 1, begin = taps.rows.begin * width;
  const int end = taps.rows.end * width;
  add(end + taps.columns.end, 1);
  if (taps.rows.begin) add(begin + taps.columns.end, -1);
  if (taps.columns.begin) add(end + taps.columns.begin, -1);
  if (taps.rows.begin && taps.columns.begin) add(begin + taps.columns.begin, 1);
}

template <class Word>
__device__ __forceinline__ int ones_in(Word word) {
  return sizeof(Word) == 8 ? __popcll(word) : __popc((unsigned int)word);
}
