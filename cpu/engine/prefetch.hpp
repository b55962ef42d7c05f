// Asking for cache lines ahead of their use, alike on every instruction set.
#pragma once

#include <cstdint>

#include "../kernels.hpp"

namespace mulfree {

// Asks for the line of base[offset], which need not exist. LEVEL 3 is the first cache, 2 the second.
template <int LEVEL = 3, class T>
static inline void prefetch(const T* base, index offset) {
    const auto at = reinterpret_cast<std::uintptr_t>(base) + std::uintptr_t(offset) * sizeof(T);
    __builtin_prefetch(reinterpret_cast<const void*>(at), 0, LEVEL);
}

// The same for a line that will be written; no other core keeps a copy.
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
