// The L1 distances of an image's windows from a template.
//
// The rows of the register tile are rows of y: a row of the image contributes to each of them with another row of the
// template. A lane of bytes has several columns: a row of the image is expanded to overlapping lanes.
#pragma once

#include "../engine/workspace.hpp"
#include "distance_terms.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index MATCH_ROWS = 24;  // of y per unit of work: whole tiles of 8 or 6 rows; totals stay in the first-level cache
constexpr index MATCH_TILES = 8;  // of columns per unit of work

// to[c] = the elements from column c on, zero from `end` on.
template <class Lane, class Element>
inline void overlapping_lanes(const Element* row, index count, const Element* end, Lane* to) {
    constexpr index SIZE = sizeof(Lane) / sizeof(Element);
    index c = 0;
#if defined(__AVX2__)
    if constexpr (SIZE == 8) {
        // Each quarter of a vector makes two lanes of the same 16 bytes.
        alignas(64) static const std::uint8_t order[64] = {
            0, 1, 2, 3, 4, 5,  6,  7,  1, 2, 3, 4,  5,  6,  7,  8,  2, 3, 4, 5, 6,  7,  8,  9,  3, 4,  5,  6,  7,  8,  9,  10,
            4, 5, 6, 7, 8, 9, 10, 11, 5, 6, 7, 8, 9, 10, 11, 12, 6, 7, 8, 9, 10, 11, 12, 13, 7, 8, 9, 10, 11, 12, 13, 14};
        for (; c + LANES<Lane> <= count && end - (row + c) >= 16; c += LANES<Lane>) {
            const __m128i bytes = _mm_loadu_si128((const __m128i*)(row + c));
#if defined(__AVX512F__)
            const auto lanes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), _mm512_load_si512(order));
#else
            const auto lanes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), _mm256_load_si256((const __m256i*)order));
#endif
            store(to + c, (Vec<Lane>)lanes);
        }
    }
#endif
    for (; c < count; ++c) {
        to[c] = 0;
        __builtin_memcpy(to + c, row + c, std::size_t(larger(0, smaller(SIZE, end - (row + c)))) * sizeof(Element));
    }
}
template <class T>
inline void overlapping_lanes(const T* row, index count, const T* end, T* to) {
    const index there = larger(0, smaller(count, end - row));
    __builtin_memcpy(to, row, std::size_t(there) * sizeof(T));
    for (index c = there; c < count; ++c) to[c] = 0;
}

template <class Op>
inline void match_template(const Matching<typename Op::Element, typename Op::Number>& p) {
    using Lane = typename Op::Lane;
    using Number = typename Op::Number;
    constexpr index SIZE = PER_LANE<Op>, COUNT = LANES<Lane>, COLUMNS = MATCH_TILES * TILE_LANES<Op>;
    const index y_rows = p.height - p.rows + 1, y_columns = p.width - p.columns + 1;
    const index bands = ceil_div(y_rows, MATCH_ROWS), cuts = ceil_div(y_columns, COLUMNS);
    const index lanes = ceil_div(p.columns, SIZE), whole = p.columns / SIZE;  // of a row of the template
    const index reach = COLUMNS + lanes * SIZE;
    const auto* end = p.image + p.channels * p.height * p.width;

    Workspace shared;  // the template in lanes, zero past the end of a row
    shared.allocate(p.channels * p.rows * lanes * index(sizeof(Lane)));
    Lane* pattern = reinterpret_cast<Lane*>(shared.data());
    for (index r = 0; r < p.channels * p.rows; ++r)
        for (index l = 0; l < lanes; ++l) {
            const index column = l * SIZE;
            pattern[r * lanes + l] = 0;
            __builtin_memcpy(pattern + r * lanes + l, p.pattern + r * p.columns + column,
                             std::size_t(smaller(SIZE, p.columns - column)) * sizeof(*p.pattern));
        }

    Carver measure(nullptr);
    const auto take_totals = [](Carver& memory) { return memory.take<Lane>(MATCH_ROWS * COLUMNS); };
    const auto take_row = [&](Carver& memory) { return memory.take<Lane>(reach); };
    take_totals(measure), take_row(measure), take_row(measure);
    const double work = double(y_rows) * double(y_columns) * double(p.channels * p.rows * lanes);
    Team team(threads_for(bands * cuts, work, measure.used()));
    Workspace workspace;
    workspace.allocate(team.size() * measure.used());
    Units units(bands * cuts, 1);
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * measure.used());
        Lane *total = take_totals(mine), *row = take_row(mine), *ends = take_row(mine);
        units.each([&](index unit) {
            const index y = unit / cuts * MATCH_ROWS, x = unit % cuts * COLUMNS;
            const index rows = smaller(MATCH_ROWS, y_rows - y), columns = smaller(COLUMNS, y_columns - x);
            for (index i = 0; i < rows * COLUMNS; ++i) total[i] = 0;
            for (index channel = 0; channel < p.channels; ++channel)
                for (index r = 0; r < rows + p.rows - 1; ++r) {
                    const index first = larger(0, r - p.rows + 1), count = smaller(rows, r + 1) - first;
                    overlapping_lanes(p.image + (channel * p.height + y + r) * p.width + x, reach, end, row);
                    const char* w = (const char*)(pattern + (channel * p.rows + r - first) * lanes);
                    const auto add = [&](const Lane* from, const char* of, index terms) {
                        for (index c = 0; c < columns; c += TILE_LANES<Op>)
                            add_rows<Op>(count, ceil_div(columns - c, COUNT), of, -lanes * index(sizeof(Lane)), from + c, SIZE,
                                         terms, total + first * COLUMNS + c, COLUMNS, false);
                    };
                    add(row, w, whole);
                    if constexpr (SIZE > 1)
                        if (whole < lanes) {  // in the last lane, columns past the template's are masked
                            const Lane mask = (Lane(1) << 8 * (p.columns - whole * SIZE)) - 1;
                            for (index c = 0; c < COLUMNS; ++c) ends[c] = row[c + whole * SIZE] & mask;
                            add(ends, w + whole * index(sizeof(Lane)), 1);
                        }
                }
            for (index r = 0; r < rows; ++r)
                for (index c = 0; c < columns; ++c)
                    p.out[(y + r) * y_columns + x + c] = Number(total[r * COLUMNS + c]);
        });
    });
}

}  // namespace mulfree::MULFREE_ISA
