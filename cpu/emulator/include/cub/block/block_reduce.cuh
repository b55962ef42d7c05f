// cub::BlockReduce: each warp by shuffles, then thread 0 over what the warps have, as CUB's
// BLOCK_REDUCE_WARP_REDUCTIONS; the other algorithms are this one here. Only thread 0 gets the result.
#pragma once

#include <cub/mulfree.cuh>
#include <mulfree/push_letters.h>

namespace cub {

enum BlockReduceAlgorithm {
    BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY, BLOCK_REDUCE_RAKING, BLOCK_REDUCE_WARP_REDUCTIONS,
    BLOCK_REDUCE_WARP_REDUCTIONS_NONDETERMINISTIC
};

template <class T, int X, BlockReduceAlgorithm = BLOCK_REDUCE_WARP_REDUCTIONS, int Y = 1, int Z = 1, int = 0>
class BlockReduce {
    using Block = mulfree::Block<X, Y, Z>;

  public:
    struct TempStorage {
        mulfree::Uninitialized<T, Block::warps> of_warps;
    };
    BlockReduce() : storage_(mulfree::own_storage<TempStorage>()) {}
    BlockReduce(TempStorage &storage) : storage_(storage) {}

    template <class Op>
    MULFREE_INLINE T Reduce(T v, Op op, int valid, MULFREE_HERE) {
        const Block block(file, line);
        const mulfree::Lanes<32> lanes(file, line);
        if (valid > Block::size) valid = Block::size;
        v = lanes.reduce(v, block.last_lane(valid), op);
        if (lanes.rank == 0) storage_.of_warps[block.warp] = v;
        __syncthreads(file, line);
        if (block.rank != 0) return mulfree::undefined<T>();
        for (int warp = 1; 32 * warp < valid; ++warp) v = op(v, storage_.of_warps[warp]);
        return v;
    }
    template <class Op>
    MULFREE_INLINE T Reduce(T v, Op op, MULFREE_HERE) { return Reduce(v, op, Block::size, file, line); }
    template <int N, class Op>
    MULFREE_INLINE T Reduce(T (&items)[N], Op op, MULFREE_HERE) {
        T v = items[0];
        for (int i = 1; i < N; ++i) v = op(v, items[i]);
        return Reduce(v, op, file, line);
    }
    MULFREE_INLINE T Sum(T v, MULFREE_HERE) { return Reduce(v, cub::Sum(), file, line); }
    MULFREE_INLINE T Sum(T v, int valid, MULFREE_HERE) { return Reduce(v, cub::Sum(), valid, file, line); }
    template <int N>
    MULFREE_INLINE T Sum(T (&items)[N], MULFREE_HERE) { return Reduce(items, cub::Sum(), file, line); }

  private:
    TempStorage &storage_;
};

}  // namespace cub

#include <mulfree/pop_letters.h>
