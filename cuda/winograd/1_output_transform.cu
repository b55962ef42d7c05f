// 1_output_transform: a thread owns M x M pixels and sums A^T m A of the tiles there
//
// Fixes: nothing; the third of three steps, see 1_input_transform
// Cost: F(2x2, 3x3): 16 loads of products, 24 adds and 4 stores per tile and filter; for the
// gradient of x, 4 tiles per block of pixels
//
// y[n, k, ...] gets MATRIX^T m MATRIX of each tile m: SIDE x SIDE pixels from row M*ti - pad_h and
// column M*tj - pad_w on. In the forward pass MATRIX is A and SIDE = M: tiles do not overlap, and
// the sum starts at bias[k], if there is a bias. In the gradient of x MATRIX is B^T and SIDE = t:
// tiles overlap, and a block of pixels gathers from its own tile and those above and to the left,
// always in the same order: no atomic additions.
//
// products (t*t, K, stride) hold only the tiles from first to last. A block of pixels that an
// earlier range has written is accumulated into.
//
// T: float or double. MATRIX: TILE x SIDE numbers, TILE = t.
//
// y: (images, K, H, W). stride: tiles in a row of products. first_row, block_rows: the range of
// rows of pixel blocks, numbered through all images, that have tiles of the launch. tiles: their
// number, places and range, see transform.cuh.
#ifndef T
#define T float
#endif
#ifndef MATRIX
#define MATRIX {{1, 0}, {1, 1}, {1, -1}, {0, -1}}
#define TILE 4
#define SIDE 2
#define M 2
#endif

#include "transform.cuh"

#define OVERLAP ((SIDE - 1) / M)  // tiles above, or left, that overlap a block of pixels

extern "C" __global__ void __launch_bounds__(128)
    winograd_output_transform(const T* products, const T* bias, T* y, const Tiles tiles, int stride,
                              int first_row, int block_rows) {
  const int planes = tiles.planes, height = tiles.size.h, width = tiles.size.w;
  const int rows = tiles.rows, columns = tiles.columns, first = tiles.first, last = tiles.last;
  const int across = columns + OVERLAP;
  const int block = blockIdx.x * blockDim.x + threadIdx.x;
  const int row = first_row + block / across, image = row / (rows + OVERLAP);
  const int ti = row % (rows + OVERLAP), tj = block % across;
  const int earliest = (image * rows + max(ti - OVERLAP, 0)) * columns + max(tj - OVERLAP, 0);
  const int latest = (image * rows + min(ti, rows - 1)) * columns + min(tj, columns - 1);
  if (block >= block_rows * across || latest < first || earliest >= last) return;

  const bool begins = OVERLAP == 0 || earliest >= first;  // not written by an earlier range

  for (int k = blockIdx.y; k < planes; k += gridDim.y) {
    T* const plane = y + ((long long)image * planes + k) * height * width;
    const int top = ti * M - tiles.pad.h, left = tj * M - tiles.pad.w;
    const auto inside = [&](int a, int b) {
      return (unsigned)(top + a) < (unsigned)height && (unsigned)(left + b) < (unsigned)width;
    };
    const T start = begins && bias ? bias[k] : T(0);
    T sum[M][M];
#pragma unroll
    for (int a = 0; a < M; ++a)
#pragma unroll
      for (int b = 0; b < M; ++b)
        sum[a][b] = begins         ? start
                    : inside(a, b) ? plane[(long long)(top + a) * width + left + b]
                                   : T(0);
#pragma unroll
    for (int di = OVERLAP; di >= 0; --di)
#pragma unroll
      for (int dj = OVERLAP; dj >= 0; --dj) {
        const int i = ti - di, j = tj - dj, tile = (image * rows + i) * columns + j;
        if (i < 0 || i >= rows || j < 0 || j >= columns || tile < first || tile >= last) continue;
        const T* const product = products + (long long)k * stride + (tile - first);
#pragma unroll
        for (int s = 0; s < TILE; ++s) {  // a column of the tile, and its transform
          T down[M];
#pragma unroll
          for (int a = 0; a < M; ++a) down[a] = NOTHING;
#pragma unroll
          for (int r = 0; r < TILE; ++r) {
            const T value = product[(long long)(r * TILE + s) * planes * stride];
#pragma unroll
            for (int a = 0; a < M; ++a)
              if (a + di * M < SIDE) add(down[a], matrix[r][a + di * M], value);
          }
#pragma unroll
          for (int a = 0; a < M; ++a)
#pragma unroll
            for (int b = 0; b < M; ++b)
              if (a + di * M < SIDE && b + dj * M < SIDE)
                add(sum[a][b], matrix[s][b + dj * M], down[a]);
        }
      }
#pragma unroll
    for (int a = 0; a < M; ++a)
#pragma unroll
      for (int b = 0; b < M; ++b)
        if (inside(a, b)) plane[(long long)(top + a) * width + left + b] = sum[a][b];
  }
}
