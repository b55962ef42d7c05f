// Shared by the implicit convolutions: a matrix whose columns are gathered, never stored.
//
// Row l of the matrix is a tap of the sum: a plane of the image and a position in the window.
// Column p is an output pixel. Element (l, p) is one pixel of the image, or `outside`. The data of
// a row is a Tap, decoded once per step into shared memory; that of a column a Pixel, decoded once
// per thread; combining them takes two adds and two comparisons. If the window has at most 16 x 15
// positions, a pixel can have a bit for each of its rows and columns outside the image, and one AND
// replaces the comparisons: WindowTap and WindowPixel.

#include "../vector.cuh"

struct alignas(16) Tap {
  int offset;  // from a pixel's base element to the tap's
  int h, w;    // the same, as rows and columns of the image
  int weight;  // offset of the tap's weight, for kernels that need it
};

struct Pixel {
  int offset;  // of its base element, which may be outside the image
  int h, w;
};

#define NOWHERE (-(1 << 30))  // as h, puts a tap or a pixel outside every image

template <class Element>
__device__ __forceinline__ Element gather(const Element* image, const Pixel& pixel, const Tap& tap,
                                          int height, int width, Element outside) {
  const bool inside = (unsigned)(pixel.h + tap.h) < (unsigned)height &&
                      (unsigned)(pixel.w + tap.w) < (unsigned)width;
  return inside ? image[pixel.offset + tap.offset] : outside;
}

struct alignas(8) WindowTap {
  int offset;
  unsigned int place;  // the bits of its row and of its column in the window
};

template <class Element>
struct WindowPixel {
  const Element* own;
  unsigned int outside;  // the bits of the rows and columns outside the image
};

// own + offset in one instruction. The compiler would add base and offsets anew for every load.
template <class Element>
__device__ __forceinline__ const Element* at_offset(const Element* own, int offset) {
#ifdef MULFREE_EMULATOR
  return own + offset;
#else
  const Element* address;
  asm("mad.wide.s32 %0, %1, %2, %3;"
      : "=l"(address)
      : "r"(offset), "n"((int)sizeof(Element)), "l"(own));
  return address;
#endif
}

#define ROW_BIT(i) (1u << (i))
#define COLUMN_BIT(j) (1u << (16 + (j)))
#define NO_PLACE (1u << 31)  // for a tap past the end: outside for every pixel

// The bits of the rows (or columns) first, first + dilation, ... that are outside of 0 to size.
__device__ __forceinline__ unsigned int outside_bits(int first, int kernel, int dilation, int size) {
  unsigned int bits = 0;
  for (int i = 0; i < kernel; ++i)
    if ((unsigned)(first + i * dilation) >= (unsigned)size) bits |= 1u << i;
  return bits;
}

template <class Element>
__device__ __forceinline__ Element gather(const Element*, const WindowPixel<Element>& pixel,
                                          const WindowTap& tap, int, int, Element outside) {
  return pixel.outside & tap.place ? outside : __ldg(at_offset(pixel.own, tap.offset));
}
