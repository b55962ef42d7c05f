// The geometry of a convolution: one argument, passed by value, made by launch/arguments.py. It is
// in constant memory, where a field costs no more than a scalar argument; __grid_constant__ is used
// where the compiler would keep a copy in registers, which grad_w needs for its sums.
#ifndef GEOMETRY
#define GEOMETRY

struct Pair {
  int h, w;
};

struct Convolution {
  int images, groups;
  int channels, filters;  // per group
  Pair size, kernel, stride, pad, dilation;
  Pair out;   // size of an output
  Pair step;  // stride / gcd(stride, dilation): from a tap to the next of the same pixels
};

#endif
