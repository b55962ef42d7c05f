// 3_tensor_cores: 16 filters x 8 pixels x 256 bits per warp instruction
//
// Fixes: 2_register_tile counts 512 bits per clock; tensor cores AND and count 40 times as many
// Cost: per step of 256 bits, a warp loads 32 pixels' bits, and F / 16 times 512 bytes of w, for F / 4
// products of 16x8x256
//
// mma.and.popc counts the bits set in both operands. Those in which they differ are ones(x) +
// ones(w) - 2 both: ones(x) of a window is counted as it is gathered, ones(w) of the taps inside
// comes from ones.cu. The XOR form that some architectures have is two such products on sm_90.
//
// A warp owns 32 pixels and F filters; a lane gathers the window of one pixel, in the order (word,
// tap), which leaves no gap between taps of 8 or 16 bits. A step's 8 words per pixel are stored in
// shared memory as two rows of 4: the 32 words of either row of 8 pixels are the B operand, one
// word per lane. A warp reads only what it has written, so no block barrier is needed. The A
// operand is one load of 16 bytes (fragments.cu). While a step is multiplied the next one is loaded
// to registers.
//
// sm_80 to sm_90 have the instruction. From sm_100 on it is emulated by many others, and before
// sm_80 it does not exist; there, and in the emulator, an equivalent in plain code is used.
//
// Offsets are 32-bit, which bounds the images per launch.
//
// T: unsigned, a word of x, of 8 to 64 bits. TILES: filters per block, in units of 16. Y_VECTOR:
// outputs per store, 1 or 2; OH*OW must be a multiple. LARGE_WINDOW: as in 5_implicit_conv. Y,
// SCALE, ADDER: as in answer.cuh. `tap_terms`: channels per group; shape.channels is its words.
//
// x: (images, groups, words, H, W). w: fragments.cu's. sums: those of ones.cu. values: scale or
// bias, one of each filter, or null. y: (images, groups * filters, OH, OW). shape: their geometry.
#ifndef T
#define T unsigned long long
#endif
#ifndef TILES
#define TILES 4
#endif
#ifndef Y_VECTOR
#define Y_VECTOR 2
#endif
#define WARPS 4
#define F (16 * TILES)
#define P (32 * WARPS)
#define BITS (8 * (int)sizeof(T))
#define STEP (256 / BITS)  // words of x per step
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
#define BLOCKS 4
#else
#define BLOCKS 2  // the replacement code needs registers
#endif

#include "../adder/gather.cuh"
#include "answer.cuh"

// sum += A B: for each row and column the number of bits set in both. Lane 4 r + t has words t and
// t + 4 of rows r and r + 8 of A (a[0], a[2] and a[1], a[3]), those of column r of B, and the sums
// of rows r and r + 8 with columns 2 t and 2 t + 1.
__device__ __forceinline__ void multiply(int (&sum)[4], const Vector<unsigned int, 4>& a,
                                         const unsigned int (&b)[2]) {
#if !defined(MULFREE_EMULATOR) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b[0]), "r"(b[1]));
#else
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int t = 0; t < 4; ++t) {
    unsigned int rows[4], columns[2][2];
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(~0u, a.at[i], 4 * row + t);
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half)
        columns[i][half] = __shfl_sync(~0u, b[half], 4 * (column + i) + t);
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        sum[i] += __popc(rows[i / 2 + 2 * half] & columns[i % 2][half]);
  }
#endif
}

// What the epilogue needs to know of a pixel.
struct alignas(16) Output {
  int place;  // offset in y, of filter 0; negative past the last pixel
  int ones;   // in its window
  int row, column;
};

extern "C" __global__ void __launch_bounds__(P, BLOCKS)
    binary_conv(const T* x, const Vector<unsigned int, 4>* w, const int* sums,
                const PER_FILTER* values, int tap_terms, Y* y,
                const __grid_constant__ Convolution shape) {
  __shared__ Vector<unsigned int, 4> tile[WARPS][2][32];
#ifdef LARGE_WINDOW
  __shared__ Tap taps[WARPS][32];
#else
  __shared__ WindowTap taps[WARPS][32];
#endif
  __shared__ Output outputs[P];

  const int filters = shape.filters;
  const Pair size = shape.size, kernel = shape.kernel, dilation = shape.dilation, out = shape.out;
  const int plane = out.h * out.w, pixels = shape.images * plane;
  const int pixel_tiles = (pixels - 1) / P + 1, filter_tiles = (filters - 1) / F + 1;
  const int p = (int)(blockIdx.x % pixel_tiles) * P + threadIdx.x;
  const int first_f = (int)(blockIdx.x / pixel_tiles % filter_tiles) * F;
  const int group = blockIdx.x / pixel_tiles / filter_tiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int length = shape.channels * kernel.h * kernel.w, steps = (length - 1) / STEP + 1;

  const int n = p / plane, row = p % plane / out.w, column = p % out.w;
  const int h = row * shape.stride.h - shape.pad.h, w_ = column * shape.stride.w - shape.pad.w;
  const int own = ((n * shape.groups + group) * shape.channels * size.h + h) * size.w + w_;
#ifdef LARGE_WINDOW
  const Pixel pixel = {own, p < pixels ? h : NOWHERE, w_};
#else
  const unsigned int outside = outside_bits(h, kernel.h, dilation.h, size.h) |
                               outside_bits(w_, kernel.w, dilation.w, size.w) << 16;
  const WindowPixel<T> pixel = {x + own, p < pixels ? outside | NO_PLACE : ~0u};
#endif

  // A step's bits of the pixel, in flight. A lane decodes a tap for its warp, 32 of them at a time.
  Vector<unsigned int, 4> words[2];
  int ones = 0;
  const auto fetch = [&](int step) {
    const int start = step * STEP % 32;
    if (start == 0) {
      const int l = step * STEP + lane, window = kernel.h * kernel.w;
      const int c = l / window, i = l % window / kernel.w, j = l % kernel.w;
      const int down = i * dilation.h, right = j * dilation.w;
      const int offset = (c * size.h + down) * size.w + right;
      __syncwarp();
#ifdef LARGE_WINDOW
      taps[warp][lane] = {offset, l < length ? down : NOWHERE, right, 0};
#else
      taps[warp][lane] = {offset, l < length ? ROW_BIT(i) | COLUMN_BIT(j) : NO_PLACE};
#endif
      __syncwarp();
    }
    words[0] = words[1] = {};
#pragma unroll
    for (int l = 0; l < STEP; ++l) {
      const T bits = gather(x, pixel, taps[warp][start + l], size.h, size.w, (T)0);
      const int word = l * BITS / 32;
      words[word / 4].at[word % 4] |= (unsigned int)bits << l * BITS % 32;
      if (BITS == 64)
        words[word / 4].at[word % 4 + 1] = (unsigned int)((unsigned long long)bits >> 32);
    }
#pragma unroll
    for (int word = 0; word < 8; ++word) ones += __popc(words[word / 4].at[word % 4]);
  };

  const int w_tiles = (filters - 1) / 16 + 1;  // per group; those beyond the last are not stored
  w += (long long)group * w_tiles * steps * 32 + lane;
  int sum[TILES][4][4] = {};
  fetch(0);
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) tile[warp][half][lane] = words[half];
    __syncwarp();
    if (step + 1 < steps) fetch(step + 1);
    unsigned int b[4][2];
#pragma unroll
    for (int q = 0; q < 4; ++q)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        b[q][half] = tile[warp][half][8 * q + lane / 4].at[lane % 4];
#pragma unroll
    for (int f = 0; f < TILES; ++f) {
      const int w_tile = min(first_f / 16 + f, w_tiles - 1);
      const Vector<unsigned int, 4> a = w[(long long)w_tile * steps * 32];
#pragma unroll
      for (int q = 0; q < 4; ++q) multiply(sum[f][q], a, b[q]);
    }
    __syncwarp();
    w += 32;
  }

  // The filter of the lane's f-th sums; clamped past the end, where nothing is stored.
  const auto filter = [&](int f) {
    return group * filters + min(first_f + 8 * f + lane / 4, filters - 1);
  };
  const int first = n * shape.groups * filters * plane + p % plane;
  outputs[threadIdx.x] = {p < pixels ? first : -1, ones, row, column};
  __syncwarp();
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    Y result[2 * TILES][2];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const Output output = outputs[32 * warp + 8 * q + lane % 4 * 2 + v];
      const Inside taps = taps_inside(shape, output.row, output.column);
      int w_ones[2 * TILES] = {};
      corners(taps, shape, [&](int place, int sign) {
#pragma unroll
        for (int f = 0; f < 2 * TILES; ++f)
          w_ones[f] += sign * sums[place * shape.groups * filters + filter(f)];
      });
#pragma unroll
      for (int f = 0; f < 2 * TILES; ++f) {
        const int distance = output.ones + w_ones[f] - 2 * sum[f / 2][q][f % 2 * 2 + v];
        result[f][v] = answer(distance, count(taps) * tap_terms, values, filter(f));
      }
    }
#pragma unroll
    for (int v = 0; v < 2; v += Y_VECTOR) {
      const int place = outputs[32 * warp + 8 * q + lane % 4 * 2 + v].place;
      if (place < 0) continue;
#pragma unroll
      for (int f = 0; f < 2 * TILES; ++f)
        if (first_f + 8 * f + lane / 4 < filters)
          *(Vector<Y, Y_VECTOR>*)(y + place + filter(f) * plane) =
              *(const Vector<Y, Y_VECTOR>*)&result[f][v];
    }
  }
}
