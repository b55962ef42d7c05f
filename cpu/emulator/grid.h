// Launches whose blocks wait for one another: at a barrier of the grid a block is put aside, with what
// its threads have on their stacks and in shared memory, and the next one runs in its place.
#pragma once

#include <unistd.h>

#include "meetings.h"
#include "memory.h"

namespace mulfree_emulator {

// Which cells of a shared variable the block had written.
struct Written {
    bool known;
    unsigned shift;
    size_t first;  // of its flags
};

struct PausedBlock {
    uint64_t block;
    uint32_t x, y, z;
    unsigned exited;
    uint32_t interval;
    Rows<Meeting> meetings;
    Rows<char> bytes;       // threads, stacks, shared memory, in this order
    Rows<Written> written;  // by region
    Rows<char> flags;
    size_t arena_used;
};

inline Rows<PausedBlock> paused_blocks, resuming_blocks;

MULFREE_RARE inline void forget(PausedBlock &p) {
    for (Meeting &m : p.meetings) m.knowledge.free();
    p.meetings.free();
    p.bytes.free();
    p.written.free();
    p.flags.free();
}

MULFREE_RARE inline void forget_paused_blocks() {
    for (PausedBlock &p : paused_blocks) forget(p);
    for (PausedBlock &p : resuming_blocks) forget(p);
    paused_blocks.clear();
    resuming_blocks.clear();
}

inline void keep(Rows<char> &bytes, const void *from, size_t size) {
    if (bytes.count + size > bytes.capacity) {
        bytes.capacity = 2 * (bytes.count + size);
        bytes.data = static_cast<char *>(std::realloc(bytes.data, bytes.capacity));
    }
    std::memcpy(bytes.data + bytes.count, from, size);
    bytes.count += size;
}

inline char *stack_of(unsigned thread) { return now.launch->stacks + thread * now.launch->stack_size; }

// The part of a waiting thread's stack that is in use, up to its top.
inline char *used_stack(unsigned thread) {
    char *low = lowest_used(now.threads[thread].fiber);
    return low ? low : stack_of(thread) + sysconf(_SC_PAGESIZE);  // all above the guard
}

inline size_t file_scope_used() {
    if (!file_scope_count) return 0;
    const SharedVariable &last = file_scope[file_scope_count - 1];
    return static_cast<size_t>(static_cast<char *>(last.place) + last.size - (arena() + arena_size / 2));
}

MULFREE_RARE inline void pause_block(PausedBlock &p) {
    p = {};
    p.block = now.block;
    p.x = now.block_x, p.y = now.block_y, p.z = now.block_z;
    p.exited = now.exited;
    p.interval = now.interval;
    p.meetings = meetings;
    meetings = {};
    keep(p.bytes, now.threads, now.thread_count * sizeof(Thread));
    for (unsigned i = 0; i < now.thread_count; ++i)
        if (now.threads[i].state != State::exited) {
            char *low = used_stack(i);
            keep(p.bytes, low, static_cast<size_t>(stack_of(i) + now.launch->stack_size - low));
        }
    p.arena_used = static_cast<size_t>(arena_end - arena());
    keep(p.bytes, arena(), p.arena_used);
    keep(p.bytes, arena() + arena_size / 2, file_scope_used());
    for (const Region &r : regions) {
        const Shadow &s = shadows[r.shadow];
        Written w{r.shared && s.cells, s.shift, p.flags.count};
        for (size_t i = 0; w.known && i <= s.size >> s.shift; ++i) p.flags.add(s.cells[i].write.time >= now.block_start);
        p.written.add(w);
    }
}

MULFREE_RARE inline void resume_block(PausedBlock &p) {
    now.block = p.block;
    now.block_x = p.x, now.block_y = p.y, now.block_z = p.z;
    now.exited = p.exited;
    now.interval = p.interval;
    now.waiting = now.at_grid = 0;
    now.barrier_diverged = false;
    close_meetings();
    meetings.free();
    meetings = p.meetings;
    p.meetings = {};
    for (Meeting &m : meetings) m.knowledge.clear();  // the whole grid has met since
    const char *from = p.bytes.data;
    const auto take = [&from](void *to, size_t size) {
        std::memcpy(to, from, size);
        from += size;
    };
    take(now.threads, now.thread_count * sizeof(Thread));
    for (unsigned i = 0; i < now.thread_count; ++i)
        if (now.threads[i].state != State::exited) {
            char *low = used_stack(i);
            take(low, static_cast<size_t>(stack_of(i) + now.launch->stack_size - low));
            now.threads[i].state = State::ready;
        }
    take(arena(), p.arena_used);
    take(arena() + arena_size / 2, file_scope_used());
    begin_block_of_time();
    for (size_t k = 0; k < regions.count; ++k) {
        const Region &r = regions[k];
        Shadow &s = shadows[r.shadow];
        if (!r.shared || !s.cells) continue;
        const Written w = k < p.written.count ? p.written[k] : Written{};
        for (size_t i = 0; i <= s.size >> s.shift; ++i) {
            s.cells[i] = {};
            if (!w.known || !p.flags[w.first + (i >> (w.shift - s.shift))]) continue;
            s.cells[i].write.time = now.block_start;
            s.cells[i].write.kind = uint8_t(Access::write);
        }
    }
    forget(p);
    now.floor = ++now.time;
    for (uint32_t &floor : now.warp_floor) floor = now.time;
}

}  // namespace mulfree_emulator
