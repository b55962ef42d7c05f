// What the instructions of inline PTX are turned into (launch/emulator/ptx.py).
#pragma once

namespace mulfree_emulator {
namespace ptx {

// Between registers bits go as they are, as wide as the narrower one.
template <class To, class From>
inline void move(To &to, From from) {
    if constexpr (sizeof(To) == sizeof(From)) to = bits_as<To>(from);
    else to = (To)from;
}

inline unsigned lane_mask_below() { return (1u << mulfree_lane()) - 1; }
inline unsigned lane_bit() { return 1u << mulfree_lane(); }
inline unsigned warp_in_block() {
    return ((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) / 32;
}
inline unsigned warps_in_block() { return (blockDim.x * blockDim.y * blockDim.z + 31) / 32; }

template <class Address>
MULFREE_INLINE void copy(size_t to, Address from, size_t size) {
    __pipeline_memcpy_async(__cvta_shared_to_generic(to), (const void *)from, size);
}
// Of `size` bytes the first `given` come from memory; the others are zeros.
template <class Address>
MULFREE_INLINE void copy(size_t to, Address from, size_t size, size_t given) {
    __pipeline_memcpy_async(__cvta_shared_to_generic(to), (const void *)from, size, size - given);
}

}  // namespace ptx
}  // namespace mulfree_emulator
