// 2_register_tile: the adder's implicit convolution on words of bits, limited by the bit counts
//
// Fixes: 1_naive loads both operands of every XOR from global memory
// Cost: L / F + L / P global loads, (L / EACH_F + L / EACH_P) / (16 bytes) shared loads and L XORs
// and counts per output
//
// The code is the adder's 5_implicit_conv, on 32-bit words: a LOP3, a POPC and half an addition
// each. POPC's throughput is 16 lanes per clock and multiprocessor, a quarter of LOP3's and an
// eighth of FADD's, so the limit is 512 bits per clock.
//
// Where a tap is outside the image, x has no bits, and those of w are counted as differences: the
// sums of ones.cu give their number.
//
// Y, SCALE, ADDER: as in answer.cuh. The tile: as in 5_implicit_conv. `tap_terms`: channels per
// group; shape.channels is its words.
#define T unsigned int
#define BLOCKS (256 / THREADS)  // more registers per thread: few warps saturate POPC

#include "answer.cuh"

#define SUM int
#define ADD_TERM(sum, x, w) ((sum) + ones_in((x) ^ (w)))
#define adder_conv binary_conv
#define PARAMETERS const int *sums, const PER_FILTER *values, int tap_terms
#define AT(place) taps_inside(shape, (place) / shape.out.w, (place) % shape.out.w)
#define RESULT(sum, filter, at) result(sum, filter, at, sums, values, tap_terms, shape)

__device__ __forceinline__ Y result(int distance, int filter, const Inside& taps, const int* sums,
                                    const PER_FILTER* values, int tap_terms,
                                    const Convolution& shape) {
#ifndef ADDER
  const Inside window = {{0, shape.kernel.h}, {0, shape.kernel.w}};
  if (count(taps) < count(window)) {
    const auto ones = [&](const Inside& taps) {
      int sum = 0;
      corners(taps, shape, [&](int place, int sign) {
        sum += sign * sums[place * shape.groups * shape.filters + filter];
      });
      return sum;
    };
    distance -= ones(window) - ones(taps);
  }
#endif
  return answer(distance, count(taps) * tap_terms, values, filter);
}

#include "../adder/5_implicit_conv.cu"
