// The threads of a call: a small pool of our own. A runtime's own pool keeps its threads spinning, which on a
// machine that others use costs a small call more than its work, and hangs after a fork. Here a call takes
// the workers that are idle, waits only for those that have begun, and a child process starts with none.
#pragma once

#include "../kernels.hpp"

namespace mulfree {

// How many threads a call may use, the caller's own among them. At first MULFREE_NUM_THREADS, else
// OMP_NUM_THREADS, else the processors that this process may use.
index max_threads();
void set_max_threads(index count);

// Threads that `units` pieces of work keep busy, of so many float32 multiply-adds all together. Where each
// thread needs `scratch` bytes, and the call `shared` ones, WORKSPACE bounds them.
constexpr index WORKSPACE = 56 << 20;  // bytes a call may take; uint8 takes 8 MiB of words besides
index threads_for(index units, double work, index scratch = 0, index shared = 0);

// Some idle workers and the caller, held until the end of the scope.
class Team {
public:
    explicit Team(index threads);
    ~Team();
    Team(const Team&) = delete;

    index size() const { return size_; }

    // Calls work(thread) in the caller's thread (0) and, if they wake before that is done, in the others. So
    // what there is to do must be shared out as threads come: see Units.
    template <class Work>
    void run(const Work& work) {
        run_([](const void* w, index thread) { (*static_cast<const Work*>(w))(thread); }, &work);
    }

private:
    index size_;
    struct Worker* workers_;

    void run_(void (*work)(const void*, index), const void* context);
};

constexpr double MOVE = 8;  // multiply-adds that take as long as a number's way through memory

// The numbers [0, count), handed out `grain` in a row to whoever asks.
class Units {
public:
    Units(index count, index grain) : count_(count), grain_(grain), next_(0) {}

    template <class F>
    void each(F f) {
        for (index unit; (unit = __atomic_fetch_add(&next_, grain_, __ATOMIC_RELAXED)) < count_;)
            for (index end = unit + grain_ < count_ ? unit + grain_ : count_; unit < end; ++unit) f(unit);
    }

private:
    index count_, grain_, next_;
};

// f(unit) for all units, by the threads of a team, or by as many as the work keeps busy.
template <class F>
inline void for_each_unit(Team& team, index count, F f) {
    Units units(count, (count + 8 * team.size() - 1) / (8 * team.size()));
    team.run([&](index) { units.each(f); });
}

template <class F>
inline void for_each_unit(index count, double work, F f) {
    Team team(threads_for(count, work));
    for_each_unit(team, count, f);
}

}  // namespace mulfree
