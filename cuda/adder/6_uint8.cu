// 6_uint8: four 8-bit taps per instruction, exact int32 sums
//
// Fixes: 5_implicit_conv takes two instructions and eight bytes per tap
// Cost: a quarter of 5_implicit_conv's loads, and one VABSDIFF4 for 4 of the L terms per output
//
// The code is 5_implicit_conv's; an element is a word with four channels of the same tap
// (pack_channels). vabsdiff4 adds the four absolute differences of two words to the sum, in one
// instruction from sm_75 to sm_103. Only inline PTX reaches that form: the intrinsic __vsadu4 costs
// a separate addition. Architectures without the instruction (sm_120) and the emulator compute the
// same sum in two steps.
#define T unsigned int
#define SUM int
#define ADD_TERM add_distances
#if __CUDA_ARCH__ >= 1200
#define BLOCKS (256 / THREADS)  // the replacement sequence needs more registers
#endif

__device__ __forceinline__ int add_distances(int sum, unsigned int x, unsigned int w) {
#if defined(MULFREE_EMULATOR) || __CUDA_ARCH__ >= 1200
  return (int)__dp4a(__vabsdiffu4(x, w), 0x01010101u, (unsigned int)sum);
#else
  unsigned int result;
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(w), "r"(sum));
  return (int)result;
#endif
}

#include "5_implicit_conv.cu"
