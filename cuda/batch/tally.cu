// tally: accumulates a batch's loss and correct predictions, and advances to the next batch
//
// Fixes: reading them on the host, which synchronises in every step
// Cost: one thread
//
// A loss is a mean over `count` images. The batch of the first that is not finite is recorded.
//
// T: float or double, of loss. RIGHT: of the number of correct predictions.
//
// right: the number of correct predictions. progress: see progress.cuh.
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
