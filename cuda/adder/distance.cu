// distance: 5_implicit_conv's sums as they are, for rows and windows that are to be near
//
// Fixes: a second pass to change the sign of the results of 5_implicit_conv
// Cost: 5_implicit_conv's
//
// y[n, k, oh, ow] = sum over c, i, j of |x[n, c, h, w] - w[k, c, i, j]|. The distances of rows from
// rows are those of an image of one row, whose pixels they are and whose channels are their numbers.
//
// T and the like: as in 5_implicit_conv. There is no bias; with its place left in, the compiler finds
// the same registers as there, and spills none. 0 - (0 - 0) is 0, and -(0 - 0) would be -0.
#define PARAMETERS const SUM* bias
#define Y SUM
#define AT(place) 0
#define RESULT(sum, filter, at) ((SUM)0 - ((bias ? bias[filter] : (SUM)0) - (sum)))

#include "5_implicit_conv.cu"
