// How far an epoch has come, kept on the device, where the host reads it when it likes to.

struct Progress {
  double loss;   // of all images so far, added up
  double right;  // how many of them the network got right
  double step;   // batches done
  double fault;  // the first whose loss was not finite, or -1; such a loss is the last one added
};
