// Warp collectives: the last lane to arrive computes the results of all.
#pragma once

#include "ordering.h"

namespace mulfree_emulator {

inline unsigned lanes_of(unsigned warp) {
    unsigned left = now.thread_count - warp * warp_size;
    return left < warp_size ? left : warp_size;
}

MULFREE_RARE inline uint64_t fold(Collective what, unsigned mask, Thread *lanes) {
    bool first = true;
    uint32_t r = 0;
    for (unsigned i = 0; i < warp_size; ++i) {
        if (!(mask >> i & 1)) continue;
        const uint32_t v = static_cast<uint32_t>(lanes[i].value);
        const int32_t a = static_cast<int32_t>(r), b = static_cast<int32_t>(v);
        if (first) r = v;
        else switch (what) {
            case Collective::add: r += v; break;
            case Collective::min_signed: r = a < b ? r : v; break;
            case Collective::max_signed: r = a > b ? r : v; break;
            case Collective::min_unsigned: r = r < v ? r : v; break;
            case Collective::max_unsigned: r = r > v ? r : v; break;
            case Collective::bit_and: r &= v; break;
            case Collective::bit_or: r |= v; break;
            default: r ^= v;
        }
        first = false;
    }
    return r;
}

inline uint64_t collective_result(const Thread &lane, unsigned present, Thread *lanes) {
    unsigned equal = 0, truth = 0;
    for (unsigned i = 0; i < warp_size; ++i) {
        if (!(present >> i & 1)) continue;
        equal |= unsigned(lanes[i].value == lane.value) << i;
        truth |= unsigned(lanes[i].value != 0) << i;
    }
    switch (lane.what) {
        case Collective::sync: return 0;
        case Collective::shuffle:
        case Collective::shift:
            return present >> lane.source & 1 ? lanes[lane.source].value : from_nowhere;
        case Collective::ballot: return truth;
        case Collective::any: return truth != 0;
        case Collective::all: return truth == present;
        case Collective::match_any: return equal;
        case Collective::match_all: return equal == present ? present : 0;
        default: return fold(lane.what, present, lanes);
    }
}

// Says if of all lanes that shuffle none reads from one of them: for some to reach beyond is usual.
inline void check_sources(const Thread *lanes, unsigned arrived) {
    const Thread &first = lanes[__builtin_ctz(arrived)];
    if (first.what != Collective::shuffle && first.what != Collective::shift) return;
    for (unsigned i = 0; i < warp_size; ++i)
        if (arrived >> i & 1 && arrived >> lanes[i].source & 1) return;
    Finding f = here(Kind::divergent_collective);
    f.text = "no lane reads from a lane that takes part in the shuffle: the others are not in the mask, have "
             "returned, or are beyond the block";
    f.thread = static_cast<uint32_t>(&first - now.threads);
    f.file = first.file;
    f.line = first.line;
    report(f);
}

// Completes every collective of the warp for which all lanes still alive have arrived. An exited lane is not a fault:
// it is not waited for on a GPU.
inline void finish_collectives(unsigned warp) {
    Thread *lanes = now.threads + warp * warp_size;
    unsigned alive = 0, waiting = 0;
    for (unsigned i = 0; i < lanes_of(warp); ++i) {
        alive |= unsigned(lanes[i].state != State::exited) << i;
        waiting |= unsigned(lanes[i].state == State::in_collective) << i;
    }
    while (waiting) {
        const unsigned first = __builtin_ctz(waiting);
        const unsigned mask = lanes[first].mask & alive;
        unsigned arrived = 0;
        for (unsigned i = 0; i < warp_size; ++i)
            if (waiting >> i & 1 && lanes[i].mask == lanes[first].mask && lanes[i].what == lanes[first].what)
                arrived |= 1u << i;
        waiting &= ~arrived;
        if (arrived != mask) continue;
        const bool orders = lanes[first].what == Collective::sync;
        if (orders) {
            now.busy = true;  // it may allocate: no signal may leave from here
            pass_warp_barrier(warp, arrived, arrived == alive);
            now.busy = false;
        }
        for (unsigned i = 0; i < warp_size; ++i) {
            if (!(arrived >> i & 1)) continue;
            lanes[i].result = collective_result(lanes[i], arrived, lanes);
            lanes[i].state = State::ready;
            if (orders) lanes[i].passed = {lanes[i].file, lanes[i].line};
            lanes[i].steps = arrived == alive ? 0 : lanes[i].steps + 1;
        }
        if (now.launch->check) check_sources(lanes, arrived);
    }
}

// A lane of the warp that waits for the current thread in a collective which that one, about to end,
// has passed by; null if there is none. `if (i >= n) return;` before the collective is common and
// works, but here a lane may arrive before the next one has even started. So a lane passed by only if
// it did more than those that wait: wrote once more, or took part in another collective.
inline const Thread *deserted_lane() {
    const unsigned lane = now.current % warp_size, warp = now.current / warp_size;
    const Thread *lanes = now.threads + warp * warp_size, *deserted = nullptr;
    for (unsigned i = 0; i < lanes_of(warp); ++i) {
        const Thread &other = lanes[i];
        if (other.state != State::in_collective || !(other.mask >> lane & 1)) continue;
        if (other.steps >= lanes[lane].steps) return nullptr;
        if (!deserted) deserted = &other;
    }
    return deserted;
}

// Releases the lanes that wait in __activemask(), one group per source line.
inline bool converge(unsigned warp) {
    Thread *lanes = now.threads + warp * warp_size;
    bool any = false;
    for (unsigned i = 0; i < lanes_of(warp); ++i) {
        if (lanes[i].state != State::converging) continue;
        unsigned group = 0;
        for (unsigned j = i; j < lanes_of(warp); ++j)
            if (lanes[j].state == State::converging && lanes[j].line == lanes[i].line) group |= 1u << j;
        for (unsigned j = i; j < lanes_of(warp); ++j) {
            if (!(group >> j & 1)) continue;
            lanes[j].result = group;
            lanes[j].state = State::ready;
        }
        any = true;
    }
    return any;
}

}  // namespace mulfree_emulator
