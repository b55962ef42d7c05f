// tally: a batch's loss and right answers are added to the epoch's, and the next batch is due
//
// Fixes: reading them on the host, which then waits for the device in every step
// Cost: one thread
//
// A loss is a mean over `count` images. The first that is not finite is remembered by its batch.
//
// T: float or double, of loss. RIGHT: of the number of right answers.
#ifndef T
#define T float
#endif
#ifndef RIGHT
#define RIGHT int
#endif

#include "progress.cuh"

extern "C" __global__ void tally(const T* loss, const RIGHT* right, Progress* progress, int count) {
  if (progress->fault < 0) {
    progress->loss += (double)*loss * count;
    if (!isfinite(*loss)) progress->fault = progress->step;
  }
  progress->right += (double)*right;
  progress->step += 1;
}
