// 7_half2: two 16-bit taps per instruction, accumulated in float32 every 16 terms
//
// Fixes: 5_implicit_conv takes two instructions and eight bytes per tap
// Cost: half of 5_implicit_conv's loads; per output L packed additions for L terms, and L / 8
// conversions and additions in float32
//
// The code is 5_implicit_conv's; an element is a word with two channels of the same tap
// (pack_channels). Each step sums the two channels separately in half precision, from 0, and adds
// both to a float32 accumulator.
//
// A difference and each of the additions after it has a relative rounding error of at most u =
// 2^-11, and the first addition, to 0, none. So the error of an output is at most DEPTH u (1 +
// DEPTH u), 0.8 % for a DEPTH of 16, of its sum of |x - w|, plus float32 rounding. A difference or
// a step's sum above 65504 overflows to infinity; this cannot happen if no |x| or |w| exceeds 2000.
//
// On sm_90 the compiler turns half of the additions into HADD2 and half into HFMA2.MMA, by 1, on
// another pipe: by issue rate up to 1.7 times 5_implicit_conv's speed, an estimate. HADD2 alone
// would gain nothing, and a mix of three to one measured 1.34 times on an H100 (docs/gpu.md).
#include <cuda_fp16.h>

#define T __half2
#define SUM float
#define PART __half2
#define ADD_TERM(part, x, w) __hadd2(part, __habs2(__hsub2(x, w)))
#define ADD_PART(sum, part) ((sum) + (__low2float(part) + __high2float(part)))
#define BLOCKS ((EACH_F * EACH_P > 32 ? 256 : 384) / THREADS)  // for two sums per output

#include "5_implicit_conv.cu"
