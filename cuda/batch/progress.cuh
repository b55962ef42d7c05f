// The progress of an epoch, kept on the device, and read by the host asynchronously.

struct Progress {
  double loss;  // sum over all images so far
  double right;  // number of correct predictions
  double step;   // batches done
  double fault;  // the first batch with a loss that is not finite, or -1; no loss is added after it
};
