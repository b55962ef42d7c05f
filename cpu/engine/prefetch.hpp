// Software prefetch, for every instruction set.
#pragma once

#include <cstdint>

#include "../kernels.hpp"

namespace mulfree {

// Prefetches the line of base[offset], which need not be valid. LEVEL 3 is the L1 cache, 2 the L2.
template <int LEVEL = 3, class T>
static inline void prefetch(const T* base, index offset) {
    const auto at = reinterpret_cast<std::uintptr_t>(base) + std::uintptr_t(offset) * sizeof(T);
    __builtin_prefetch(reinterpret_cast<const void*>(at), 0, LEVEL);
}

// The same for a line that will be written, with exclusive ownership.
template <class T>
static inline void prefetch_write(const T* base, index offset) {
    const auto at = reinterpret_cast<std::uintptr_t>(base) + std::uintptr_t(offset) * sizeof(T);
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*reinterpret_cast<const char*>(at)));
#else
    __builtin_prefetch(reinterpret_cast<const void*>(at), 1, 3);
#endif
}

}  // namespace mulfree
