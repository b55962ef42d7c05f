// cub::BlockScan: each warp by shuffles, then every thread over the warps before its own, as CUB's
// BLOCK_SCAN_WARP_SCANS; the other algorithms are this one here.
#pragma once

#include <cub/mulfree.cuh>
#include <mulfree/push_letters.h>

namespace cub {

enum BlockScanAlgorithm { BLOCK_SCAN_RAKING, BLOCK_SCAN_RAKING_MEMOIZE, BLOCK_SCAN_WARP_SCANS };

// What is scanned, and where to, is one value a thread or an array of them.
template <class T, int X, BlockScanAlgorithm = BLOCK_SCAN_RAKING, int Y = 1, int Z = 1, int = 0>
class BlockScan {
    using Block = mulfree::Block<X, Y, Z>;
    // What the first warp calls with the sum of the block, to learn what came before.
    template <class Function>
    using Prefix = std::enable_if_t<std::is_invocable_v<Function &, T>>;
    struct Nothing {};

  public:
    struct TempStorage {
        mulfree::Uninitialized<T, Block::warps> of_warps;
        mulfree::Uninitialized<T, 1> prefix;
    };
    BlockScan() : storage_(mulfree::own_storage<TempStorage>()) {}
    BlockScan(TempStorage &storage) : storage_(storage) {}

    // Without an initial value the first output is undefined. The aggregate is without it, too.

    template <class In, class Out, class Op>
    MULFREE_INLINE void ExclusiveScan(const In &in, Out &out, Op op, MULFREE_HERE) {
        scan<false>(in, out, op, Nothing{}, file, line);
    }
    template <class In, class Out, class Op>
    MULFREE_INLINE void ExclusiveScan(const In &in, Out &out, Op op, T &aggregate, MULFREE_HERE) {
        aggregate = scan<false>(in, out, op, Nothing{}, file, line);
    }
    template <class In, class Out, class Op>
    MULFREE_INLINE void ExclusiveScan(const In &in, Out &out, T initial, Op op, MULFREE_HERE) {
        scan<false>(in, out, op, value(initial), file, line);
    }
    template <class In, class Out, class Op>
    MULFREE_INLINE void ExclusiveScan(const In &in, Out &out, T initial, Op op, T &aggregate, MULFREE_HERE) {
        aggregate = scan<false>(in, out, op, value(initial), file, line);
    }
    template <class In, class Out, class Op, class Function, class = Prefix<Function>>
    MULFREE_INLINE void ExclusiveScan(const In &in, Out &out, Op op, Function &prefix, MULFREE_HERE) {
        scan<false>(in, out, op, asked(prefix, file, line), file, line);
    }
    template <class In, class Out>
    MULFREE_INLINE void ExclusiveSum(const In &in, Out &out, MULFREE_HERE) {
        scan<false>(in, out, cub::Sum(), value(T()), file, line);
    }
    template <class In, class Out>
    MULFREE_INLINE void ExclusiveSum(const In &in, Out &out, T &aggregate, MULFREE_HERE) {
        aggregate = scan<false>(in, out, cub::Sum(), value(T()), file, line);
    }
    template <class In, class Out, class Function, class = Prefix<Function>>
    MULFREE_INLINE void ExclusiveSum(const In &in, Out &out, Function &prefix, MULFREE_HERE) {
        scan<false>(in, out, cub::Sum(), asked(prefix, file, line), file, line);
    }

    template <class In, class Out, class Op>
    MULFREE_INLINE void InclusiveScan(const In &in, Out &out, Op op, MULFREE_HERE) {
        scan<true>(in, out, op, Nothing{}, file, line);
    }
    template <class In, class Out, class Op>
    MULFREE_INLINE void InclusiveScan(const In &in, Out &out, Op op, T &aggregate, MULFREE_HERE) {
        aggregate = scan<true>(in, out, op, Nothing{}, file, line);
    }
    template <class In, class Out, class Op>
    MULFREE_INLINE void InclusiveScan(const In &in, Out &out, T initial, Op op, MULFREE_HERE) {
        scan<true>(in, out, op, value(initial), file, line);
    }
    template <class In, class Out, class Op>
    MULFREE_INLINE void InclusiveScan(const In &in, Out &out, T initial, Op op, T &aggregate, MULFREE_HERE) {
        aggregate = scan<true>(in, out, op, value(initial), file, line);
    }
    template <class In, class Out, class Op, class Function, class = Prefix<Function>>
    MULFREE_INLINE void InclusiveScan(const In &in, Out &out, Op op, Function &prefix, MULFREE_HERE) {
        scan<true>(in, out, op, asked(prefix, file, line), file, line);
    }
    template <class In, class Out>
    MULFREE_INLINE void InclusiveSum(const In &in, Out &out, MULFREE_HERE) {
        scan<true>(in, out, cub::Sum(), Nothing{}, file, line);
    }
    template <class In, class Out>
    MULFREE_INLINE void InclusiveSum(const In &in, Out &out, T &aggregate, MULFREE_HERE) {
        aggregate = scan<true>(in, out, cub::Sum(), Nothing{}, file, line);
    }
    template <class In, class Out, class Function, class = Prefix<Function>>
    MULFREE_INLINE void InclusiveSum(const In &in, Out &out, Function &prefix, MULFREE_HERE) {
        scan<true>(in, out, cub::Sum(), asked(prefix, file, line), file, line);
    }

  private:
    template <bool inclusive, class In, class Out, class Op, class Initial>
    MULFREE_INLINE T scan(const In &in, Out &out, Op op, Initial initial, const char *file, int line) {
        constexpr int n = std::is_array_v<In> ? std::extent_v<In> : 1;
        const T *from = nullptr;
        T *to = nullptr;
        if constexpr (std::is_array_v<In>) from = in, to = out;
        else to = &out;
        const auto item = [&](int i) __attribute__((always_inline)) -> T {
            if constexpr (std::is_array_v<In>) return from[i];
            else return in;
        };
        T mine = item(0);
        for (int i = 1; i < n; ++i) mine = op(mine, item(i));
        bool known = Block(file, line).rank > 0;
        T aggregate = mine, sum = before(mine, op, aggregate, file, line);
        if constexpr (!std::is_same_v<Initial, Nothing>) {
            const T first = initial(aggregate);
            sum = known ? op(first, sum) : first;
            known = true;
        }
        for (int i = 0; i < n; ++i) {
            const T exclusive = known ? sum : mulfree::undefined<T>(), v = item(i);
            sum = known ? op(sum, v) : v;
            known = true;
            to[i] = inclusive ? sum : exclusive;
        }
        return aggregate;
    }

    // Of all threads before this one; undefined for the first.
    template <class Op>
    MULFREE_INLINE T before(T mine, Op op, T &aggregate, const char *file, int line) {
        const Block block(file, line);
        const mulfree::Lanes<32> lanes(file, line);
        const T sum = lanes.scan(mine, op), in_warp = lanes.from(lanes.rank - 1, sum);
        if (lanes.rank == block.last_lane()) storage_.of_warps[block.warp] = sum;
        __syncthreads(file, line);
        T result = lanes.rank ? in_warp : mulfree::undefined<T>();
        aggregate = storage_.of_warps[0];
        for (int warp = 1; warp < Block::warps; ++warp) {
            if (warp == block.warp) result = lanes.rank ? op(aggregate, in_warp) : aggregate;
            aggregate = op(aggregate, storage_.of_warps[warp]);
        }
        return result;
    }

    static auto value(T initial) {
        return [=](T) { return initial; };
    }

    template <class Function>
    MULFREE_INLINE auto asked(Function &prefix, const char *file, int line) {
        return [&prefix, file, line, this](T aggregate) __attribute__((always_inline)) {
            const Block block(file, line);
            if (block.warp == 0) {
                const T first = prefix(aggregate);
                if (block.rank == 0) storage_.prefix[0] = first;
            }
            __syncthreads(file, line);
            return storage_.prefix[0];
        };
    }

    TempStorage &storage_;
};

}  // namespace cub

#include <mulfree/pop_letters.h>
