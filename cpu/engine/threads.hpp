// The threads of a call: a small thread pool. OpenMP's pool spins, which on a shared machine costs a small call more
// than its work, and hangs after a fork. Here a call takes idle workers, waits only for those that have started, and
// a forked child starts with none.
#pragma once

#include "../kernels.hpp"

namespace mulfree {

// The maximum number of threads per call, including the caller's. Initially MULFREE_NUM_THREADS, else
// OMP_NUM_THREADS, else the processors available to this process.
index max_threads();
void set_max_threads(index count);

// Number of threads for `units` pieces of work with a total of `work` float32 multiply-adds. Each thread needs
// `scratch` bytes, and the call `shared` bytes, bounded by WORKSPACE.
constexpr index WORKSPACE = 56 << 20;  // bytes a call may take; uint8 takes 8 MiB of words besides
index threads_for(index units, double work, index scratch = 0, index shared = 0);

// Some idle workers and the caller, reserved until the end of the scope.
class Team {
public:
    explicit Team(index threads);
    ~Team();
    Team(const Team&) = delete;

    index size() const { return size_; }

    // Calls work(thread) in the caller's thread (0) and in those of the others that wake before it is done. So work
    // must be distributed dynamically: see Units.
    template <class Work>
    void run(const Work& work) {
        run_([](const void* w, index thread) { (*static_cast<const Work*>(w))(thread); }, &work);
    }

private:
    index size_;
    struct Worker* workers_;

    void run_(void (*work)(const void*, index), const void* context);
};

constexpr double MOVE = 8;  // cost of moving a number through memory, in multiply-adds

// The numbers [0, count), distributed dynamically in chunks of `grain`.
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

// Calls f(unit) for all units, on a team's threads, or on as many as the work justifies.
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
