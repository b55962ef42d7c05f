// The operators that CUB's reductions and scans are given.
#pragma once

#include <cuda/functional>

namespace cub {

using Sum = std::plus<>;
using Difference = std::minus<>;
using Division = std::divides<>;
using Equality = std::equal_to<>;
using Inequality = std::not_equal_to<>;
using Max = cuda::maximum<>;
using Min = cuda::minimum<>;

template <class Key, class Value>
struct KeyValuePair {
    Key key;
    Value value;
};

// The pair of the largest value; of equal ones, of the smallest key.
struct ArgMax {
    template <class Pair>
    Pair operator()(const Pair &a, const Pair &b) const {
        return a.value < b.value || (a.value == b.value && b.key < a.key) ? b : a;
    }
};
struct ArgMin {
    template <class Pair>
    Pair operator()(const Pair &a, const Pair &b) const {
        return b.value < a.value || (a.value == b.value && b.key < a.key) ? b : a;
    }
};

}  // namespace cub
