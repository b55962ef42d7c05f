// The interface between a compiled kernel and the runtime.
//
// The runtime (runtime.cpp) is compiled once and linked to every kernel. A kernel calls it for what C++ lacks: its
// coordinates, barriers, warps, shared memory, atomics.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace mulfree_emulator {

enum class Collective { sync, shuffle, shift, ballot, any, all, match_any, match_all,
                        add, min_signed, min_unsigned, max_signed, max_unsigned, bit_and, bit_or, bit_xor };

// A value read from an inactive lane is undefined on a GPU. Here it is NaN as a float, a double or two halves, and
// large as an integer, so that it shows in the results.
constexpr uint64_t from_nowhere = 0x7fff7fff7fff7fff;

// Whether a number is that NaN, or computed from it: its sign may differ.
template <class T>
inline bool is_from_nowhere(T x) {
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
        using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
        Word bits;
        __builtin_memcpy(&bits, &x, sizeof bits);
        return (bits & ~Word(0) >> 1) == static_cast<Word>(from_nowhere);
    }
    return false;
}

// Of an array: the size of an element, and how many there are along each dimension.
struct Shape {
    size_t element;
    int rank;
    size_t extents[4];

    template <class T>
    static constexpr Shape of() {
        using Element = std::remove_all_extents_t<T>;
        return {sizeof(Element), int(std::rank_v<T>),
                {std::extent_v<T, 0>, std::extent_v<T, 1>, std::extent_v<T, 2>, std::extent_v<T, 3>}};
    }
};

// One __shared__ declaration; the runtime gives it a place when the first thread of a launch meets it.
struct SharedVariable {
    const char *name, *file;
    int line;
    size_t size, align;  // the launcher reads the size in the file: variables.py
    Shape shape;
    unsigned long launch;  // of the launch that placed it
    void *place;
};

static_assert(offsetof(SharedVariable, size) == 24, "variables.py reads it there");

// One kernel parameter: what it is and how wide, for the checks made before a launch.
struct Parameter {
    char kind;            // 'p'ointer, 'i'nteger, 'f'loat, 'b'ool, 's'truct
    int size;             // of the parameter
    char pointee_kind;    // for a pointer: the same letters, or 'v'oid
    int pointee_size;
    bool pointee_const;
};

// A kernel as the launcher sees it.
struct Kernel {
    void (*run)(void **arguments);  // one thread
    const Parameter *parameters;
    int parameter_count;
};

}  // namespace mulfree_emulator

extern "C" {
void *mulfree_shared(mulfree_emulator::SharedVariable *variable);
void *mulfree_dynamic_shared() __attribute__((const));
char *mulfree_shared_window() __attribute__((const));  // shared memory lies behind it
unsigned mulfree_dynamic_shared_size();
int mulfree_barrier(int predicate, const char *file, int line);  // the number of true predicates
uint64_t mulfree_collective(mulfree_emulator::Collective what, unsigned mask, uint64_t value, int source,
                            const char *file, int line);
// What each lane of a whole warp passes, to all of them; of at most 128 bytes.
void mulfree_exchange(const void *mine, size_t size, void *all, const char *file, int line);
unsigned mulfree_active_mask(const char *file, int line);
int mulfree_lane();
// Barriers in two halves for some of the block's threads (meetings.h); a phase is over when all arrived.
void mulfree_meeting_open(const void *at, unsigned expected);
uint64_t mulfree_meeting_arrive(const void *at, unsigned count, bool leave, const char *file, int line);  // the phase
bool mulfree_meeting_over(const void *at, uint64_t phase, const char *file, int line);
void mulfree_meeting_wait(const void *at, uint64_t phase, const char *file, int line);
// Arrives and waits for `expected` threads; at is no address, but tells meetings apart.
void mulfree_meet(const void *at, unsigned expected, bool orders, const char *file, int line);
char *mulfree_room();  // 128 bytes for each thread of a block, which the checks do not see
void mulfree_grid_barrier(const char *file, int line);
bool mulfree_is_cooperative();  // the launch allows it
void mulfree_fence(bool device);
// Announces an atomic access by the caller (decides: memory.h).
void mulfree_atomic(void *address, int size, bool decides);
void mulfree_spin();  // the caller may be waiting for another thread: now and then that one runs
void mulfree_xorwow_skip(unsigned *v, unsigned long long n, int power);  // n * 2^power steps of five words
void mulfree_trap(const char *what, const char *file, int line) __attribute__((noreturn));
int mulfree_printf(const char *format, ...) __attribute__((format(__printf__, 1, 2)));
}
