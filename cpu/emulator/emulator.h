// CUDA's language for a C++ compiler: included before every kernel that the emulator runs.
//
// The launcher (mulfree_cupy/launch/emulator) preprocesses a .cu text after this header, rewrites what
// no macro can express (__shared__ declarations), and compiles the result.
#pragma once

#include <stddef.h>

// The C library's would bypass the checks, and its heap has no bounds known to them.
extern "C" {
void *memcpy(void *, const void *, size_t) noexcept __asm__("mulfree_memcpy");
void *memmove(void *, const void *, size_t) noexcept __asm__("mulfree_memmove");
void *memset(void *, int, size_t) noexcept __asm__("mulfree_memset");
void *malloc(size_t) noexcept __asm__("mulfree_malloc");
void free(void *) noexcept __asm__("mulfree_free");
int printf(const char *, ...) __asm__("mulfree_printf");
long clock() noexcept;
}
void *operator new(size_t) __asm__("mulfree_malloc");
void *operator new[](size_t) __asm__("mulfree_malloc");
void operator delete(void *) noexcept __asm__("mulfree_free");
void operator delete[](void *) noexcept __asm__("mulfree_free");
void operator delete(void *, size_t) noexcept __asm__("mulfree_free");
void operator delete[](void *, size_t) noexcept __asm__("mulfree_free");

// Headers that leave the text the names a GPU leaves it: no <string.h> with its index, no <time.h>.
#ifdef MULFREE_BARE
#include <mulfree/push_library.h>
#endif
#include <fenv.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>

#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#ifdef MULFREE_BARE
#include <mulfree/pop_library.h>
#endif

#define MULFREE_EMULATOR 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __device__
#define __host__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition) ((void)0)
#undef assert
#define assert(condition) \
    ((condition) ? (void)0 : mulfree_trap("assertion failed: " #condition, __FILE__, __LINE__))
#define __trap() mulfree_trap("__trap()", __FILE__, __LINE__)
#define __brkpt() ((void)0)

// Inlined even so: what it accesses is accounted to the kernel's own line.
#define MULFREE_INLINE __attribute__((always_inline)) inline

// Unchecked reads and writes, for functions that report themselves to the checks.
#define MULFREE_UNSEEN __attribute__((noinline, no_sanitize("thread")))

#include "launch.h"
#include "types.h"

// Set by the runtime when it switches threads; constant within a thread.
extern "C" {
extern __attribute__((visibility("hidden"))) const uint3 threadIdx, blockIdx;
extern __attribute__((visibility("hidden"))) const dim3 blockDim, gridDim;
}
constexpr int warpSize = 32;

#include "arithmetic.h"
#include "integers.h"
#include "atomics.h"
#include "warp.h"
#include "half.h"
#include "groups.h"
#include "ptx.h"
#include "refused.h"
#include "entry.h"
