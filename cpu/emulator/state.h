// The state of the launch that is running: its threads, its clock, its findings.
//
// One launch runs at a time in a process, on one thread of the CPU: the launcher holds a lock.
#pragma once

#include <csetjmp>

#include "fibers.h"
#include "launch.h"

// The kernel's built-in variables; it sees them as constants of its own types.
extern "C" {
struct Coordinates {
    unsigned x, y, z;
};
extern __attribute__((visibility("hidden"))) Coordinates threadIdx, blockIdx, blockDim, gridDim;
}

namespace mulfree_emulator {

// Off the path of every access: small and compiled quickly rather than fast.
#define MULFREE_RARE __attribute__((cold, noinline))

constexpr unsigned max_threads = 1024, warp_size = 32, max_warps = max_threads / warp_size;

enum class State : uint8_t { ready, yielded, at_barrier, at_meeting, at_grid, in_collective, converging, exited };

// A place in the kernel's text.
struct Place {
    const char *file;  // null: none
    int line;
};

struct AtomicAccess {
    uintptr_t address;  // 0: none
    uint32_t time, thread;
};

struct Thread {
    Fiber fiber;
    State state;
    bool stopped;         // by a finding: its absence from a barrier is no second finding
    uint32_t steps;       // writes and partial collectives since its whole warp or block met
    uint32_t fence, device_fence;   // when it last ran __threadfence_block, __threadfence
    uint32_t global_write;          // when it last wrote to global memory
    uint32_t acquired;              // when it last learned of others by an atomic access; 0: never
    uint32_t lane_seen[warp_size];  // what of its warp's lanes came before it: all before this time
    unsigned x, y, z;
    // What it waits for: a barrier's predicate or a collective's operands, and where.
    Collective what;
    unsigned mask;
    int source;
    uint64_t value, result;
    uint32_t touched;      // when it last accessed memory that the checks see
    const void *waits_at;  // a meeting, for the phase `value`
    const char *file;
    int line;
    uintptr_t spin;  // where it last may have waited for another thread in a loop
    AtomicAccess atomic;                // the last one
    Place passed, passed_beyond_warp;   // the last barriers: of any kind, and of more than its warp
};

enum class Access : int { read, write, atomic };

enum class Kind : int {
    out_of_bounds, misaligned, race, uninitialised, divergent_barrier, divergent_collective,
    out_of_row, trap, crash, timeout, read_only, same_value
};

// Memory from malloc or new.
struct Piece {
    size_t start, size;         // in the heap
    uint64_t allocated, freed;  // by which calls: offsets in the module; freed 0: it is in use
};

constexpr int max_calls = 16;

// A fault as the launcher reads it (emulator/runtime.py holds the same layout).
struct Finding {
    Kind kind;
    Access access, other_access;
    int size;                     // bytes of the access
    uint64_t pc, other_pc;        // offsets in the module, 0 when file and line say it
    const char *file, *other_file, *text;
    int line, other_line;
    int column;                   // of the closing bracket of an index
    uint32_t thread, other_thread;
    uint64_t block, other_block;
    int64_t offset;               // bytes from the start of the array, or of the piece of the heap
    Piece piece;                  // of size 0: the array is not the heap
    int region;                   // -1: no array is near
    int count;
    Place passed;                 // of a race in a block: the last barrier before both accesses
    int atomic_between;           // of a race: 1 by the thread of the earlier access, 2 by another of its block
    int guard;                    // a plain read beside an atomic access: 1 the read is pc, 2 other_pc
    int call_count;
    uint64_t calls[max_calls];    // return addresses up to the kernel, from the innermost
};

// What the launcher passes in (the same layout in emulator/runtime.py).
struct Array {
    void *base;
    size_t size;
    void *origin;  // start of the allocation: as on a GPU it begins a sector
    uintptr_t *pointer;  // what the kernel finds it by: an argument, or a member of a struct
    int name;            // the launcher's number for it
    int writable;
};

// A variable of the kernel's text.
struct Variable {
    const char *name;  // null: the string literals
    uint64_t offset;   // from the start of the module
    size_t size;
    int writable;
};

struct Launch {
    uint32_t grid[3], block[3];
    uint32_t dynamic_shared;
    int check;          // 0 no, 1 stop at the first finding, 2 collect
    int trace;
    int64_t followed;   // the block whose requests are kept, -1 for none
    char *stacks;       // max_threads stacks of stack_size bytes
    size_t stack_size;
    void **arguments;
    const Array *arrays;  // by ascending address
    int array_count;
    const Variable *variables;
    int variable_count;
    int guide;          // a barrier is one for all threads, as the programming guide asks
    int cooperative;    // blocks may wait for the whole grid
    double seconds;     // the time limit
};

struct Launcher {
    const Launch *launch;
    const Kernel *kernel;
    Fiber scheduler;
    sigjmp_buf abandon;           // where a signal or a fault leaves the launch
    Thread threads[max_threads];
    unsigned thread_count, warp_count;
    unsigned current;             // the thread that runs
    uint64_t block;
    uint32_t block_x, block_y, block_z;
    char *stack;                  // of the current thread
    unsigned exited, waiting, at_grid;  // threads of the block
    uint32_t interval;            // barriers that the block has passed
    bool barrier_diverged;        // a thread waits at another line than the first that came
    const char *barrier_file;
    int barrier_line;
    int barrier_result;
    uint32_t time;                // counts barriers, warp barriers and fences through the launch
    uint32_t block_start, floor;  // times: of the block's start, of its last barrier
    uint32_t warp_floor[max_warps];  // of the last barrier of the whole warp
    uint32_t grid_floor;          // the time of the grid's last barrier
    uint32_t published;           // what of the block came before this is fenced towards other blocks
    unsigned long number;         // of this launch
    bool stopping;                // a fault was found; the launch ends at the next barrier
    volatile bool interrupted, busy;
    Finding *volatile unwinding;  // the finding for which the stack is read, which may be overwritten
    double deadline;
    uint32_t accesses;            // of the launch, to look at the clock now and then
    uint32_t spins;
};

extern Launcher now;

[[noreturn]] void abandon_launch();
void leave_thread();             // stop the current thread, let the others go on
void yield();
void add_timeout(uintptr_t pc);
void stop_if_out_of_time(uintptr_t pc = 0);
// Unless findings are collected, a finding stops the launch: at once, or, where the thread can go on,
// at the next barrier, for a divergent barrier explains the races that follow from it.
void report(const Finding &finding);
void add_finding(const Finding &finding);
Finding here(Kind kind);  // of the current thread
void add_calls(Finding &finding);  // that led here

}  // namespace mulfree_emulator
