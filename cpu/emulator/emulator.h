// The language of CUDA for a C++ compiler: included in front of every kernel that the emulator runs.
//
// The launcher (mulfree_cupy/launch/emulator) preprocesses a .cu text after this header, rewrites what
// no macro can express (__shared__ declarations), and compiles the result.
#pragma once

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

// The C library's own would pass the checks by.
extern "C" void *memcpy(void *, const void *, size_t) noexcept __asm__("mulfree_memcpy");
extern "C" void *memmove(void *, const void *, size_t) noexcept __asm__("mulfree_memmove");
extern "C" void *memset(void *, int, size_t) noexcept __asm__("mulfree_memset");

#define MULFREE_EMULATOR 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition) ((void)0)
#define printf mulfree_printf
#undef assert
#define assert(condition) \
    ((condition) ? (void)0 : mulfree_trap("assertion failed: " #condition, __FILE__, __LINE__))
#define __trap() mulfree_trap("__trap()", __FILE__, __LINE__)
#define __brkpt() ((void)0)

// Inlined even so: what it accesses is accounted to the kernel's own line.
#define MULFREE_INLINE __attribute__((always_inline)) inline

// Reads and writes that the checks do not see, for what announces itself to them.
#define MULFREE_UNSEEN __attribute__((noinline, no_sanitize("thread")))

#include "launch.h"
#include "types.h"

#define threadIdx (mulfree_emulator::coordinates(mulfree_emulator::thread_x))
#define blockIdx (mulfree_emulator::coordinates(mulfree_emulator::block_x))
#define blockDim (dim3(mulfree_emulator::coordinates(mulfree_emulator::block_dim_x)))
#define gridDim (dim3(mulfree_emulator::coordinates(mulfree_emulator::grid_dim_x)))
constexpr int warpSize = 32;

namespace mulfree_emulator {
MULFREE_INLINE uint3 coordinates(int first) {
    return {mulfree_coordinate(first), mulfree_coordinate(first + 1), mulfree_coordinate(first + 2)};
}
}  // namespace mulfree_emulator

#include "arithmetic.h"
#include "integers.h"
#include "atomics.h"
#include "warp.h"
#include "half.h"
#include "groups.h"
#include "entry.h"
