// take: gathers a batch of the epoch's plan from a data set of bytes: crops, flips, normalises
//
// Fixes: preparing batches on the host, which copies four bytes per value to the device
// Cost: one byte read and one element written per value; 16 bytes of plan and a label per image
//
// y[n, c, h, w] = (image[c, h + dy, v + dx] - mean[c]) / std[c] with v = W - 1 - w if the image is
// flipped, else w, and pixels of 0 outside of it. Image, dy, dx and flip are row n of the plan's
// rows for this batch, whose number is read from progress.cuh, so that the launch is the same in
// every step.
//
// T: float or double, the elements of mean, std and y.
//
// images: (all images, channels, height, width). labels: one of each. plan: rows of the epoch, a
// batch after the other, each of batch_size. count: images of this batch. y: (count, channels,
// height, width). shown: labels of the batch.
#ifndef T
#define T float
#endif

#include "progress.cuh"

struct alignas(16) Move {
  int image, dy, dx, flip;
};

extern "C" __global__ void take(const unsigned char* images, const int* labels, const Move* plan,
                                const T* mean, const T* std, const Progress* progress, T* y,
                                int* shown,  // labels of the batch
                                int count, int batch_size, int channels, int height, int width) {
  const int pixel = blockIdx.x * blockDim.x + threadIdx.x, plane = height * width;
  if (pixel >= plane) return;
  const int row = pixel / width, column = pixel % width;
  plan += (long long)progress->step * batch_size;

  for (int n = blockIdx.z; n < count; n += gridDim.z) {
    const Move move = plan[n];
    const int h = row + move.dy, w = (move.flip ? width - 1 - column : column) + move.dx;
    const bool inside = h >= 0 && h < height && w >= 0 && w < width;
    for (int c = blockIdx.y; c < channels; c += gridDim.y) {
      const long long from = (long long)move.image * channels + c;
      const T value = inside ? (T)images[(from * height + h) * width + w] : (T)0;
      y[((long long)n * channels + c) * plane + pixel] = (value - mean[c]) / std[c];
    }
    if (pixel == 0 && blockIdx.y == 0) shown[n] = labels[move.image];
  }
}
