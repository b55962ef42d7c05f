// cooperative_groups: the block, tiles of a warp, threads that are active together, and partitions of
// these; the grid.
#pragma once

namespace cooperative_groups {

class thread_block {
  public:
    static void sync(MULFREE_HERE) { __syncthreads(file, line); }
    static unsigned thread_rank() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }
    static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned size() { return num_threads(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_dim() { return blockDim; }
    static dim3 dim_threads() { return blockDim; }
    static unsigned meta_group_rank() { return 0; }
    static unsigned meta_group_size() { return 1; }
};

inline thread_block this_thread_block() { return {}; }

// What a GPU needs for tiles of several warps; the runtime keeps what is needed here.
template <unsigned Threads>
struct block_tile_memory {
    char mulfree_unused;
};
template <unsigned Threads>
inline thread_block this_thread_block(block_tile_memory<Threads> &) { return {}; }

// Lanes of one warp: what tiles and coalesced groups have in common.
class lanes {
  public:
    explicit lanes(unsigned mask) : mask_(mask) {}
    unsigned mask() const { return mask_; }
    unsigned thread_rank() const { return __popc(mask_ & ((1u << mulfree_lane()) - 1)); }
    unsigned num_threads() const { return __popc(mask_); }
    unsigned size() const { return num_threads(); }
    void sync(MULFREE_HERE) const { __syncwarp(mask_, file, line); }
    int any(int p, MULFREE_HERE) const { return __any_sync(mask_, p, file, line); }
    int all(int p, MULFREE_HERE) const { return __all_sync(mask_, p, file, line); }
    unsigned ballot(int p, MULFREE_HERE) const { return packed(__ballot_sync(mask_, p, file, line)); }
    template <class T>
    unsigned match_any(T v, MULFREE_HERE) const { return packed(__match_any_sync(mask_, v, file, line)); }
    template <class T>
    unsigned match_all(T v, int &all, MULFREE_HERE) const {
        return packed(__match_all_sync(mask_, v, &all, file, line));
    }
    template <class T>
    T shfl(T v, int rank, MULFREE_HERE) const { return from(v, rank, file, line); }
    template <class T>
    T shfl_up(T v, unsigned n, MULFREE_HERE) const {
        const int rank = static_cast<int>(thread_rank());
        return from(v, rank >= static_cast<int>(n) ? rank - static_cast<int>(n) : rank, file, line);
    }
    template <class T>
    T shfl_down(T v, unsigned n, MULFREE_HERE) const {
        const unsigned rank = thread_rank();
        return from(v, static_cast<int>(rank + n < size() ? rank + n : rank), file, line);
    }
    template <class T>
    T shfl_xor(T v, unsigned n, MULFREE_HERE) const {
        return from(v, static_cast<int>(thread_rank() ^ n), file, line);
    }

  private:
    template <class T>
    T from(T v, int rank, const char *file, int line) const {
        unsigned rest = mask_;
        for (int i = 0; i < rank; ++i) rest &= rest - 1;
        const int lane = rest ? __ffs(static_cast<int>(rest)) - 1 : mulfree_lane();
        return mulfree_emulator::shuffle(mask_, v, lane, file, line);
    }
    unsigned packed(unsigned bits) const {
        unsigned r = 0, n = 0;
        for (int i = 0; i < 32; ++i)
            if (mask_ >> i & 1) r |= (bits >> i & 1) << n++;
        return r;
    }
    unsigned mask_;
};

template <unsigned Size, class Parent = thread_block, bool several_warps = (Size > 32)>
class thread_block_tile : public lanes {
    static_assert((Size & (Size - 1)) == 0, "a tile has 1, 2, 4, ... 1024 threads");

  public:
    thread_block_tile()
        : lanes((Size == 32 ? ~0u : (1u << Size % 32) - 1) << (mulfree_lane() & ~int(Size - 1))) {}
    static constexpr unsigned num_threads() { return Size; }
    static constexpr unsigned size() { return Size; }
    static unsigned meta_group_rank() { return Parent().thread_rank() / Size; }
    static unsigned meta_group_size() { return (Parent().size() + Size - 1) / Size; }
};

// A tile of several warps: threads of the block by ranks.
template <unsigned Size, class Parent>
class thread_block_tile<Size, Parent, true> {
    static_assert(Size <= 1024 && (Size & (Size - 1)) == 0, "a tile has 1, 2, 4, ... 1024 threads");

  public:
    static unsigned thread_rank() { return thread_block::thread_rank() % Size; }
    static constexpr unsigned num_threads() { return Size; }
    static constexpr unsigned size() { return Size; }
    static unsigned meta_group_rank() { return thread_block::thread_rank() / Size; }
    static unsigned meta_group_size() { return (thread_block::size() + Size - 1) / Size; }
    static void sync(MULFREE_HERE) { mulfree_meet(meeting(0), members(), true, file, line); }
    template <class T>
    T shfl(T v, int rank, MULFREE_HERE) const { return exchanged(v, rank, file, line); }
    template <class T>
    T shfl_xor(T v, unsigned mask, MULFREE_HERE) const {
        return exchanged(v, static_cast<int>(thread_rank() ^ mask), file, line);
    }
    int any(int p, MULFREE_HERE) const { return count(p, file, line) != 0; }
    int all(int p, MULFREE_HERE) const { return count(p, file, line) == members(); }

  private:
    // What finds the runtime's meeting of this tile's threads; not an address that is read.
    static const void *meeting(unsigned kind) {
        return reinterpret_cast<const void *>(1ull + 2 * (Size + meta_group_rank()) + kind);
    }
    static unsigned members() {
        const unsigned left = thread_block::size() - meta_group_rank() * Size;
        return left < Size ? left : Size;
    }
    // Orders nothing, as a shuffle does not.
    template <class T>
    MULFREE_UNSEEN static T exchanged(T v, int rank, const char *file, int line) {
        static_assert(sizeof(T) <= 128, "a value of at most 128 bytes");
        char *const first = mulfree_room() + 128 * meta_group_rank() * Size;
        *reinterpret_cast<T *>(first + 128 * thread_rank()) = v;
        mulfree_meet(meeting(1), members(), false, file, line);
        const T other = *reinterpret_cast<const T *>(first + 128 * (static_cast<unsigned>(rank) % Size));
        mulfree_meet(meeting(1), members(), false, file, line);
        return other;
    }
    static unsigned count(int p, const char *file, int line) {
        unsigned n = 0;
        for (unsigned i = 0; i < members(); ++i) n += exchanged(p != 0, static_cast<int>(i), file, line);
        return n;
    }
};

class coalesced_group : public lanes {
  public:
    explicit coalesced_group(unsigned mask, unsigned rank = 0, unsigned count = 1)
        : lanes(mask), rank_(rank), count_(count) {}
    unsigned meta_group_rank() const { return rank_; }
    unsigned meta_group_size() const { return count_; }

  private:
    unsigned rank_, count_;  // among the parts of what it is a part of
};

// Any of these groups.
class thread_group {
  public:
    thread_group(const thread_block &) : mask_(0) {}
    thread_group(const lanes &group) : mask_(group.mask()) {}
    unsigned thread_rank() const { return mask_ ? lanes(mask_).thread_rank() : thread_block::thread_rank(); }
    unsigned num_threads() const { return mask_ ? lanes(mask_).num_threads() : thread_block::num_threads(); }
    unsigned size() const { return num_threads(); }
    void sync(MULFREE_HERE) const { mask_ ? __syncwarp(mask_, file, line) : __syncthreads(file, line); }
    unsigned mask() const { return mask_; }

  private:
    unsigned mask_;  // 0: the block
};

class grid_group {
  public:
    static void sync(MULFREE_HERE) { mulfree_grid_barrier(file, line); }
    static bool is_valid() { return mulfree_is_cooperative(); }
    static unsigned long long block_rank() { return (1ull * blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x; }
    static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long thread_rank() { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
    static unsigned long long num_threads() { return num_blocks() * thread_block::size(); }
    static unsigned long long size() { return num_threads(); }
    static dim3 block_index() { return blockIdx; }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 group_dim() { return gridDim; }
};

inline grid_group this_grid() { return {}; }

template <unsigned Size, class Parent>
inline thread_block_tile<Size, Parent> tiled_partition(const Parent &) { return {}; }

// Lanes of the group by `size` ranks each.
inline coalesced_group tiled_partition(const lanes &group, unsigned size) {
    const unsigned part = group.thread_rank() / size;
    unsigned mask = 0, rank = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (group.mask() >> lane & 1) mask |= unsigned(rank++ / size == part) << lane;
    return coalesced_group(mask, part, (group.size() + size - 1) / size);
}
inline coalesced_group tiled_partition(const thread_block &block, unsigned size) {
    const unsigned lane = mulfree_lane(), first = lane / size * size;
    return coalesced_group((size < 32 ? (1u << size) - 1 : ~0u) << first, block.thread_rank() / size,
                           (block.size() + size - 1) / size);
}
inline thread_group tiled_partition(const thread_group &group, unsigned size) {
    if (group.mask()) return tiled_partition(lanes(group.mask()), size);
    return tiled_partition(thread_block(), size);
}

// Lanes of the group with one label, in the order of the parts' first lanes.
template <class Label>
inline coalesced_group labeled_partition(const lanes &group, Label label, MULFREE_HERE) {
    const unsigned mask = __match_any_sync(group.mask(), label, file, line);
    const unsigned firsts = __ballot_sync(group.mask(), mulfree_lane() == __builtin_ctz(mask), file, line);
    const unsigned before = firsts & ((1u << __builtin_ctz(mask)) - 1);
    return coalesced_group(mask, __popc(before), __popc(firsts));
}
inline coalesced_group binary_partition(const lanes &group, bool predicate, MULFREE_HERE) {
    const unsigned yes = __ballot_sync(group.mask(), predicate, file, line), no = group.mask() & ~yes;
    return coalesced_group(predicate ? yes : no, predicate && no, (yes != 0) + (no != 0));
}

inline coalesced_group coalesced_threads(MULFREE_HERE) { return coalesced_group(__activemask(file, line)); }
template <class Group>
inline void sync(const Group &group, MULFREE_HERE) { group.sync(file, line); }

template <class T = void> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T = void> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T = void> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };
template <class T = void> struct bit_and { T operator()(T a, T b) const { return a & b; } };
template <class T = void> struct bit_or { T operator()(T a, T b) const { return a | b; } };
template <class T = void> struct bit_xor { T operator()(T a, T b) const { return a ^ b; } };

// A butterfly where the group is a power of two, as on a GPU; else in the order of the ranks.
template <class Group, class T, class Function>
inline T reduce(const Group &group, T value, Function f, MULFREE_HERE) {
    const unsigned n = group.size();
    if ((n & (n - 1)) == 0) {
        for (unsigned step = n / 2; step; step /= 2) value = f(value, group.shfl_xor(value, step, file, line));
        return value;
    }
    T result = group.shfl(value, 0, file, line);
    for (unsigned rank = 1; rank < n; ++rank)
        result = f(result, group.shfl(value, static_cast<int>(rank), file, line));
    return result;
}

}  // namespace cooperative_groups
