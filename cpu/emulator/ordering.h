// The happens-before relation, from barriers, fences and atomic accesses.
//
// A clock counts the events that order (barriers, warp barriers, fences), and every access is stamped
// with its time. What a thread knows to be over is kept as times: everything of its block before the
// last barrier (floor), everything of its warp before the last __syncwarp (warp_floor, lane_seen), and
// of single threads what it learned by atomic accesses (seen). An atomic write after a fence releases:
// it leaves at its location what its thread had seen when it fenced. A later atomic access there
// acquires that. Blocks run one after another, so what is released to later blocks is a list.
#pragma once

#include "rows.h"
#include "state.h"

namespace mulfree_emulator {

enum class Spread : uint8_t { thread, warp, block, grid };  // who has read the cell

struct Stamp {
    uint32_t time;   // 0: never
    uint32_t pc;
    uint16_t thread;
    uint8_t kind;    // Access
    uint8_t spread;  // of a read
    uint32_t lanes;  // of a read by one warp; of one by the block: the warps
};

// A thread's release at a location: to its own block, and to others.
struct Release {
    uint64_t block;
    uint32_t thread, time, device_time;
    uint32_t published;  // of its block
};

// That a thread acquired the first `count` releases of a location, all by earlier blocks.
struct Knowledge {
    size_t location, count;
};

struct Location {
    uintptr_t address;
    Rows<Release> releases;     // by ascending block
    Rows<Knowledge> knowledge;  // that the releasing threads had
};

inline Rows<Location> locations;
inline Rows<uint32_t> slots_of_locations;  // hashed by address: one more than the index, 0 is empty
inline Rows<uint32_t> block_starts;        // times, of each block since the grid's last barrier,
inline Rows<uint64_t> blocks_started;      // and their numbers,
inline Rows<AtomicAccess> block_atomics;   // and the last atomic access in each
inline Rows<Knowledge> knowledge_of_block, knowledge_of_thread[max_threads];
inline uint32_t seen[max_threads][max_threads];  // a row is valid once its thread has acquired

MULFREE_RARE inline void learn(Rows<Knowledge> &all, const Knowledge &k) {
    for (Knowledge &mine : all) {
        if (mine.location != k.location) continue;
        if (mine.count < k.count) mine.count = k.count;
        return;
    }
    all.add(k);
}

MULFREE_RARE inline void learn(Rows<Knowledge> &all, const Rows<Knowledge> &more) {
    for (const Knowledge &k : more) learn(all, k);
}

// The slot of a location, or the empty one where it belongs.
MULFREE_RARE inline uint32_t &slot_of(uintptr_t address) {
    const size_t count = slots_of_locations.count;  // a power of 2
    for (size_t i = address * 0x9E3779B97F4A7C15u >> 20;; ++i) {
        uint32_t &slot = slots_of_locations[i & (count - 1)];
        if (!slot || locations[slot - 1].address == address) return slot;
    }
}

MULFREE_RARE inline Location &location_at(uintptr_t address) {
    if (2 * locations.count >= slots_of_locations.count) {
        const size_t count = slots_of_locations.count ? 2 * slots_of_locations.count : 64;
        slots_of_locations.clear();
        while (slots_of_locations.count < count) slots_of_locations.add(0);
        for (size_t i = 0; i < locations.count; ++i) slot_of(locations[i].address) = static_cast<uint32_t>(i + 1);
    }
    uint32_t &slot = slot_of(address);
    if (!slot) {
        locations.add({address, {}, {}});
        slot = static_cast<uint32_t>(locations.count);
    }
    return locations[slot - 1];
}

// ---- events -------------------------------------------------------------------------------------

MULFREE_RARE inline void forget_releases() {
    block_starts.clear();
    blocks_started.clear();
    block_atomics.clear();
    for (Location &location : locations) {
        location.releases.free();
        location.knowledge.free();
    }
    locations.clear();
    slots_of_locations.clear();
    for (Rows<Knowledge> &knowledge : knowledge_of_thread) knowledge.clear();
}

MULFREE_RARE inline void open_ordering() {
    now.time = now.grid_floor = 1;
    forget_releases();
    for (unsigned i = 0; i < max_threads; ++i) {
        Thread &t = now.threads[i];
        t.acquired = t.fence = t.device_fence = t.global_write = t.touched = 0;
        t.atomic = {};
        std::memset(t.lane_seen, 0, sizeof t.lane_seen);
    }
}

inline void begin_block_of_time() {
    now.block_start = now.floor = now.published = ++now.time;
    for (uint32_t &floor : now.warp_floor) floor = now.time;
    if (now.launch->check) {
        block_starts.add(now.time);
        blocks_started.add(now.block);
        block_atomics.add({});
    }
    knowledge_of_block.clear();
    if (locations.count)
        for (unsigned i = 0; i < now.thread_count; ++i) knowledge_of_thread[i].clear();
}

// All blocks wait: everything up to now is over for all.
inline void pass_grid_barrier() {
    now.grid_floor = ++now.time;
    forget_releases();
}

inline void pass_block_barrier() {
    now.floor = ++now.time;
    if (!now.launch->check) return;
    for (uint32_t &floor : now.warp_floor) floor = now.time;
    bool fenced = true;
    for (unsigned i = 0; i < now.thread_count; ++i) {
        const Thread &t = now.threads[i];
        fenced &= t.global_write < now.published || t.global_write < t.device_fence;
        if (!locations.count) continue;
        learn(knowledge_of_block, knowledge_of_thread[i]);
        knowledge_of_thread[i].clear();
    }
    if (fenced) now.published = now.floor;
}

// A __syncwarp of the lanes in `mask`; `whole` if no other lane of the warp is alive.
MULFREE_RARE inline void pass_warp_barrier(unsigned warp, unsigned mask, bool whole) {
    if (!now.launch->check) return;
    Thread *lanes = now.threads + warp * warp_size;
    ++now.time;
    if (whole) now.warp_floor[warp] = now.time;
    uint32_t of_lanes[warp_size] = {};
    bool acquired = false;
    for (unsigned i = 0; i < warp_size; ++i) {
        if (!(mask >> i & 1)) continue;
        acquired |= lanes[i].acquired > now.floor;
        for (unsigned j = 0; j < warp_size && !whole; ++j)
            if (of_lanes[j] < lanes[i].lane_seen[j]) of_lanes[j] = lanes[i].lane_seen[j];
    }
    for (unsigned i = 0; i < warp_size && !whole; ++i)
        if (mask >> i & 1) of_lanes[i] = now.time;
    for (unsigned i = 0; i < warp_size && !whole; ++i)
        if (mask >> i & 1) std::memcpy(lanes[i].lane_seen, of_lanes, sizeof of_lanes);
    if (!acquired) return;
    const unsigned first = warp * warp_size;
    static uint32_t all[max_threads];
    std::memset(all, 0, sizeof all);
    static Rows<Knowledge> knowledge;
    knowledge.clear();
    for (unsigned i = first; i < first + warp_size; ++i) {
        if (!(mask >> (i - first) & 1) || !now.threads[i].acquired) continue;
        for (unsigned j = 0; j < now.thread_count; ++j)
            if (all[j] < seen[i][j]) all[j] = seen[i][j];
        learn(knowledge, knowledge_of_thread[i]);
    }
    for (unsigned i = first; i < first + warp_size; ++i) {
        if (!(mask >> (i - first) & 1)) continue;
        std::memcpy(seen[i], all, sizeof all);
        now.threads[i].acquired = now.time;
        learn(knowledge_of_thread[i], knowledge);
    }
}

inline void fence(bool device) {
    Thread &me = now.threads[now.current];
    me.fence = ++now.time;
    if (!device) return;
    me.device_fence = me.fence;
    now.published = now.floor;  // what came before the barrier is behind this fence too
}

MULFREE_RARE inline void acquire(uintptr_t address) {
    const uint32_t slot = locations.count ? slot_of(address) : 0;
    if (!slot) return;
    const Location &location = locations[slot - 1];
    Thread &me = now.threads[now.current];
    uint32_t *mine = seen[now.current];
    if (!me.acquired) std::memset(mine, 0, sizeof seen[0]);
    me.acquired = now.time;
    size_t i = location.releases.count;
    for (; i && location.releases[i - 1].block == now.block; --i) {
        const Release &r = location.releases[i - 1];
        if (mine[r.thread] < r.time) mine[r.thread] = r.time;
    }
    Rows<Knowledge> &knowledge = knowledge_of_thread[now.current];
    if (i) learn(knowledge, Knowledge{slot - 1, i});
    learn(knowledge, location.knowledge);
}

MULFREE_RARE inline void release_one(Location &location, unsigned thread, uint32_t time, uint32_t device_time) {
    for (size_t i = location.releases.count; i && location.releases[i - 1].block == now.block; --i) {
        Release &r = location.releases[i - 1];
        if (r.thread != thread) continue;
        r = {now.block, thread, time, device_time, now.published};
        return;
    }
    location.releases.add({now.block, thread, time, device_time, now.published});
}

MULFREE_RARE inline void release(uintptr_t address, bool shared) {
    const Thread &me = now.threads[now.current];
    const bool fenced = me.fence > now.block_start;
    if (!fenced && (shared || now.published == now.block_start)) return;
    Location &location = location_at(address);
    Rows<Release> &releases = location.releases;
    if (shared && releases.count && releases[releases.count - 1].block != now.block)
        releases.clear();  // of a block that had this memory before
    release_one(location, now.current, fenced ? me.fence : 0, me.device_fence);
    const unsigned warp = now.current / warp_size;
    const bool acquired = me.acquired > now.floor;
    const unsigned first = acquired ? 0 : warp * warp_size;
    const unsigned last = acquired || first + warp_size > now.thread_count ? now.thread_count : first + warp_size;
    for (unsigned i = first; fenced && i < last; ++i) {  // what it knows of others
        uint32_t time = acquired ? seen[now.current][i] : 0;
        if (i / warp_size == warp) {
            if (time < now.warp_floor[warp]) time = now.warp_floor[warp];
            if (time < me.lane_seen[i % warp_size]) time = me.lane_seen[i % warp_size];
        }
        if (i != now.current && time > now.floor) release_one(location, i, time, me.device_fence ? time : 0);
    }
    learn(location.knowledge, knowledge_of_thread[now.current]);
    learn(location.knowledge, knowledge_of_block);
}

// ---- questions ----------------------------------------------------------------------------------

// Which of the blocks started was running.
MULFREE_RARE inline size_t start_before(uint32_t time) {
    size_t low = 0, high = block_starts.count;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        (block_starts[middle] <= time ? low : high) = middle;
    }
    return low;
}

inline uint64_t block_of(uint32_t time) { return blocks_started[start_before(time)]; }

// Time goes on at every atomic access, so that what came before one is told from what comes after.
inline void add_atomic(uintptr_t address) {
    const AtomicAccess access = {address, ++now.time, now.current};
    now.threads[now.current].atomic = block_atomics[block_atomics.count - 1] = access;
}

// Whether an atomic access followed an earlier access, at a place where the current thread (its block, if the earlier
// access is another's) has then accessed atomically too: 1 by the same thread, 2 by another of that block, which may
// have come too early.
MULFREE_RARE inline int atomic_between(const Stamp &s) {
    const bool same_block = s.time >= now.block_start;
    const AtomicAccess &mine = same_block ? now.threads[now.current].atomic : block_atomics[block_atomics.count - 1];
    const AtomicAccess &other = same_block ? now.threads[s.thread].atomic : block_atomics[start_before(s.time)];
    if (!mine.address || mine.address != other.address || mine.time < s.time) return 0;
    if (other.thread != s.thread) return 2;
    return other.time > s.time;
}

MULFREE_RARE inline bool is_released(const Rows<Knowledge> &knowledge, const Stamp &s, uint64_t block) {
    for (const Knowledge &k : knowledge) {
        const Release *releases = locations[k.location].releases.data;
        size_t low = 0, high = k.count;
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (releases[middle].block < block) low = middle + 1;
            else high = middle;
        }
        for (; low < k.count && releases[low].block == block; ++low) {
            const Release &r = releases[low];
            if (s.time < r.published || (s.thread == r.thread && s.time < r.device_time)) return true;
        }
    }
    return false;
}

MULFREE_RARE inline bool follows_block(const Stamp &s) {
    const Rows<Knowledge> &mine = knowledge_of_thread[now.current];
    if (!mine.count && !knowledge_of_block.count) return false;
    const uint64_t block = block_of(s.time);
    return is_released(mine, s, block) || is_released(knowledge_of_block, s, block);
}

// Whether the current thread comes after what `thread` of its block did at `time`, since its last barrier.
inline bool follows_thread(const Thread &me, unsigned thread, uint32_t time) {
    if (thread == now.current) return true;
    const unsigned warp = now.current / warp_size;
    if (thread / warp_size == warp && (time < now.warp_floor[warp] || time < me.lane_seen[thread % warp_size]))
        return true;
    return me.acquired > now.floor && time < seen[now.current][thread];
}

// Whether an earlier access is over before the current thread's next one.
inline bool follows(const Thread &me, const Stamp &s, bool shared) {
    if (s.time < now.block_start) return s.time < now.grid_floor || shared || follows_block(s);
    return s.time < now.floor || follows_thread(me, s.thread, s.time);
}

// Whether the current thread comes after all the reads that a stamp stands for.
inline bool follows_reads(const Thread &me, const Stamp &s, bool shared) {
    const Spread spread = static_cast<Spread>(s.spread);
    if (spread == Spread::grid && !shared && !knowledge_of_thread[now.current].count && !knowledge_of_block.count)
        return s.time < now.grid_floor;
    if (s.time < now.floor || spread == Spread::thread || spread == Spread::grid) return follows(me, s, shared);
    const unsigned first = spread == Spread::warp ? s.thread / warp_size * warp_size : 0;
    const unsigned last = spread == Spread::warp ? first + warp_size : now.thread_count;
    for (unsigned i = first; i < last; ++i)
        if ((s.lanes >> (spread == Spread::block ? i / warp_size : i - first) & 1) && !follows_thread(me, i, s.time)) return false;
    return true;
}

// Who has read a cell, after one more: of the earlier readers those that the current thread need not follow.
inline void add_reader(Stamp &s, const Thread &me, bool shared) {
    const unsigned warp = now.current / warp_size, first = warp * warp_size;
    const uint32_t mine = 1u << now.current % warp_size;
    Spread spread = static_cast<Spread>(s.spread);
    uint32_t lanes = s.lanes;
    const bool by_block = spread == Spread::block;
    if (s.time < now.block_start) {
        spread = s.time < now.grid_floor || shared || follows_block(s) ? Spread::thread : Spread::grid;
        lanes = 0;
    } else if (spread != Spread::grid && s.time < now.floor) {
        spread = Spread::thread;
        lanes = 0;
    } else if (spread == Spread::thread || spread == Spread::warp) {
        const bool same_warp = s.thread / warp_size == warp;
        if (s.time != now.time)
            for (unsigned i = 0; i < warp_size; ++i)
                if (lanes >> i & 1 && follows_thread(me, s.thread / warp_size * warp_size + i, s.time)) lanes &= ~(1u << i);
        spread = !lanes || (same_warp && lanes == mine) ? Spread::thread : same_warp ? Spread::warp : Spread::block;
    }
    if (spread == Spread::thread) lanes = 0;
    if (spread == Spread::warp && !(lanes & ~mine)) spread = Spread::thread;
    if (spread == Spread::block && !by_block) lanes = 1u << s.thread / warp_size;
    s.spread = static_cast<uint8_t>(spread);
    s.lanes = lanes | (spread == Spread::block ? 1u << warp : mine);
}

}  // namespace mulfree_emulator
