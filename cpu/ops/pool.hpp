// Pooling: for every row of y, the rows of its windows are combined into one, then the columns of each window, and
// every stride-th result is selected. Vectors may extend into the next row.
#pragma once

#include "../engine/workspace.hpp"

namespace mulfree::MULFREE_ISA {

// The reduction of a window; `outside` is its neutral element.
template <class T>
struct Largest {
    static constexpr T outside = sizeof(T) == 1 ? T(0) : T(-__builtin_inf());
    static Vec<T> of(Vec<T> a, Vec<T> b) {
        if constexpr (sizeof(T) == 1) return a > b ? a : b;
        else return a != a ? a : max(a, b);  // propagates NaN from either
    }
};
template <class T>
struct Sum {
    static constexpr T outside = 0;
    static Vec<T> of(Vec<T> a, Vec<T> b) { return a + b; }
};

// A vector from p on, without what is at or after `end`.
template <class T>
inline Vec<T> load_before(const T* end, const T* p) {
    if (end - p >= LANES<T>) return load(p);
    Vec<T> v{};
    __builtin_memcpy(&v, p, std::size_t(end - p) * sizeof(T));
    return v;
}

// The combination of `count` vectors load_vector(place), `step` apart.
template <class Combine, class T, class Load>
inline Vec<T> combined(const T* from, index step, index count, Load load_vector) {
    if (count <= 0) return broadcast(Combine::outside);
    Vec<T> v = load_vector(from);
    for (index i = 1; i < count; ++i) v = Combine::of(v, load_vector(from + i * step));
    return v;
}

// to[i] = answer(from[i * step]); STEP is the step if not 0.
template <index STEP, class T, class Answer>
inline void pick(const T* __restrict from, index step, index count, T* __restrict to, Answer answer) {
    for (index i = 0; i < count; ++i) to[i] = answer(from[i * (STEP ? STEP : step)]);
}

// answer(number) converts a combination to an element of y.
template <class Combine, class T, class Answer>
inline void pool(const Pool<T>& p, Answer answer) {
    const Axis &h = p.height, &w = p.width;
    const index plane = h.size * w.size, reach = (w.pixels - 1) * w.step + 1;
    const index border = -w.offset, padded = larger(border + w.size, reach + w.taps - 1);
    Carver measure(nullptr);
    const auto take_row = [&](Carver& scratch) { return scratch.take<T>(padded + LANES<T>); };
    take_row(measure), take_row(measure);
    Team team(threads_for(p.planes, MOVE * double(p.planes * plane), measure.used()));
    Workspace workspace;
    workspace.allocate(team.size() * measure.used());
    Units units(p.planes, ceil_div(p.planes, 8 * team.size()));
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * measure.used());
        T *row = take_row(mine), *firsts = take_row(mine);
        for (index c = 0; c < padded + LANES<T>; ++c) row[c] = Combine::outside;
        units.each([&](index n) {
            T* y = p.y + n * h.pixels * w.pixels;
            for (index r = 0; r < h.pixels; ++r, y += w.pixels) {
                const index place = r * h.step + h.offset, top = larger(0, place);
                const index rows = smaller(h.size, place + h.taps) - top;
                const T *x = p.x + n * plane + top * w.size, *end = p.x + p.planes * plane;
                for (index c = 0; c < w.size; c += LANES<T>)
                    store(row + border + c, combined<Combine>(x + c, w.size, rows, [=](const T* from) {
                              return load_before(end, from);
                          }));
                for (index c = border + w.size; c < padded; ++c) row[c] = Combine::outside;
                for (index c = 0; c < reach; c += LANES<T>)
                    store(firsts + c, combined<Combine>(row + c, 1, w.taps, load<T>));
                if (w.step == 1) pick<1>(firsts, 1, w.pixels, y, answer);
                else if (w.step == 2) pick<2>(firsts, 2, w.pixels, y, answer);
                else pick<0>(firsts, w.step, w.pixels, y, answer);
            }
        });
    });
}

template <class T>
inline void max_pool(const Pool<T>& p) {
    pool<Largest<T>>(p, [](T largest) { return largest; });
}
template <class T>
inline void avg_pool(const Pool<T>& p) {
    pool<Sum<T>>(p, [share = p.share](T sum) { return sum * share; });
}

// The sum of some numbers: in T within a piece, in double over pieces; exact for bytes.
template <class T>
inline double sum(const T* x, index count) {
    constexpr index PIECE = 16 * LANES<T>;
    double total = 0;
    for (index i = 0; i < count;) {
        const index end = smaller(count, i + PIECE);
        Vec<T> piece{};
        for (; i + LANES<T> <= end; i += LANES<T>) piece += load(x + i);
        T rest = sum_lanes<T>(piece);
        for (; i < end; ++i) rest += x[i];
        total += double(rest);
    }
    return total;
}
inline double sum(const std::uint8_t* x, index count) {
    std::uint64_t total = 0;
    for (index i = 0; i < count; ++i) total += x[i];
    return double(total);
}

// The sum of the magnitudes of some numbers, in double: in float that of large ones would overflow.
template <class T>
inline double magnitude_sum(const T* x, index count) {
    constexpr index SOME = LANES<double>, TOTALS = 4;
    Vec<double> total[TOTALS] = {};
    index i = 0;
    for (; i + TOTALS * SOME <= count; i += TOTALS * SOME)
        for (index t = 0; t < TOTALS; ++t) {
            Lanes<T, SOME> some;
            __builtin_memcpy(&some, x + i + t * SOME, sizeof some);
            total[t] += abs(__builtin_convertvector(some, Vec<double>));
        }
    const Vec<double> totals = (total[0] + total[1]) + (total[2] + total[3]);
    double all = 0;  // not by sum_lanes, of whose instructions for doubles GCC 12 warns
    for (index l = 0; l < SOME; ++l) all += totals[l];
    for (; i < count; ++i) all += __builtin_fabs(double(x[i]));
    return all;
}

template <class X, class Y, class Sum>
inline void means(const PlaneMeans<X, Y>& p, Sum sum) {
    for_each_unit(p.planes, MOVE * double(p.planes * p.pixels),
                  [&](index n) { p.y[n] = Y(sum(p.x + n * p.pixels, p.pixels) / double(p.pixels)); });
}
template <class X, class Y>
inline void plane_means(const PlaneMeans<X, Y>& p) {
    means(p, [](const X* x, index count) { return sum(x, count); });
}
template <class T>
inline void magnitude_means(const PlaneMeans<T, T>& p) {
    means(p, magnitude_sum<T>);
}

}  // namespace mulfree::MULFREE_ISA
