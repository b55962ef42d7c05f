// cub::WarpScan: by shuffles.
#pragma once

#include <cub/mulfree.cuh>
#include <mulfree/push_letters.h>

namespace cub {

template <class T, int Size = 32>
class WarpScan {
    using Lanes = mulfree::Lanes<Size>;

  public:
    struct TempStorage {};
    WarpScan(TempStorage &) {}

    template <class Op>
    MULFREE_INLINE void InclusiveScan(T v, T &out, Op op, T &aggregate, MULFREE_HERE) {
        const Lanes lanes(file, line);
        out = lanes.scan(v, op);
        aggregate = lanes.from(Size - 1, out);
    }
    template <class Op>
    MULFREE_INLINE void InclusiveScan(T v, T &out, Op op, MULFREE_HERE) { out = Lanes(file, line).scan(v, op); }
    MULFREE_INLINE void InclusiveSum(T v, T &out, MULFREE_HERE) { InclusiveScan(v, out, cub::Sum(), file, line); }
    MULFREE_INLINE void InclusiveSum(T v, T &out, T &aggregate, MULFREE_HERE) {
        InclusiveScan(v, out, cub::Sum(), aggregate, file, line);
    }

    // Without an initial value the first lane's output is undefined.
    template <class Op>
    MULFREE_INLINE void Scan(T v, T &inclusive, T &exclusive, Op op, MULFREE_HERE) {
        const Lanes lanes(file, line);
        const T sum = lanes.scan(v, op), before = lanes.from(lanes.rank - 1, sum);
        inclusive = sum;
        exclusive = lanes.rank ? before : mulfree::undefined<T>();
    }
    template <class Op>
    MULFREE_INLINE void Scan(T v, T &inclusive, T &exclusive, T initial, Op op, MULFREE_HERE) {
        const Lanes lanes(file, line);
        const T sum = op(initial, lanes.scan(v, op)), before = lanes.from(lanes.rank - 1, sum);
        inclusive = sum;
        exclusive = lanes.rank ? before : initial;
    }
    template <class Op>
    MULFREE_INLINE void ExclusiveScan(T v, T &out, Op op, MULFREE_HERE) {
        T inclusive = v;
        Scan(v, inclusive, out, op, file, line);
    }
    template <class Op>
    MULFREE_INLINE void ExclusiveScan(T v, T &out, T initial, Op op, MULFREE_HERE) {
        T inclusive = v;
        Scan(v, inclusive, out, initial, op, file, line);
    }
    // The aggregate is without the initial value.
    template <class Op>
    MULFREE_INLINE void ExclusiveScan(T v, T &out, Op op, T &aggregate, MULFREE_HERE) {
        T inclusive = v;
        Scan(v, inclusive, out, op, file, line);
        aggregate = Broadcast(inclusive, Size - 1, file, line);
    }
    template <class Op>
    MULFREE_INLINE void ExclusiveScan(T v, T &out, T initial, Op op, T &aggregate, MULFREE_HERE) {
        ExclusiveScan(v, out, op, aggregate, file, line);
        out = mulfree_lane() % Size ? op(initial, out) : initial;
    }
    MULFREE_INLINE void ExclusiveSum(T v, T &out, MULFREE_HERE) { ExclusiveScan(v, out, T(), cub::Sum(), file, line); }
    MULFREE_INLINE void ExclusiveSum(T v, T &out, T &aggregate, MULFREE_HERE) {
        ExclusiveScan(v, out, T(), cub::Sum(), aggregate, file, line);
    }
    MULFREE_INLINE T Broadcast(T v, unsigned source, MULFREE_HERE) {
        return Lanes(file, line).from(static_cast<int>(source), v);
    }
};

}  // namespace cub

#include <mulfree/pop_letters.h>
