// 1_input_transform: a thread reads a tile of one channel and writes B^T d B, optionally with ReLU
//
// Fixes: nothing; the first of three steps, before a matrix product per position and
//   1_output_transform
// Cost: F(2x2, 3x3): 16 loads, 32 adds and 16 stores per tile of 4 outputs and channel; V is 4
// times as large as x, written here and read by the product
//
// v[i*t + j, c, p] = (MATRIX d MATRIX^T)[i, j] of tile first + p, whose SIDE x SIDE pixels d begin
// at row M*ti - pad_h and column M*tj - pad_w; tiles are numbered through rows and images. Pixels
// outside the image are 0, and so are the tiles that pad v to `count`. relu, in the Winograd-ReLU
// layer, applies a ReLU to V. Neighbouring threads have neighbouring tiles. The gradient uses the
// same kernel: dM = A g A^T, with A as MATRIX and tiles of M x M pixels.
//
// T: float or double. MATRIX: TILE x SIDE numbers, TILE = t.
//
// x: (images, channels, H, W). v: (t*t, channels, count). tiles: their number, places and range,
// see transform.cuh.
#ifndef T
#define T float
#endif
#ifndef MATRIX
#define MATRIX {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}}
#define TILE 4
#define SIDE 4
#define M 2
#endif

#include "transform.cuh"

extern "C" __global__ void __launch_bounds__(128)
    winograd_input_transform(const T* x, T* v, const Tiles tiles, int relu, int count) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x, tile = tiles.first + p;
  if (p >= count) return;
  const int channels = tiles.planes, height = tiles.size.h, width = tiles.size.w;
  const int row = tile / tiles.columns, image = row / tiles.rows;
  const int top = row % tiles.rows * M - tiles.pad.h, left = tile % tiles.columns * M - tiles.pad.w;

  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* const plane = x + ((long long)image * channels + c) * height * width;
    T sum[TILE][TILE];
#pragma unroll
    for (int i = 0; i < TILE; ++i)
#pragma unroll
      for (int j = 0; j < TILE; ++j) sum[i][j] = NOTHING;
#pragma unroll
    for (int b = 0; b < SIDE; ++b) {  // a column of pixels, and its transform
      T down[TILE];
#pragma unroll
      for (int i = 0; i < TILE; ++i) down[i] = NOTHING;
#pragma unroll
      for (int a = 0; a < SIDE; ++a) {
        const int h = top + a, w = left + b;
        const bool inside = tile < tiles.count && (unsigned)h < (unsigned)height &&
                            (unsigned)w < (unsigned)width;
        const T pixel = inside ? plane[(long long)h * width + w] : T(0);
#pragma unroll
        for (int i = 0; i < TILE; ++i) add(down[i], matrix[i][a], pixel);
      }
#pragma unroll
      for (int i = 0; i < TILE; ++i)
#pragma unroll
        for (int j = 0; j < TILE; ++j) add(sum[i][j], matrix[j][b], down[i]);
    }
    T* const target = v + (long long)c * count + p;
#pragma unroll
    for (int i = 0; i < TILE; ++i)
#pragma unroll
      for (int j = 0; j < TILE; ++j)  // NaN is not below 0, and propagates
        target[(long long)(i * TILE + j) * channels * count] =
            relu && sum[i][j] < 0 ? T(0) : sum[i][j];
  }
}
