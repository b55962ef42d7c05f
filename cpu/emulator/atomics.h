// Atomic functions, fences, and loads and stores with a cache hint.
//
// Threads switch only where they wait, so an atomic function is a plain one that reports itself to the checks.
#pragma once

namespace mulfree_emulator {

template <class T>
MULFREE_UNSEEN T peek(T *address) { return *address; }

template <class T>
MULFREE_UNSEEN void poke(T *address, T value) { *address = value; }

template <bool decides, class T, class Function>
MULFREE_INLINE T atomic(T *address, Function f) {
    mulfree_atomic(address, sizeof(T), decides);
    const T old = peek(address), changed = f(old);
    poke(address, changed);
    if (__builtin_memcmp(&changed, &old, sizeof old) == 0) mulfree_spin();  // it may be waiting
    return old;
}

// The second operand converts to the type pointed to, as in CUDA's overloads.
template <class T>
using Same = std::common_type_t<T>;

}  // namespace mulfree_emulator

#define MULFREE_ATOMIC(name, decides, expression)                                                     \
    template <class T>                                                                                \
    MULFREE_INLINE T name(T *address, mulfree_emulator::Same<T> v) {           \
        return mulfree_emulator::atomic<decides>(address, [=](T old) { (void)old; return T(expression); });    \
    }                                                                                                 \
    template <class T>                                                                                \
    MULFREE_INLINE T name##_block(T *address, mulfree_emulator::Same<T> v) {   \
        return name(address, v);                                                                      \
    }                                                                                                 \
    template <class T>                                                                                \
    MULFREE_INLINE T name##_system(T *address, mulfree_emulator::Same<T> v) {  \
        return name(address, v);                                                                      \
    }
MULFREE_ATOMIC(atomicAdd, false, old + v)
MULFREE_ATOMIC(atomicSub, false, old - v)
MULFREE_ATOMIC(atomicMin, true, v < old ? v : old)
MULFREE_ATOMIC(atomicMax, true, old < v ? v : old)
MULFREE_ATOMIC(atomicAnd, true, old & v)
MULFREE_ATOMIC(atomicOr, true, old | v)
MULFREE_ATOMIC(atomicXor, false, old ^ v)
MULFREE_ATOMIC(atomicInc, false, old >= v ? 0 : old + 1)
MULFREE_ATOMIC(atomicDec, false, old == 0 || old > v ? v : old - 1)
MULFREE_ATOMIC(atomicExch, false, v)
#undef MULFREE_ATOMIC

#define MULFREE_COMPARE_AND_SWAP(name)                                                                   \
    template <class T>                                                                                   \
    MULFREE_INLINE T name(T *address, mulfree_emulator::Same<T> compare, mulfree_emulator::Same<T> v) {  \
        return mulfree_emulator::atomic<true>(address, [=](T old) { return old == compare ? T(v) : old; });    \
    }
MULFREE_COMPARE_AND_SWAP(atomicCAS)
MULFREE_COMPARE_AND_SWAP(atomicCAS_block)
MULFREE_COMPARE_AND_SWAP(atomicCAS_system)
#undef MULFREE_COMPARE_AND_SWAP

inline void __threadfence() { mulfree_fence(true); }
inline void __threadfence_block() { mulfree_fence(false); }
inline void __threadfence_system() { mulfree_fence(true); }
MULFREE_INLINE void __nanosleep(unsigned int) { mulfree_spin(); }

#define MULFREE_LOAD(name) \
    template <class T> MULFREE_INLINE T name(const T *address) { return *address; }
#define MULFREE_STORE(name) \
    template <class T> MULFREE_INLINE void name(T *address, mulfree_emulator::Same<T> v) { *address = v; }
MULFREE_LOAD(__ldg)
MULFREE_LOAD(__ldca)
MULFREE_LOAD(__ldcg)
MULFREE_LOAD(__ldcs)
MULFREE_LOAD(__ldlu)
MULFREE_LOAD(__ldcv)
MULFREE_STORE(__stwb)
MULFREE_STORE(__stcg)
MULFREE_STORE(__stcs)
MULFREE_STORE(__stwt)
#undef MULFREE_LOAD
#undef MULFREE_STORE

// Asynchronous copies happen at once.
inline void __pipeline_memcpy_async(void *to, const void *from, size_t size, size_t zero_fill = 0) {
    if (zero_fill || (size != 4 && size != 8 && size != 16)) {
        for (size_t i = 0; i < size; ++i)
            static_cast<char *>(to)[i] = i < size - zero_fill ? static_cast<const char *>(from)[i] : 0;
    } else if (size == 4) {
        *static_cast<uint1 *>(to) = *static_cast<const uint1 *>(from);
    } else if (size == 8) {
        *static_cast<uint2 *>(to) = *static_cast<const uint2 *>(from);
    } else {
        *static_cast<uint4 *>(to) = *static_cast<const uint4 *>(from);
    }
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(size_t) {}

// As on a GPU an address in shared memory fits 32 bits: it counts from where that memory begins.
inline size_t __cvta_generic_to_shared(const void *p) {
    return static_cast<size_t>(static_cast<const char *>(p) - mulfree_shared_window());
}
inline void *__cvta_shared_to_generic(size_t address) { return mulfree_shared_window() + address; }
inline size_t __cvta_generic_to_global(const void *p) { return reinterpret_cast<size_t>(p); }
inline void *__cvta_global_to_generic(size_t address) { return reinterpret_cast<void *>(address); }
