// Barriers that a thread passes in two halves: it arrives, and waits until all that are expected have.
//
// Behind cuda::barrier, cuda::pipeline and tiles of several warps. A meeting is found by an address; who
// waits for a phase comes after all that each thread that arrived in it had done or knew to be over.
#pragma once

#include "ordering.h"

namespace mulfree_emulator {

struct Meeting {
    const void *at;
    unsigned expected, pending;
    uint64_t phase;  // the number of those that are over
    // By thread, of the phase that goes on and of the last ones: what it did before this time is over.
    uint32_t arriving[max_threads], over[4][max_threads];
    Rows<Knowledge> knowledge;                        // of other blocks, that those who arrived had
};

inline Rows<Meeting> meetings;  // of the block

MULFREE_RARE inline void close_meetings() {
    for (Meeting &m : meetings) m.knowledge.free();
    meetings.clear();
}

MULFREE_RARE inline Meeting *meeting_at(const void *at) {
    for (Meeting &m : meetings)
        if (m.at == at) return &m;
    return nullptr;
}

MULFREE_RARE inline void open_meeting(const void *at, unsigned expected) {
    Meeting *m = meeting_at(at);
    if (!m) m = &meetings.add({});
    m->knowledge.free();
    *m = {};
    m->at = at;
    m->expected = m->pending = expected;
}

// Passes on what the current thread did and what it knows of others.
MULFREE_RARE inline void add_arrival(Meeting &m) {
    Thread &me = now.threads[now.current];
    const unsigned warp = now.current / warp_size;
    for (unsigned i = 0; i < now.thread_count; ++i) {
        uint32_t time = me.acquired > now.floor ? seen[now.current][i] : 0;
        if (i / warp_size == warp) {
            if (time < now.warp_floor[warp]) time = now.warp_floor[warp];
            if (time < me.lane_seen[i % warp_size]) time = me.lane_seen[i % warp_size];
        }
        if (m.arriving[i] < time) m.arriving[i] = time;
    }
    m.arriving[now.current] = ++now.time;
    learn(m.knowledge, knowledge_of_thread[now.current]);
}

// The phase is over: who waits for it may go on.
MULFREE_RARE inline void finish_phase(Meeting &m) {
    // A cell keeps the time of its last read only, so who has done nothing since it arrived arrives now.
    for (unsigned i = 0; i < now.thread_count; ++i)
        if (now.threads[i].touched < m.arriving[i]) m.arriving[i] = now.time;
    std::memcpy(m.over[m.phase % 4], m.arriving, sizeof m.arriving);
    m.pending = m.expected;
    ++m.phase;
    for (unsigned i = 0; i < now.thread_count; ++i) {
        Thread &t = now.threads[i];
        if (t.state == State::at_meeting && t.waits_at == m.at && t.value < m.phase) t.state = State::ready;
    }
}

MULFREE_RARE inline void learn_arrivals(const Meeting &m, uint64_t phase) {
    const uint32_t *over = m.over[phase % 4];
    Thread &me = now.threads[now.current];
    uint32_t *mine = seen[now.current];
    if (!me.acquired) std::memset(mine, 0, sizeof seen[0]);
    me.acquired = ++now.time;
    for (unsigned i = 0; i < now.thread_count; ++i)
        if (mine[i] < over[i]) mine[i] = over[i];
    learn(knowledge_of_thread[now.current], m.knowledge);
}

}  // namespace mulfree_emulator
