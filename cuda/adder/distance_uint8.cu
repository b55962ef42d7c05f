// distance_uint8: distance on words of four bytes, exact in int32
//
// Fixes: distance spends two instructions and eight bytes on every number
// Cost: 6_uint8's
#define PARAMETERS const SUM* none
#define Y SUM
#define AT(place) 0
#define RESULT(sum, filter, at) (sum)

#include "6_uint8.cu"
