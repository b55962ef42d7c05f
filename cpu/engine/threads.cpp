#include "threads.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

namespace mulfree {
namespace {

// Number of polls before a waiting thread sleeps: some microseconds, about the time between the calls of a loop over
// small arrays.
constexpr int SPINS = 2000;

// Multiply-adds that justify a thread: as many as the caller does while it wakes.
constexpr double LEAST_WORK = 500000;

// As in set_num_threads.
constexpr long MOST_THREADS = 1024;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A value that one thread changes and another waits for.
template <class T>
class Awaited {
public:
    explicit Awaited(T value) : value_(value) {}

    T exchange(T value) { return value_.exchange(value); }

    void set(T value) {
        value_ = value;
        if (!sleeping_) return;
        std::lock_guard<std::mutex> lock(mutex_);
        changed_.notify_one();
    }

    // Waits until the value differs from `old`.
    void wait_while(T old) {
        for (int i = 0; i < SPINS; ++i, pause())
            if (value_ != old) return;
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_ = true;
        changed_.wait(lock, [&] { return value_ != old; });
        sleeping_ = false;
    }

private:
    std::atomic<T> value_;
    std::atomic<bool> sleeping_{false};
    std::mutex mutex_;
    std::condition_variable changed_;
};

}  // namespace

struct Job {
    void (*work)(const void*, index);
    const void* context;
};

struct Worker {
    Awaited<const Job*> job{nullptr};
    Awaited<bool> busy{false};
    index number = 0;        // in its team
    Worker* next = nullptr;  // in the team, or in the idle list

    void live() {
        for (;;) {
            job.wait_while(nullptr);
            // The call may have ended, and withdrawn its job, before this thread woke.
            if (const Job* mine = job.exchange(nullptr)) {
                mine->work(mine->context, number);
                busy.set(false);
            }
        }
    }
};

namespace {

class Pool {
public:
    // Up to `count` workers, as a linked list; there are never more than one call may use.
    Worker* take(index count) {
        std::lock_guard<std::mutex> lock(mutex_);
        Worker* team = nullptr;
        for (; count > 0; --count) {
            Worker* worker = idle_ ? idle_ : workers_ + 1 < max_threads() ? begin_worker() : nullptr;
            if (!worker) break;
            if (worker == idle_) idle_ = worker->next;
            worker->next = team, team = worker;
        }
        return team;
    }

    void give_back(Worker* team) {
        if (!team) return;
        std::lock_guard<std::mutex> lock(mutex_);
        while (team) {
            Worker* next = team->next;
            team->next = idle_, idle_ = team, team = next;
        }
    }

private:
    std::mutex mutex_;
    Worker* idle_ = nullptr;
    index workers_ = 0;

    // Workers live as long as the process: detached, and asleep between calls. Null if the system cannot create a
    // thread.
    Worker* begin_worker() {
        auto* worker = new Worker;
        try {
            std::thread(&Worker::live, worker).detach();
        } catch (const std::system_error&) {
            delete worker;
            return nullptr;
        }
        ++workers_;
        return worker;
    }
};

// Created when the module is loaded. A forked child has none of its parent's threads, and the pool may have been in
// use at the fork. So a child starts with a new pool, and leaves the copy alone.
Pool* pool = [] {
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
    return new Pool;
}();

index from_environment(const char* name) {
    const char* text = std::getenv(name);
    return text ? std::clamp(std::strtol(text, nullptr, 10), 0L, MOST_THREADS) : 0;
}

index processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<index>& most() {
    static std::atomic<index> count = [] {
        for (const char* name : {"MULFREE_NUM_THREADS", "OMP_NUM_THREADS"})
            if (const index count = from_environment(name)) return count;
        return processors();
    }();
    return count;
}

}  // namespace

index max_threads() { return most(); }

void set_max_threads(index count) { most() = count; }

index threads_for(index units, double work, index scratch, index shared) {
    index threads = std::min(max_threads(), units);
    if (work < double(threads) * LEAST_WORK) threads = index(work / LEAST_WORK);
    if (scratch > 0) threads = std::min(threads, (WORKSPACE - shared) / scratch);
    return std::max<index>(1, threads);
}

Team::Team(index threads) : size_(1), workers_(threads > 1 ? pool->take(threads - 1) : nullptr) {
    for (Worker* worker = workers_; worker; worker = worker->next) worker->number = size_++;
}

Team::~Team() { pool->give_back(workers_); }

void Team::run_(void (*work)(const void*, index), const void* context) {
    const Job job{work, context};
    for (Worker* worker = workers_; worker; worker = worker->next) {
        worker->busy.set(true);
        worker->job.set(&job);
    }
    work(context, 0);
    for (Worker* worker = workers_; worker; worker = worker->next)
        if (worker->job.exchange(nullptr)) worker->busy.set(false);  // not started: withdraw it
        else worker->busy.wait_while(true);
}

}  // namespace mulfree
