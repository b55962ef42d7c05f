// Barriers of a block, and warp collectives.
#pragma once

#define MULFREE_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(MULFREE_HERE) { mulfree_barrier(0, file, line); }
inline int __syncthreads_count(int predicate, MULFREE_HERE) { return mulfree_barrier(predicate, file, line); }
inline int __syncthreads_or(int predicate, MULFREE_HERE) { return mulfree_barrier(predicate, file, line) != 0; }
inline int __syncthreads_and(int predicate, MULFREE_HERE) { return mulfree_barrier(!predicate, file, line) == 0; }

namespace mulfree_emulator {

inline uint64_t together(Collective what, unsigned mask, uint64_t value, const char *file, int line) {
    return mulfree_collective(what, mask, value, 0, file, line);
}

template <class T>
inline uint64_t word_of(T value) {
    static_assert(sizeof(T) <= 8, "matches are of at most 8 bytes");
    uint64_t word = 0;
    __builtin_memcpy(&word, &value, sizeof value);
    return word;
}

// Values wider than a word take several shuffles, as on a GPU.
template <class T>
inline T shuffle(unsigned mask, T value, int source, const char *file, int line,
                 Collective what = Collective::shuffle) {
    uint64_t words[(sizeof(T) + 7) / 8] = {};
    __builtin_memcpy(words, &value, sizeof value);
    for (uint64_t &word : words) word = mulfree_collective(what, mask, word, source, file, line);
    __builtin_memcpy(&value, words, sizeof value);
    return value;
}

}  // namespace mulfree_emulator

inline void __syncwarp(unsigned mask = 0xffffffff, MULFREE_HERE) {
    mulfree_emulator::together(mulfree_emulator::Collective::sync, mask, 0, file, line);
}

// A lane that would read beyond its segment of `width` lanes keeps its own value. That a shift up or
// down reaches beyond the mask at a group's edge is usual, and nobody uses what the lane gets there.
template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, MULFREE_HERE) {
    const int lane = mulfree_lane();
    return mulfree_emulator::shuffle(mask, v, (lane & ~(width - 1)) + (source & (width - 1)), file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, MULFREE_HERE) {
    const int lane = mulfree_lane(), source = lane - static_cast<int>(delta);
    const bool outside = source < (lane & ~(width - 1));
    return mulfree_emulator::shuffle(mask, v, outside ? lane : source, file, line,
                                     mulfree_emulator::Collective::shift);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, MULFREE_HERE) {
    const int lane = mulfree_lane(), source = lane + static_cast<int>(delta);
    const bool outside = source > (lane | (width - 1));
    return mulfree_emulator::shuffle(mask, v, outside ? lane : source, file, line,
                                     mulfree_emulator::Collective::shift);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, MULFREE_HERE) {
    const int lane = mulfree_lane(), source = lane ^ lane_mask;
    return mulfree_emulator::shuffle(mask, v, source > (lane | (width - 1)) ? lane : source, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MULFREE_HERE) {
    return mulfree_emulator::together(mulfree_emulator::Collective::ballot, mask, predicate != 0, file, line);
}
inline int __any_sync(unsigned mask, int predicate, MULFREE_HERE) {
    return mulfree_emulator::together(mulfree_emulator::Collective::any, mask, predicate != 0, file, line);
}
inline int __all_sync(unsigned mask, int predicate, MULFREE_HERE) {
    return mulfree_emulator::together(mulfree_emulator::Collective::all, mask, predicate != 0, file, line);
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T v, MULFREE_HERE) {
    const uint64_t word = mulfree_emulator::word_of(v);
    return mulfree_emulator::together(mulfree_emulator::Collective::match_any, mask, word, file, line);
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T v, int *predicate, MULFREE_HERE) {
    const uint64_t word = mulfree_emulator::word_of(v);
    const unsigned r =
        mulfree_emulator::together(mulfree_emulator::Collective::match_all, mask, word, file, line);
    *predicate = r != 0;
    return r;
}
inline unsigned __activemask(MULFREE_HERE) { return mulfree_active_mask(file, line); }

#define MULFREE_REDUCE(name, T, what)                                                                       \
    inline T name(unsigned mask, T v, MULFREE_HERE) {                                                       \
        return static_cast<T>(mulfree_emulator::together(mulfree_emulator::Collective::what, mask,          \
                                                         static_cast<uint32_t>(v), file, line));            \
    }
MULFREE_REDUCE(__reduce_add_sync, int, add)
MULFREE_REDUCE(__reduce_add_sync, unsigned, add)
MULFREE_REDUCE(__reduce_min_sync, int, min_signed)
MULFREE_REDUCE(__reduce_min_sync, unsigned, min_unsigned)
MULFREE_REDUCE(__reduce_max_sync, int, max_signed)
MULFREE_REDUCE(__reduce_max_sync, unsigned, max_unsigned)
MULFREE_REDUCE(__reduce_and_sync, unsigned, bit_and)
MULFREE_REDUCE(__reduce_or_sync, unsigned, bit_or)
MULFREE_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef MULFREE_REDUCE
