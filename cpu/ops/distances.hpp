// L1 distances of rows from rows: all of them, or the nearest alone.
//
// The distances are computed in blocks of some rows of a by some rows of b. b is packed (transposed) for the register
// tile; a is read in place, one broadcast at a time. The reduction is split into blocks as well, so that a packed tile
// of b stays in the first-level cache, and their sums are added to totals in memory. A distance depends on its two rows
// alone, not on the blocking: d(a, b) = d(b, a), in every call.
#pragma once

#include "../engine/workspace.hpp"
#include "distance_terms.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index DISTANCE_ROWS = 252;   // of a in a block: whole tiles of 6 or 4 rows; totals stay in the second-level cache
constexpr index DISTANCE_TILES = 8;    // of b
constexpr index DISTANCE_TERMS = 160;  // 160 rows of three 64-byte vectors are 30 KiB
constexpr index FEWEST_ROWS = 4;       // fewer are not worth packing
constexpr index FEW_TERMS = 4;         // fewer are not worth the sum of maxima

// ---- one pair -------------------------------------------------------------------------------------------

// A vector of `bytes` bytes, zero behind them.
template <class Lane>
inline Vec<Lane> load_part(const char* from, index bytes) {
    if (bytes >= VECTOR_BYTES) return load((const Lane*)from);
#if defined(__AVX512F__)
    return (Vec<Lane>)_mm512_maskz_loadu_epi8((__mmask64(1) << bytes) - 1, from);
#else
    Vec<Lane> v{};
    __builtin_memcpy(&v, from, std::size_t(bytes));
    return v;
#endif
}

template <class Op>
inline typename Op::Number distance(const char* a, const char* b, index bytes) {
    using Lane = typename Op::Lane;
    constexpr index SUMS = 4;
    const typename Op::Exact term;
    Vec<Lane> sum[SUMS] = {};
    index at = 0;
    for (; bytes - at >= SUMS * VECTOR_BYTES; at += SUMS * VECTOR_BYTES)
#pragma GCC unroll 4
        for (index s = 0; s < SUMS; ++s)
            sum[s] = term(sum[s], load((const Lane*)(a + at) + s * LANES<Lane>), load((const Lane*)(b + at) + s * LANES<Lane>));
    for (; at < bytes; at += VECTOR_BYTES)
        sum[0] = term(sum[0], load_part<Lane>(a + at, bytes - at), load_part<Lane>(b + at, bytes - at));
    Lane lane[LANES<Lane>];
    store(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (index half = LANES<Lane> / 2; half; half /= 2)
        for (index i = 0; i < half; ++i) lane[i] += lane[i + half];
    return typename Op::Number(lane[0]);
}

// For the maxima: the sum of each row and that of its absolute values, in float32 within a piece, float64 over pieces.
class RowSums {
public:
    void find(const Rows<float>& rows, index length) {
        memory_.allocate(2 * rows.count * index(sizeof(float)));
        sum_ = reinterpret_cast<float*>(memory_.data()), size_ = sum_ + rows.count;
        for_each_unit(rows.count, double(rows.count * length), [&](index r) { add_up(rows.data + r * rows.stride, length, r); });
    }
    const float* sum() const { return sum_; }
    const float* size() const { return size_; }

private:
    static constexpr index PARTS = 4, PIECE = DISTANCE_TERMS * LANES<float>;
    Workspace memory_;
    float *sum_ = nullptr, *size_ = nullptr;

    void add_up(const float* row, index length, index r) {
        double sum = 0, size = 0;
        for (index from = 0; from < length; from += PIECE) {
            Vec<float> part[PARTS] = {}, part_size[PARTS] = {};
            const auto add = [&](index n, Vec<float> v) { part[n] += v, part_size[n] += abs(v); };
            const index end = smaller(length, from + PIECE);
            index i = from;
            for (; end - i >= PARTS * LANES<float>; i += PARTS * LANES<float>)
#pragma GCC unroll 4
                for (index n = 0; n < PARTS; ++n) add(n, load(row + i + n * LANES<float>));
            for (; i < end; i += LANES<float>) add(0, load_part<float>((const char*)(row + i), (end - i) * index(sizeof(float))));
            sum += sum_lanes<float>((part[0] + part[1]) + (part[2] + part[3]));
            size += sum_lanes<float>((part_size[0] + part_size[1]) + (part_size[2] + part_size[3]));
        }
        sum_[r] = float(sum), size_[r] = float(size);
    }
};

// ---- packing --------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
// Interleaves the first (second) halves of a and b.
template <bool SECOND, class V>
inline V interleaved(V a, V b) {
    if constexpr (sizeof(a[0]) == 4) {
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        return (V)_mm512_permutex2var_epi32((__m512i)a, _mm512_add_epi32(low, _mm512_set1_epi32(8 * SECOND)), (__m512i)b);
    } else {
        const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        return (V)_mm512_permutex2var_epi64((__m512i)a, _mm512_add_epi64(low, _mm512_set1_epi64(4 * SECOND)), (__m512i)b);
    }
}
#endif

// Packs lanes [first, first + count) of one row per vector lane: to[lane * TILE_LANES + row], zero past the last row and
// past the end of a row.
template <class Op, class Lane = typename Op::Lane>
inline void pack_transposed(const char* row, index stride, index rows, index bytes, index first, index count, Lane* to) {
    constexpr index N = LANES<Lane>, ROW = TILE_LANES<Op>;
    const index begin = first * index(sizeof(Lane));
#if defined(__AVX512F__)
    for (index c = 0; c < count; c += N) {
        const index at = begin + c * index(sizeof(Lane)), left = bytes - at;
        Vec<Lane> x[N], merged[N];
#pragma GCC unroll 16
        for (index r = 0; r < N; ++r)
            x[r] = r < rows ? load_part<Lane>(row + r * stride + at, left) : Vec<Lane>{};
        // Repeated interleaving of the first half of the vectors with the second transposes.
#pragma GCC unroll 4
        for (index size = 1; size < N; size *= 2) {
#pragma GCC unroll 8
            for (index r = 0; r < N / 2; ++r) {
                merged[2 * r] = interleaved<false>(x[r], x[r + N / 2]);
                merged[2 * r + 1] = interleaved<true>(x[r], x[r + N / 2]);
            }
#pragma GCC unroll 16
            for (index r = 0; r < N; ++r) x[r] = merged[r];
        }
        if (count - c >= N)
#pragma GCC unroll 16
            for (index r = 0; r < N; ++r) store(to + (c + r) * ROW, x[r]);
        else
            for (index r = 0; r < count - c; ++r) store(to + (c + r) * ROW, x[r]);
    }
#else
    for (index r = 0; r < N; ++r)
        for (index c = 0; c < count; ++c) {
            const index at = begin + c * index(sizeof(Lane)), left = bytes - at;
            Lane lane = 0;
            if (r < rows && left >= index(sizeof(Lane))) __builtin_memcpy(&lane, row + r * stride + at, sizeof lane);
            else if (r < rows) __builtin_memcpy(&lane, row + r * stride + at, std::size_t(left));
            to[c * ROW + r] = lane;
        }
#endif
}

// ---- a block --------------------------------------------------------------------------------------------

// What all blocks share.
template <class Op>
struct DistanceProblem {
    using Element = typename Op::Element;

    const Rows<Element> a, b;
    const index length;
    const bool few;  // rows: pair by pair, without packing
    RowSums of_a, of_b;

    template <class P>
    explicit DistanceProblem(const P& p)
        : a(p.a), b(p.b), length(p.length), few(a.count < FEWEST_ROWS || b.count < FEWEST_ROWS) {
        if constexpr (Op::CANCELS)
            if (!few) of_a.find(a, length), of_b.find(b, length);
    }
    index lanes() const { return ceil_div(length, PER_LANE<Op>); }
    double work() const { return double(a.count) * double(b.count) * double(lanes()); }
};

template <class Op>
class DistanceBlock {
    using Element = typename Op::Element;
    using Lane = typename Op::Lane;
    static constexpr index COUNT = LANES<Lane>, TILE = TILE_LANES<Op>;

public:
    using Number = typename Op::Number;
    static constexpr index COLUMNS = DISTANCE_TILES * TILE;  // rows of b, at most

    DistanceBlock(const DistanceProblem<Op>& problem, Carver& scratch)
        : p_(problem), bytes_(p_.length * index(sizeof(Element))), most_terms_(smaller(DISTANCE_TERMS, p_.lanes())) {
        if (p_.few) return;
        packed_ = scratch.take<Lane>(COLUMNS * most_terms_);
        total_ = scratch.take<Lane>(DISTANCE_ROWS * COLUMNS);
        if (bytes_ % index(sizeof(Lane))) ended_ = scratch.take<Lane>(DISTANCE_ROWS * most_terms_);
    }

    // Computes a block of at most DISTANCE_ROWS by COLUMNS.
    void take(index first_a, index rows, index first_b, index columns) {
        first_a_ = first_a, first_b_ = first_b, columns_ = columns;
        if (p_.few) return;
        for (index first = 0; first < p_.lanes(); first += most_terms_) {
            const index terms = smaller(most_terms_, p_.lanes() - first), begin = first * index(sizeof(Lane));
            for (index c = 0; c < columns; c += COUNT)
                pack_transposed<Op>(row(p_.b, first_b + c), stride(p_.b), columns - c, bytes_, first, terms,
                              packed_ + c / TILE * most_terms_ * TILE + c % TILE);
            const char* w = row(p_.a, first_a) + begin;
            index w_row = stride(p_.a);
            if (begin + terms * index(sizeof(Lane)) > bytes_) {  // the last lanes extend past the end of the rows
                for (index r = 0; r < rows; ++r) {
                    Lane* to = ended_ + r * most_terms_;
                    to[terms - 1] = 0;
                    __builtin_memcpy(to, w + r * w_row, std::size_t(bytes_ - begin));
                }
                w = (const char*)ended_, w_row = most_terms_ * index(sizeof(Lane));
            }
            for (index c = 0; c < columns; c += TILE)
                add_rows<Op>(rows, ceil_div(columns - c, COUNT), w, w_row, packed_ + c * most_terms_, TILE, terms,
                             total_ + c, COLUMNS, first == 0);
        }
    }

    // The distances of row r of the block, from all of its rows of b.
    void write(index r, Number* to) const {
        if (p_.few) {
            for (index c = 0; c < columns_; ++c) to[c] = one(r, c);
            return;
        }
        for (index c = 0; c < columns_; c += COUNT, to += COUNT) {
            const Vec<Lane> total = load(total_ + r * COLUMNS + c);
            Lanes<Number, COUNT> numbers;
            if constexpr (Op::CANCELS) numbers = settled(total, r, c);
            else numbers = __builtin_convertvector(total, Lanes<Number, COUNT>);
            if (columns_ - c >= COUNT) store_lanes(to, numbers);
            else __builtin_memcpy(to, &numbers, std::size_t(columns_ - c) * sizeof(Number));
        }
    }

private:
    const DistanceProblem<Op>& p_;
    const index bytes_, most_terms_;  // of a row; lanes in a block of the reduction
    index first_a_ = 0, first_b_ = 0, columns_ = 0;
    Lane *packed_ = nullptr, *total_ = nullptr;  // [tile][term][lane]; [row of a][row of b]
    Lane* ended_ = nullptr;                      // the last lanes of rows of a, the last one padded with zeros

    static index stride(const Rows<Element>& rows) { return rows.stride * index(sizeof(Element)); }
    static const char* row(const Rows<Element>& rows, index r) { return (const char*)(rows.data + r * rows.stride); }
    Number one(index r, index c) const {
        return distance<Op>(row(p_.a, first_a_ + r), row(p_.b, first_b_ + c), bytes_);
    }

    // From the sums of maxima of row r and rows [c, c + COUNT); in doubt, or where it overflows or is NaN, term by term.
    Vec<Lane> settled(Vec<Lane> total, index r, index c) const {
        const index a = first_a_ + r, b = first_b_ + c, bytes = (p_.b.count - b) * index(sizeof(Lane));
        const auto of_b = [=](const float* sums) { return load_part<float>((const char*)(sums + b), bytes); };
        Vec<Lane> numbers = (total - of_b(p_.of_b.sum())) + (total - p_.of_a.sum()[a]);
        const Vec<Lane> least = 0.125f * (of_b(p_.of_b.size()) + p_.of_a.size()[a]);
        if (__builtin_expect(below<Lane>(numbers, least), false))
            for (index i = 0; i < smaller(COUNT, columns_ - c); ++i)
                if (!(numbers[i] >= least[i])) numbers[i] = one(r, c + i);
        return numbers;
    }
};

// Rows of a per block, few enough to occupy every thread.
inline index rows_at_once(index rows, index columns_cut, index threads) {
    return smaller(DISTANCE_ROWS, round_up(ceil_div(rows, ceil_div(4 * threads, columns_cut)), MR));
}

// ---- all distances --------------------------------------------------------------------------------------

template <class Op>
inline void all_distances(const Distances<typename Op::Element, typename Op::Number>& p) {
    using Block = DistanceBlock<Op>;
    const DistanceProblem<Op> problem(p);
    const index cut = ceil_div(p.b.count, Block::COLUMNS);
    const index rows = rows_at_once(p.a.count, cut, threads_for(index(1) << 30, problem.work()));
    const index units = cut * ceil_div(p.a.count, rows);
    Carver measure(nullptr);
    Block(problem, measure);
    Team team(threads_for(units, problem.work(), measure.used()));
    Workspace workspace;
    workspace.allocate(team.size() * measure.used());
    Units all(units, 1);
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * measure.used());
        Block block(problem, mine);
        all.each([&](index unit) {
            const index a = unit / cut * rows, b = unit % cut * Block::COLUMNS;
            const index count = smaller(rows, p.a.count - a);
            block.take(a, count, b, smaller(Block::COLUMNS, p.b.count - b));
            for (index r = 0; r < count; ++r) block.write(r, p.out + (a + r) * p.out_row + b);
        });
    });
}

// ---- the nearest ----------------------------------------------------------------------------------------

// A bit for every lane of a that is less than b.
template <class T>
inline unsigned int lanes_less(Vec<T> a, T b) {
#if defined(__AVX512F__)
    if constexpr (Same<T, float>::value) return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(b), _CMP_LT_OQ);
    else if constexpr (Same<T, double>::value) return _mm512_cmp_pd_mask((__m512d)a, _mm512_set1_pd(b), _CMP_LT_OQ);
    else return _mm512_cmplt_epi32_mask((__m512i)a, _mm512_set1_epi32(b));
#else
    const auto less = a < broadcast(b);
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return unsigned(_mm256_movemask_ps((__m256)less));
    else return unsigned(_mm256_movemask_pd((__m256d)less));
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) return unsigned(_mm_movemask_ps((__m128)less));
    else return unsigned(_mm_movemask_pd((__m128d)less));
#else
    unsigned int lanes = 0;
    for (index i = 0; i < LANES<T>; ++i) lanes |= unsigned(less[i] != 0) << i;
    return lanes;
#endif
#endif
}

// The k nearest candidates so far, as a max-heap by (distance, index).
template <class D>
struct NearestList {
    static constexpr std::int64_t NOWHERE = 0x7fffffffffffffff;  // an empty entry

    D* distances;
    std::int64_t* indices;
    index k;

    void clear() {
        constexpr D FURTHEST = Same<D, std::int32_t>::value ? D(0x7fffffff) : D(__builtin_inf());
        for (index i = 0; i < k; ++i) distances[i] = FURTHEST, indices[i] = NOWHERE;
    }
    // Candidates with consecutive indices, greater than all earlier ones: of ties the earlier stay.
    void offer(const D* numbers, index count, std::int64_t point) {
        index i = 0;
        for (; i < count && indices[0] == NOWHERE; ++i) offer(numbers[i], point + i);
        for (; count - i >= LANES<D>; i += LANES<D>)
            for (unsigned int less = lanes_less<D>(load(numbers + i), distances[0]); less; less &= less - 1) {
                const index at = i + __builtin_ctz(less);
                offer(numbers[at], point + at);
            }
        for (; i < count; ++i) offer(numbers[i], point + i);
    }
    void offer(D distance, std::int64_t point) {
        if (is_before(distance, point, 0)) sink(distance, point, 0, k);
    }
    // Heapsort; no longer a heap then.
    void sort() {
        for (index last = k - 1; last > 0; --last) {
            const D distance = distances[last];
            const std::int64_t point = indices[last];
            distances[last] = distances[0], indices[last] = indices[0];
            sink(distance, point, 0, last);
        }
    }

private:
    bool is_before(D distance, std::int64_t point, index i) const {
        return distance < distances[i] || (distance == distances[i] && point < indices[i]);
    }
    // Replaces entry i and restores the heap below.
    void sink(D distance, std::int64_t point, index i, index count) {
        for (index child; (child = 2 * i + 1) < count; i = child) {
            if (child + 1 < count && is_before(distances[child], indices[child], child + 1)) ++child;
            if (!is_before(distance, point, child)) break;
            distances[i] = distances[child], indices[i] = indices[child];
        }
        distances[i] = distance, indices[i] = point;
    }
};

// With few rows of a, those of b are split into slices, whose lists are merged at the end.
template <class Op>
inline void nearest(const Nearest<typename Op::Element, typename Op::Number>& p) {
    using Block = DistanceBlock<Op>;
    using Number = typename Op::Number;
    const DistanceProblem<Op> problem(p);
    const index columns = ceil_div(p.b.count, Block::COLUMNS);
    const index threads = threads_for(index(1) << 30, problem.work());
    const index rows = rows_at_once(p.a.count, 1, threads), cut = ceil_div(p.a.count, rows);
    const index slices = smaller(columns, ceil_div(2 * threads, cut));
    Carver measure(nullptr);
    const auto take_numbers = [](Carver& memory) { return memory.take<Number>(Block::COLUMNS); };
    Block(problem, measure), take_numbers(measure);
    Team team(threads_for(cut * slices, problem.work(), measure.used()));
    Workspace workspace, lists;
    workspace.allocate(team.size() * measure.used());
    const index listed = (slices - 1) * p.a.count * p.k;  // the first slice uses the output arrays
    lists.allocate(listed * index(sizeof(std::int64_t) + sizeof(Number)));
    auto* indices = reinterpret_cast<std::int64_t*>(lists.data());
    auto* distances = reinterpret_cast<Number*>(indices + listed);
    const auto list = [&](index slice, index row) -> NearestList<Number> {
        if (slice == 0) return {p.distances + row * p.k, p.indices + row * p.k, p.k};
        const index at = ((slice - 1) * p.a.count + row) * p.k;
        return {distances + at, indices + at, p.k};
    };
    Units units(cut * slices, 1);
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * measure.used());
        Block block(problem, mine);
        Number* numbers = take_numbers(mine);
        units.each([&](index unit) {
            const index slice = unit % slices, a = unit / slices * rows, count = smaller(rows, p.a.count - a);
            for (index r = 0; r < count; ++r) list(slice, a + r).clear();
            for (index c = columns * slice / slices; c < columns * (slice + 1) / slices; ++c) {
                const index b = c * Block::COLUMNS, of_b = smaller(Block::COLUMNS, p.b.count - b);
                block.take(a, count, b, of_b);
                for (index r = 0; r < count; ++r) {
                    block.write(r, numbers);
                    list(slice, a + r).offer(numbers, of_b, b);
                }
            }
        });
    });
    for_each_unit(team, p.a.count, [&](index r) {
        NearestList<Number> all = list(0, r);
        for (index slice = 1; slice < slices; ++slice) {
            const NearestList<Number> some = list(slice, r);
            for (index i = 0; i < p.k; ++i) all.offer(some.distances[i], some.indices[i]);
        }
        all.sort();
    });
}

}  // namespace mulfree::MULFREE_ISA
