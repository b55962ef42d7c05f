// Sums of |a - b| term by term: what a term is of each dtype, and the register tile that the distances of rows
// (distances.hpp) and of windows (match_template.hpp) share.
#pragma once

#include "../engine/words.hpp"

namespace mulfree::MULFREE_ISA {

// An operation has the types of an element, of a lane (one or several elements, and their sums) and of a distance, and
// two terms: `Term` for the tile and `Exact`, |a - b| itself.
template <class T>
struct AbsoluteDifferences {
    using Element = T;
    using Lane = T;
    using Number = T;
    static constexpr bool CANCELS = false;

    struct Exact {
        Vec<T> operator()(Vec<T> total, Vec<T> a, Vec<T> b) const { return add(total, absolute_difference(a, b)); }
    };
    using Term = Exact;
};

// sum |a - b| = (sum max(a, b) - sum a) + (sum max(a, b) - sum b): two instructions instead of three. It cancels if a and b
// are close compared with sum |a| + sum |b|: a distance below an eighth of that is in doubt.
struct Maxima : AbsoluteDifferences<float> {
    static constexpr bool CANCELS = true;

    struct Term {
        Vec<float> operator()(Vec<float> total, Vec<float> a, Vec<float> b) const { return add(total, max(a, b)); }
    };
};

// Bytes, several per lane; exact.
struct ByteDifferences {
    using Element = std::uint8_t;
    using Number = std::int32_t;
    static constexpr bool CANCELS = false;
#if defined(__AVX512F__)
    using Lane = std::uint64_t;
    struct Exact {
        Vec<Lane> operator()(Vec<Lane> total, Vec<Lane> a, Vec<Lane> b) const {
            return total + (Vec<Lane>)_mm512_sad_epu8((__m512i)a, (__m512i)b);
        }
    };
#else
    using Lane = Word;
    struct Exact {
        Vec<Lane> operator()(Vec<Lane> total, Vec<Lane> a, Vec<Lane> b) const { return Bytes::term(total, a, b); }
    };
#endif
    using Term = Exact;
};

template <class Op>
constexpr index PER_LANE = sizeof(typename Op::Lane) / sizeof(typename Op::Element);

// The register tile: MR rows of w by NR adjacent vectors of x.
template <class Op>
constexpr index TILE_LANES = NR * LANES<typename Op::Lane>;

// total[f][v] (+)= sum over t < terms of term(vector v of x + t * step, lane t of row f of w); rows of w are `w_row` bytes
// apart.
template <class Op, int ROWS, int VECTORS, class Lane = typename Op::Lane>
inline void add_terms(const char* w, index w_row, const Lane* x, index step, index terms, Lane* total, index total_row,
                      bool first) {
    const typename Op::Term term;
    Vec<Lane> sum[ROWS][VECTORS] = {};
    const char* row[ROWS];
    for (int f = 0; f < ROWS; ++f) row[f] = w + f * w_row;
    for (index t = 0; t < terms; ++t, x += step) {
        Vec<Lane> pixels[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) pixels[v] = load(x + v * LANES<Lane>);
#pragma GCC unroll 8
        for (int f = 0; f < ROWS; ++f) {
            Lane lane;
            __builtin_memcpy(&lane, row[f] + t * index(sizeof(Lane)), sizeof lane);
            const Vec<Lane> weight = broadcast(lane);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[f][v] = term(sum[f][v], pixels[v], weight);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < ROWS; ++f)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            Lane* to = total + f * total_row + v * LANES<Lane>;
            store(to, first ? sum[f][v] : load(to) + sum[f][v]);
        }
}

// The same for any number of rows, and for a tile's vectors or fewer.
template <class Op, class Lane = typename Op::Lane>
inline void add_rows(index rows, index vectors, const char* w, index w_row, const Lane* x, index step, index terms,
                     Lane* total, index total_row, bool first) {
    const auto of_vectors = [&](auto count) {
        index done = 0;
        const auto piece = [&](auto size) {
            for (; rows - done >= size.value; done += size.value)
                add_terms<Op, size.value, count.value>(w + done * w_row, w_row, x, step, terms,
                                                       total + done * total_row, total_row, first);
        };
        piece(Constant<MR>()), piece(Constant<4>()), piece(Constant<2>()), piece(Constant<1>());
    };
    if (vectors >= NR) of_vectors(Constant<NR>());
    else if (vectors == 2) of_vectors(Constant<2>());
    else of_vectors(Constant<1>());
}

}  // namespace mulfree::MULFREE_ISA
