// What CUB's collectives have in common here. Those that access memory of the text are inlined, so that findings name
// the text's line.
#pragma once

#include <cub/thread/thread_operators.cuh>
#include <mulfree/push_letters.h>

namespace cub {
namespace mulfree {

// What CUB leaves undefined: not a number as a floating-point one, a large one as an integer.
template <class T>
T undefined() {
    alignas(T) unsigned short halves[(sizeof(T) + 1) / 2];
    for (unsigned short &half : halves) half = 0x7fff;
    return *reinterpret_cast<T *>(halves);
}

// Memory for values that are not made before they are stored.
template <class T, int N>
struct Uninitialized {
    alignas(T) char bytes[N * sizeof(T)];
    T &operator[](int i) { return reinterpret_cast<T *>(bytes)[i]; }
};

// The lanes that work together: `Size` neighbours of a warp.
template <int Size>
struct Lanes {
    static_assert(1 <= Size && Size <= 32, "a warp has 1 to 32 threads");
    const int lane = mulfree_lane(), rank = lane % Size;
    const unsigned mask = (Size == 32 ? ~0u : (1u << Size % 32) - 1) << (lane - rank);
    const char *const file;
    const int line;

    Lanes(const char *file, int line) : file(file), line(line) {}

    template <class T>
    T from(int source, const T &v) const {
        const int at = source < 0 ? lane : lane - rank + source;
        return mulfree_emulator::shuffle(mask, v, at, file, line, mulfree_emulator::Collective::shift);
    }
    unsigned ballot(bool flag) const { return __ballot_sync(mask, flag, file, line) >> (lane - rank); }

    // Of the lanes from each one to `last`, in the order of the ranks and by pairs.
    template <class T, class Op>
    T reduce(T v, int last, Op op) const {
        for (int step = 1; step < Size; step *= 2) {
            const bool inside = rank + step <= last;
            const T other = from(inside ? rank + step : rank, v);
            if (inside) v = op(v, other);
        }
        return v;
    }

    // Of the lanes up to each one.
    template <class T, class Op>
    T scan(T v, Op op) const {
        for (int step = 1; step < Size; step *= 2) {
            const T other = from(rank - step, v);
            if (rank >= step) v = op(other, v);
        }
        return v;
    }
};

// The threads of a block of a size known when it is compiled.
template <int X, int Y, int Z>
struct Block {
    static constexpr int size = X * Y * Z, warps = (size + 31) / 32;
    const int rank = static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
    const int warp = rank / 32;

    Block(const char *file, int line) {
        if (blockDim.x != X || blockDim.y != Y || blockDim.z != Z)
            mulfree_trap("cub: the block is not of the size that the template says", file, line);
    }
    // The last lane of this thread's warp.
    int last_lane(int threads = size) const {
        const int left = threads - 32 * warp;
        return left < 32 ? left - 1 : 31;
    }
};

// The storage that a collective has of its own if it is given none.
template <class Storage>
Storage &own_storage() {
    static mulfree_emulator::SharedVariable mulfree_place_of_storage = {
        "the storage of a collective", __FILE__, __LINE__, sizeof(Storage), alignof(Storage),
        mulfree_emulator::Shape::of<Storage>(), 0, nullptr};
    return *static_cast<Storage *>(mulfree_shared(&mulfree_place_of_storage));
}

}  // namespace mulfree
}  // namespace cub

#include <mulfree/pop_letters.h>
