// cuda::barrier, cuda::pipeline and cuda::memcpy_async. Copies happen at once, in the calling thread.
#pragma once
#include <mulfree/push_letters.h>

namespace cuda {

enum thread_scope { thread_scope_system, thread_scope_device, thread_scope_block, thread_scope_thread };

template <size_t Alignment>
struct aligned_size_t {
    static constexpr size_t align = Alignment;
    size_t value;
    explicit constexpr aligned_size_t(size_t size) : value(size) {}
    constexpr operator size_t() const { return value; }
};

// The runtime keeps the state, by the address; the word is what the checks see of the initialisation.
template <thread_scope Scope>
class barrier {
  public:
    class arrival_token {
        friend class barrier;
        unsigned long long phase;
    };
    barrier() = default;
    MULFREE_INLINE explicit barrier(ptrdiff_t expected) { init(this, expected); }
    barrier(const barrier &) = delete;
    barrier &operator=(const barrier &) = delete;

    friend MULFREE_INLINE void init(barrier *b, ptrdiff_t expected) {
        *const_cast<long long volatile *>(&b->expected_) = expected;
        mulfree_meeting_open(b, static_cast<unsigned>(expected));
    }
    static constexpr ptrdiff_t max() { return (1 << 20) - 1; }
    MULFREE_INLINE arrival_token arrive(ptrdiff_t count = 1, MULFREE_HERE) {
        look();
        arrival_token token;
        token.phase = mulfree_meeting_arrive(this, static_cast<unsigned>(count), false, file, line);
        return token;
    }
    MULFREE_INLINE void wait(arrival_token &&token, MULFREE_HERE) const {
        mulfree_meeting_wait(this, token.phase, file, line);
    }
    MULFREE_INLINE void arrive_and_wait(MULFREE_HERE) { wait(arrive(1, file, line), file, line); }
    MULFREE_INLINE void arrive_and_drop(MULFREE_HERE) {
        look();
        mulfree_meeting_arrive(this, 1, true, file, line);
    }

  private:
    long long expected_;
    MULFREE_INLINE void look() const { (void)*const_cast<const long long volatile *>(&expected_); }
};

// ---- pipelines ----------------------------------------------------------------------------------

enum class pipeline_role { producer, consumer };

template <thread_scope Scope, unsigned char Stages>
struct pipeline_shared_state {
    unsigned producers, consumers;
    char full[Stages], empty[Stages];  // their addresses are those of the meetings
};

template <thread_scope Scope>
class pipeline {
  public:
    pipeline(pipeline &&) = default;
    pipeline() = default;  // of one thread: its copies are made when it asks for them
    pipeline(char *full, char *empty, unsigned stages) : full_(full), empty_(empty), stages_(stages) {}

    MULFREE_INLINE void producer_acquire(MULFREE_HERE) {
        if (stages_ && produced_ >= stages_)
            mulfree_meeting_wait(empty_ + produced_ % stages_, produced_ / stages_ - 1, file, line);
    }
    MULFREE_INLINE void producer_commit(MULFREE_HERE) {
        if (stages_) mulfree_meeting_arrive(full_ + produced_++ % stages_, 1, false, file, line);
    }
    MULFREE_INLINE void consumer_wait(MULFREE_HERE) {
        if (stages_) mulfree_meeting_wait(full_ + consumed_ % stages_, consumed_ / stages_, file, line);
    }
    MULFREE_INLINE void consumer_release(MULFREE_HERE) {
        if (stages_) mulfree_meeting_arrive(empty_ + consumed_++ % stages_, 1, false, file, line);
    }
    bool quit() { return true; }

  private:
    char *full_ = nullptr, *empty_ = nullptr;
    unsigned long long stages_ = 0, produced_ = 0, consumed_ = 0;
};

inline pipeline<thread_scope_thread> make_pipeline() { return {}; }

namespace mulfree {

template <class Group, thread_scope Scope, unsigned char Stages>
MULFREE_INLINE pipeline<Scope> make_pipeline(const Group &group, pipeline_shared_state<Scope, Stages> *state,
                                             bool produces, bool consumes, const char *file, int line) {
    if (group.thread_rank() == 0) state->producers = state->consumers = 0;
    group.sync(file, line);
    if (produces) atomicAdd(&state->producers, 1u);
    if (consumes) atomicAdd(&state->consumers, 1u);
    group.sync(file, line);
    if (group.thread_rank() == 0)
        for (unsigned stage = 0; stage < Stages; ++stage) {
            mulfree_meeting_open(state->full + stage, state->producers);
            mulfree_meeting_open(state->empty + stage, state->consumers);
        }
    group.sync(file, line);
    return {state->full, state->empty, Stages};
}

}  // namespace mulfree

template <class Group, thread_scope Scope, unsigned char Stages>
MULFREE_INLINE pipeline<Scope> make_pipeline(const Group &group, pipeline_shared_state<Scope, Stages> *state,
                                             MULFREE_HERE) {
    return mulfree::make_pipeline(group, state, true, true, file, line);
}
template <class Group, thread_scope Scope, unsigned char Stages>
MULFREE_INLINE pipeline<Scope> make_pipeline(const Group &group, pipeline_shared_state<Scope, Stages> *state,
                                             pipeline_role role, MULFREE_HERE) {
    const bool produces = role == pipeline_role::producer;
    return mulfree::make_pipeline(group, state, produces, !produces, file, line);
}
template <class Group, thread_scope Scope, unsigned char Stages>
MULFREE_INLINE pipeline<Scope> make_pipeline(const Group &group, pipeline_shared_state<Scope, Stages> *state,
                                             size_t producers, MULFREE_HERE) {
    const bool produces = group.thread_rank() < producers;
    return mulfree::make_pipeline(group, state, produces, !produces, file, line);
}
template <unsigned Prior>
void pipeline_consumer_wait_prior(pipeline<thread_scope_thread> &) {}

// ---- copies -------------------------------------------------------------------------------------

namespace mulfree {

inline size_t widest(size_t) { return 1; }
template <size_t Alignment>
size_t widest(aligned_size_t<Alignment>) { return Alignment > 16 ? 16 : Alignment; }

// Pieces of `width` bytes, of which a group's threads take turns.
MULFREE_INLINE void copy(void *to, const void *from, size_t size, size_t width, size_t rank, size_t threads) {
    char *d = static_cast<char *>(to);
    const char *s = static_cast<const char *>(from);
    if (width < 4) {
        const size_t both = reinterpret_cast<size_t>(d) | reinterpret_cast<size_t>(s) | size;
        width = both & 3 ? 1 : both & 7 ? 4 : both & 15 ? 8 : 16;
    }
    for (size_t i = rank * width; i < size; i += threads * width)
        __pipeline_memcpy_async(d + i, s + i, size - i < width ? size - i : width);
}

}  // namespace mulfree

template <class Size, class Awaited>
MULFREE_INLINE void memcpy_async(void *to, const void *from, Size size, Awaited &) {
    mulfree::copy(to, from, size, mulfree::widest(size), 0, 1);
}
template <class Group, class Size, class Awaited>
MULFREE_INLINE void memcpy_async(const Group &group, void *to, const void *from, Size size, Awaited &) {
    mulfree::copy(to, from, size, mulfree::widest(size), group.thread_rank(), group.size());
}

}  // namespace cuda

#include <mulfree/pop_letters.h>
