// Which taps of a pixel are outside x, and each filter's correction for them (Borders in kernels.hpp): for operations
// whose packed words cannot represent zero there.
#pragma once

#include "operation.hpp"
#include "workspace.hpp"

namespace mulfree::MULFREE_ISA {

// The numbers of one filter.
template <class W>
struct Border {
    const W* number;
    index kinds;

    Vec<W> number_of(Vec<W> kind) const {
#if defined(__AVX512F__)
        if constexpr (sizeof(W) == 4)
            return (Vec<W>)(kinds <= LANES<W> ? _mm512_permutexvar_epi32((__m512i)kind, (__m512i)load(number))
                                              : _mm512_i32gather_epi32((__m512i)kind, number, 4));
        else
            return (Vec<W>)(kinds <= LANES<W> ? _mm512_permutexvar_epi64((__m512i)kind, (__m512i)load(number))
                                              : _mm512_i64gather_epi64((__m512i)kind, number, 8));
#else
        if (!any(kind)) return broadcast(*number);  // most pixels are inside
#if defined(__AVX2__)
        if constexpr (sizeof(W) == 4) {
            if (kinds > 2 * LANES<W>) return (Vec<W>)_mm256_i32gather_epi32((const int*)number, (__m256i)kind, 4);
            const auto among = [&](const W* some) {
                return (Vec<W>)_mm256_permutevar8x32_epi32((__m256i)load(some), (__m256i)kind);
            };
            const Vec<W> low = among(number);
            if (kinds <= LANES<W>) return low;
            return kind < W(LANES<W>) ? low : among(number + LANES<W>);
        } else return (Vec<W>)_mm256_i64gather_epi64((const long long*)number, (__m256i)kind, 8);
#else
        Vec<W> numbers{};
        for (index l = 0; l < LANES<W>; ++l) numbers[l] = number[kind[l]];
        return numbers;
#endif
#endif
    }

private:
    [[maybe_unused]] static bool any(Vec<W> kind) {
#if defined(__AVX2__)
        return !_mm256_testz_si256((__m256i)kind, (__m256i)kind);
#else
        W all = 0;
        for (index l = 0; l < LANES<W>; ++l) all |= kind[l];
        return all;
#endif
    }
};

// Along one axis the taps before and after the source are outside. Kind 0 has none; further kinds are numbered in
// order, each a run of pixels.
class AxisKinds {
public:
    explicit AxisKinds(const Axis& a) : a_(a), count_(1) {
        each_pixel([&](index, index kind, auto) { count_ = larger(count_, kind + 1); });
    }
    index count() const { return count_; }

    // Calls f(pixel, kind, outside), where outside(tap) says whether a tap is outside.
    template <class F>
    void each_pixel(F f) const {
        index before = 0, inside = a_.taps, kind = 0, next = 1;  // taps before the source, and up to its end
        for (index pixel = 0; pixel < a_.pixels; ++pixel) {
            const index first = pixel * a_.step + a_.offset;
            const index b = smaller(a_.taps, ceil_div(larger(0, -first), a_.tap_step));
            const index i = smaller(a_.taps, ceil_div(larger(0, a_.size - first), a_.tap_step));
            if (b != before || i != inside) before = b, inside = i, kind = b == 0 && i == a_.taps ? 0 : next++;
            f(pixel, kind, [=](index tap) { return tap < b || tap >= i; });
        }
    }

private:
    const Axis& a_;
    index count_;
};

// The kinds of pixels of a plane, and the numbers of filters for them.
template <class W>
class BorderKinds {
public:
    BorderKinds(const Axis& height, const Axis& width, Carver& memory, index filters)
        : rows_(height), columns_(width), taps_h_(height.taps), taps_w_(width.taps),
          kinds_(round_up(rows_.count() * columns_.count(), LANES<W>)), width_(width.pixels),
          kind_(memory.take<W>(height.pixels * width.pixels)), number_(memory.take<W>(filters * kinds_)),
          outside_(memory.take<W>(taps_h_ * taps_w_ * kinds_)) {}

    // Whether any tap is outside anywhere.
    bool any() const { return rows_.count() * columns_.count() > 1; }

    // The number of filter f is `inside`, plus of(f)[tap] of every tap outside.
    template <class Of>
    Borders<W> find(index filters, W inside, Of of) const {
        const index taps = taps_h_ * taps_w_;
        for (index i = 0; i < taps * kinds_; ++i) outside_[i] = 0;
        rows_.each_pixel([&](index row, index row_kind, auto row_outside) {
            columns_.each_pixel([&](index column, index column_kind, auto column_outside) {
                const index kind = row_kind * columns_.count() + column_kind;
                kind_[row * width_ + column] = W(kind);
                for (index t = 0; kind && t < taps; ++t)
                    if (row_outside(t / taps_w_) || column_outside(t % taps_w_)) outside_[t * kinds_ + kind] = W(-1);
            });
        });
        for (index f = 0; f < filters; ++f) {
            const W* number = any() ? of(f) : nullptr;
            for (index k = 0; k < kinds_; k += LANES<W>) {
                Vec<W> sum = broadcast(inside);
                for (index t = 0; number && t < taps; ++t) sum += broadcast(number[t]) & load(outside_ + t * kinds_ + k);
                store(number_ + f * kinds_ + k, sum);
            }
        }
        return {kind_, width_, number_, kinds_};
    }

private:
    const AxisKinds rows_, columns_;
    const index taps_h_, taps_w_, kinds_, width_;
    W *kind_, *number_, *outside_;  // of every pixel; [filter][kind]; [tap][kind], a mask
};

}  // namespace mulfree::MULFREE_ISA
