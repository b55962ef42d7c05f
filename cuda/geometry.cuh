// A convolution as the kernels are told of it: one argument, by value, which launch/arguments.py
// makes. It lies in the constant bank, where a field costs what a scalar does; __grid_constant__
// stands where the compiler would keep a copy in registers, which for grad_w's sums are too few.
#ifndef GEOMETRY
#define GEOMETRY

struct Pair {
  int h, w;
};

struct Convolution {
  int images, groups;
  int channels, filters;  // of one group
  Pair size, kernel, stride, pad, dilation;
  Pair out;   // size of an output
  Pair step;  // stride / gcd(stride, dilation): from a tap to the next that meets the same pixels
};

#endif
