// 6_uint8: four taps of 8 bits in one instruction, sums exact in int32
//
// Fixes: 5_implicit_conv spends two instructions and eight bytes on every tap
// Cost: a quarter of 5_implicit_conv's loads, and one VABSDIFF4 for 4 of the L terms per output
//
// The tile is 5_implicit_conv's, line for line; only its element changes, to a word that holds four
// channels of the same tap (pack_channels). vabsdiff4 takes the four absolute differences of two
// words and adds them to the sum, in one instruction from sm_75 to sm_103. Only inline PTX reaches
// that form: the intrinsic __vsadu4 costs a separate addition. Architectures without the
// instruction (sm_120) and the emulator take the same sum in two steps.
#define T unsigned int
#define SUM int
#define ADD_TERM add_distances
#if __CUDA_ARCH__ >= 1200
#define BLOCKS (256 / THREADS)  // the four instructions need more registers
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
