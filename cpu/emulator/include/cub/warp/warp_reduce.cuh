// cub::WarpReduce: by shuffles. Only the first lane gets the result.
#pragma once

#include <cub/mulfree.cuh>
#include <mulfree/push_letters.h>

namespace cub {

template <class T, int Size = 32>
class WarpReduce {
    using Lanes = mulfree::Lanes<Size>;

  public:
    struct TempStorage {};
    WarpReduce(TempStorage &) {}

    template <class Op>
    MULFREE_INLINE T Reduce(T v, Op op, int valid, MULFREE_HERE) {
        const Lanes lanes(file, line);
        v = lanes.reduce(v, valid - 1, op);
        return lanes.rank == 0 ? v : mulfree::undefined<T>();
    }
    template <class Op>
    MULFREE_INLINE T Reduce(T v, Op op, MULFREE_HERE) { return Reduce(v, op, Size, file, line); }
    MULFREE_INLINE T Sum(T v, MULFREE_HERE) { return Reduce(v, cub::Sum(), file, line); }
    MULFREE_INLINE T Sum(T v, int valid, MULFREE_HERE) { return Reduce(v, cub::Sum(), valid, file, line); }
    MULFREE_INLINE T Max(T v, MULFREE_HERE) { return Reduce(v, cub::Max(), file, line); }
    MULFREE_INLINE T Min(T v, MULFREE_HERE) { return Reduce(v, cub::Min(), file, line); }

    // By segments that begin (end) with a lane whose flag is set; each one's first lane gets the result.
    template <class Flag, class Op>
    MULFREE_INLINE T HeadSegmentedReduce(T v, Flag head, Op op, MULFREE_HERE) {
        const Lanes lanes(file, line);
        const unsigned heads = lanes.ballot(head), later = heads >> lanes.rank >> 1;
        v = lanes.reduce(v, later ? lanes.rank + __builtin_ctz(later) : Size - 1, op);
        return head || lanes.rank == 0 ? v : mulfree::undefined<T>();
    }
    template <class Flag, class Op>
    MULFREE_INLINE T TailSegmentedReduce(T v, Flag tail, Op op, MULFREE_HERE) {
        const Lanes lanes(file, line);
        const unsigned tails = lanes.ballot(tail), later = tails >> lanes.rank;
        v = lanes.reduce(v, later ? lanes.rank + __builtin_ctz(later) : Size - 1, op);
        const bool first = lanes.rank == 0 || tails >> (lanes.rank - 1) & 1;
        return first ? v : mulfree::undefined<T>();
    }
    template <class Flag>
    MULFREE_INLINE T HeadSegmentedSum(T v, Flag head, MULFREE_HERE) {
        return HeadSegmentedReduce(v, head, cub::Sum(), file, line);
    }
    template <class Flag>
    MULFREE_INLINE T TailSegmentedSum(T v, Flag tail, MULFREE_HERE) {
        return TailSegmentedReduce(v, tail, cub::Sum(), file, line);
    }
};

}  // namespace cub

#include <mulfree/pop_letters.h>
