// Threads and memory of a call.
#pragma once

#include <cstdint>
#include <new>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "vector.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index WORKSPACE = 56 << 20;  // bytes a call may take; uint8 takes 8 MiB of cells besides
constexpr index SMALL_WORK = 100000;   // terms below which waking threads costs more than it saves

// `scratch`: bytes for each thread; `shared`: for all together.
inline index threads_for(index units, double terms, index scratch = 0, index shared = 0) {
#if defined(_OPENMP)
    if (terms < SMALL_WORK) return 1;
    const index room = scratch > 0 ? (WORKSPACE - shared) / scratch : units;
    return larger(1, smaller(smaller(omp_get_max_threads(), room), units));
#else
    return 1;
#endif
}

inline index this_thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// The memory of a call.
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    ~Workspace() { ::operator delete(base_, std::align_val_t(64)); }
    void allocate(index bytes) {
        // AddressSanitizer lets this form alone fail.
        base_ = static_cast<char*>(::operator new(std::size_t(bytes), std::align_val_t(64), std::nothrow));
        if (!base_) throw std::bad_alloc();
    }
    char* data() const { return base_; }

private:
    char* base_ = nullptr;
};

// Cuts memory into cache-line aligned pieces; from null, only measures what the pieces take.
class Carver {
public:
    explicit Carver(char* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}
    template <class T>
    T* take(index count) {
        const std::uintptr_t at = base_ + used_;
        used_ += round_up(count * index(sizeof(T)), 64);
        return reinterpret_cast<T*>(at);
    }
    index used() const { return used_; }

private:
    std::uintptr_t base_;
    index used_ = 0;
};

}  // namespace mulfree::MULFREE_ISA
