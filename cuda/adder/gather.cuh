// The shared part of the implicit products: a matrix whose columns are gathered, never stored.
//
// Row l of the matrix is a tap of the sum: a plane of the image and a place in the window. Column p
// is an output pixel. Element (l, p) is one pixel of the image, or `outside`. What belongs to
// the row alone is a Tap, decoded once a step into shared memory; what belongs to the column alone
// is a Pixel, decoded once a thread; putting the two together takes two adds and two comparisons.

#include "../vector.cuh"

struct alignas(16) Tap {
  int offset;  // from a pixel's own element to the tap's
  int h, w;    // the same, as rows and columns of the image
  int weight;  // where the tap's weight is, for a kernel that has to look
};

struct Pixel {
  int offset;  // of its own element, which may lie outside the image
  int h, w;
};

#define NOWHERE (-(1 << 30))  // as h, it puts a tap or a pixel outside every image

template <class Element>
__device__ __forceinline__ Element gather(const Element* image, const Pixel& pixel, const Tap& tap,
                                          int height, int width, Element outside) {
  const bool inside = (unsigned)(pixel.h + tap.h) < (unsigned)height &&
                      (unsigned)(pixel.w + tap.w) < (unsigned)width;
  return inside ? image[pixel.offset + tap.offset] : outside;
}
