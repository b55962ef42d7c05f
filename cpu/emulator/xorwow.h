// Jumps in the xorshift part of XORWOW, a linear map on 160 bits: by powers of its matrix.
#pragma once

#include "memory.h"

namespace mulfree_emulator {

constexpr int xorwow_bits = 160, xorwow_words = 5, xorwow_powers = 67 + 64;

struct XorwowMatrix {
    uint32_t image[xorwow_bits][xorwow_words];  // of every single bit

    void apply(uint32_t *v) const {
        uint32_t r[xorwow_words] = {};
        for (int bit = 0; bit < xorwow_bits; ++bit)
            if (v[bit / 32] >> bit % 32 & 1)
                for (int i = 0; i < xorwow_words; ++i) r[i] ^= image[bit][i];
        std::memcpy(v, r, sizeof r);
    }
};

inline void step_xorwow(uint32_t *v) {
    const uint32_t t = v[0] ^ v[0] >> 2;
    for (int i = 0; i < 4; ++i) v[i] = v[i + 1];
    v[4] = v[3] ^ v[3] << 4 ^ t ^ t << 1;
}

// 2^power steps; each power is made when it is first asked for.
inline const XorwowMatrix &xorwow_matrix(int power) {
    static XorwowMatrix *const matrices =
        reinterpret_cast<XorwowMatrix *>(map_zeros(xorwow_powers * sizeof(XorwowMatrix)));
    static int known = 0;
    for (; known <= power; ++known) {
        for (int bit = 0; bit < xorwow_bits; ++bit) {
            uint32_t *image = matrices[known].image[bit];
            if (known == 0) {
                image[bit / 32] = 1u << bit % 32;
                step_xorwow(image);
            } else {
                std::memcpy(image, matrices[known - 1].image[bit], sizeof matrices[0].image[0]);
                matrices[known - 1].apply(image);
            }
        }
    }
    return matrices[power];
}

}  // namespace mulfree_emulator
