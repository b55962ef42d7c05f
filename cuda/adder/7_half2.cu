// 7_half2: two taps of 16 bits in one instruction, their sums handed on to float32 every 16 terms
//
// Fixes: 5_implicit_conv spends two instructions and eight bytes on every tap
// Cost: half of 5_implicit_conv's loads; per output L packed additions for L terms, and L / 8
// conversions and additions in float32
//
// The tile is 5_implicit_conv's, line for line; only its element changes, to a word that holds two
// channels of the same tap (pack_channels). A step adds up each of the two by itself, in half
// precision, from 0; then both go to a sum in float32.
//
// A difference and each of the additions after it rounds by at most u = 2^-11 of its result, and
// the first addition, to 0, not at all. So an output is off by at most DEPTH u (1 + DEPTH u), 0.8 %
// for a DEPTH of 16, of its sum of |x - w|, beside what float32 rounds. What exceeds 65504, a
// difference or a step's sum, is infinite, and the output with it; that cannot be where no |x| or
// |w| exceeds 2000.
//
// On sm_90 the compiler makes half of the additions HADD2 and half HFMA2.MMA, by 1, which is another
// pipe: issue allows up to 1.7 times 5_implicit_conv's speed, an estimate. HADD2 alone would allow
// nothing, and the mix of three to one that an H100 has timed 1.34 times (docs/gpu.md).
#include <cuda_fp16.h>

#define T __half2
#define SUM float
#define PART __half2
#define ADD_TERM(part, x, w) __hadd2(part, __habs2(__hsub2(x, w)))
#define ADD_PART(sum, part) ((sum) + (__low2float(part) + __high2float(part)))
#define BLOCKS ((EACH_F * EACH_P > 32 ? 256 : 384) / THREADS)  // for two sums an output

#include "5_implicit_conv.cu"
