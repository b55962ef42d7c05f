// The inner loop of the plain shift: masked copies. It is bound by memory, and on planes of a few hundred bytes by
// the overhead per copy, so all channels of a unit of work are one call.
#pragma once

#include "../engine/isa.hpp"

namespace mulfree::MULFREE_ISA {

// At most half a line: every unaligned vector of a whole line would cross a line boundary.
constexpr index MOVE_BYTES = VECTOR_BYTES < 32 ? VECTOR_BYTES : 32;

// to = from & mask. Intel's processors stall on every line outside the L1 cache that they are about to overwrite, and
// a copy takes up to three times as long: with WAITS lines are prefetched well ahead. They also stall on 4K aliasing,
// a load after a store to an address with the same low twelve bits: so if addresses of `to` are shortly after those
// of `from` the copy runs backwards.
template <bool WAITS>
inline void copy_masked(const std::uint8_t* from, const std::uint8_t* mask, std::uint8_t* to, index bytes) {
    constexpr index LINE = 64, PAGE = 4096, FAR = 8 * LINE;
    if (bytes < MOVE_BYTES) {
        for (index i = 0; i < bytes; ++i) to[i] = from[i] & mask[i];
        return;
    }
    const auto copy = [&](index i) {
        typedef std::uint8_t Vector __attribute__((vector_size(MOVE_BYTES)));
        Vector x, m;
        __builtin_memcpy(&x, from + i, MOVE_BYTES);
        __builtin_memcpy(&m, mask + i, MOVE_BYTES);
        x &= m;
        __builtin_memcpy(to + i, &x, MOVE_BYTES);
    };
    const index last = bytes - MOVE_BYTES;
    const index after = index(std::uintptr_t(to) - std::uintptr_t(from)) & (PAGE - 1);
    if (WAITS && after > 0 && after < FAR) {
        const index next = larger(bytes, FAR);  // pieces are copied forwards
        for (index i = last; i > 0; i -= MOVE_BYTES) {
            if (i % LINE < MOVE_BYTES) prefetch_write(to, i + next);
            copy(i);
        }
        copy(0);
    } else {
        for (index i = 0; i < last; i += MOVE_BYTES) {
            if (WAITS && i % LINE < MOVE_BYTES) prefetch_write(to, i + FAR);
            copy(i);
        }
        copy(last);
    }
}

template <bool WAITS>
inline index move_planes(const PlaneMoves& p, const std::uint8_t* from, index channel_bytes, std::uint8_t* to,
                         index first, index end) {
    const index pieces = ceil_div(p.bytes, p.piece_bytes);
    const std::uint8_t* const* mask = p.masks + first * pieces;
    index c = first;
    for (; c < end; ++c, from += channel_bytes, to += p.bytes) {
        const std::uint8_t* seen = from + p.offset[c];
        if (seen < p.first || seen > p.last) break;
        for (index at = 0; at < p.bytes; at += p.piece_bytes)
            copy_masked<WAITS>(seen + at, *mask++, to + at, smaller(p.piece_bytes, p.bytes - at));
    }
    return c;
}

inline index move_planes(const PlaneMoves& p, const std::uint8_t* from, index channel_bytes, std::uint8_t* to,
                         index first, index end) {
#if defined(__x86_64__)
    if (__builtin_cpu_is("amd")) return move_planes<false>(p, from, channel_bytes, to, first, end);
#endif
    return move_planes<true>(p, from, channel_bytes, to, first, end);
}

}  // namespace mulfree::MULFREE_ISA
