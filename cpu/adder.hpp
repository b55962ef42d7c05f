// AdderNet's forward pass: y = bias - sum |x - w|.
#pragma once

#include "bytes.hpp"
#include "convolution.hpp"

namespace mulfree::MULFREE_ISA {

// Up to here the sum of maxima saves nothing, and cancels too often.
constexpr index FEW_TAPS = 4;

// Sum and magnitude sum of n contiguous numbers; the vectors are summed in stretches to keep the error
// of long sums down.
inline void sum_contiguous(const float* w, index n, float* sum, float* magnitude) {
    double total = 0, size = 0;
    index i = 0;
    while (n - i >= LANES<float>) {
        Vec<float> s{}, m{};
        for (index k = 0; k < 64 && n - i >= LANES<float>; ++k, i += LANES<float>) {
            const Vec<float> v = load(w + i);
            s += v, m += abs(v);
        }
        total += sum_lanes<float>(s), size += sum_lanes<float>(m);
    }
    for (; i < n; ++i) total += w[i], size += __builtin_fabsf(w[i]);
    *sum = float(total), *magnitude = float(size);
}

// y = bias - sum |x - w|, term by term, for the tiles that `wanted` names (null: all).
template <class P>
inline void exact_panel(P& panel, const bool* wanted) {
    using T = typename P::Sum;
    panel.template accumulate<AbsDiff<T>, false>(wanted, [&](index tile) {
        for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
            const Vec<T> bias = broadcast(panel.bias(f));
            const T* total = panel.total + f * panel.ROW;
            panel.write(f, [&](index v) { return bias - load(total + v * LANES<T>); });
        }
    });
}

template <class T>
inline void adder_conv_exact(const Convolution<T, T>& p) {
    for_each_panel<T, T>(p, static_cast<const T*>(nullptr), [](index, index) {},
                         [](auto& panel) { exact_panel(panel, nullptr); });
}

inline void adder_conv(const Convolution<double, double>& p) { adder_conv_exact(p); }

// sum |x - w| = (sum max(x, w) - sum x) + (sum max(x, w) - sum w), which takes two instructions a term
// instead of three but cancels when x and w are close compared with their size. The rounding error is a
// few float32 epsilons of size = sum |x| + sum |w|, so a result of at least size / 8 is good to 1e-6; the
// tiles that hold a smaller one, or a NaN, or an overflow, are summed again term by term.
inline void adder_conv(const Convolution<float, float>& p) {
    const index taps = p.channels * p.height.taps * p.width.taps;
    if (taps <= FEW_TAPS) return adder_conv_exact(p);

    Workspace workspace;
    workspace.allocate(2 * p.groups * p.filters * index(sizeof(float)));
    float* w_sum = reinterpret_cast<float*>(workspace.data());
    float* w_size = w_sum + p.groups * p.filters;
    const auto sum_weights = [=, &p](index group, index f) {
        const index k = group * p.filters + f;
        sum_contiguous(p.w + group * p.w_group + f * p.w_filter, taps, w_sum + k, w_size + k);
    };

    for_each_panel<float, float>(p, static_cast<const float*>(nullptr), sum_weights, [=](auto& panel) {
        bool any = false;
        panel.template accumulate<Max<float>, true>(nullptr, [&](index tile) {
            Vec<float> negative{}, infinite{};  // the sign of a lane, a NaN in it, say: redo
            for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
                const index k = panel.group * panel.p.filters + panel.filter + f;
                const Vec<float> sum = broadcast(w_sum[k]), size = broadcast(w_size[k]);
                const Vec<float> bias = broadcast(panel.bias(f));
                const float* total = panel.total + f * panel.ROW;
                panel.write(f, [&](index v) {
                    const Vec<float> m = load(total + v * LANES<float>);
                    const Vec<float> distance = (m - panel.sum[v]) + (m - sum);
                    const Vec<float> margin = distance - 0.125f * (panel.magnitude[v] + size);
                    negative = either(negative, margin);
                    infinite += margin * 0.0f;
                    return bias - distance;
                });
            }
            const bool redo = any_negative(negative) || below<float>(infinite, Vec<float>{});
            panel.redo[tile / TILE_FILTERS] = redo;
            any |= redo;
        });
        if (any) exact_panel(panel, panel.redo);
    });
}

// All sums are taken modulo 2^32, and the answer fits.
inline void adder_conv_u8(const Convolution<std::uint8_t, std::int32_t>& p) {
    const index taps = p.channels * p.height.taps * p.width.taps;
    Workspace workspace;
    workspace.allocate(p.groups * p.filters * index(sizeof(std::uint32_t)));
    auto* w_sum = reinterpret_cast<std::uint32_t*>(workspace.data());
    const auto sum_weights = [=, &p](index group, index f) {
        const std::uint8_t* w = p.w + group * p.w_group + f * p.w_filter;
        std::uint32_t sum = 0;
        for (index i = 0; i < taps; ++i) sum += w[i];
        w_sum[group * p.filters + f] = sum;
    };

    for_each_panel<ByteCell, ByteCell>(p, static_cast<const std::uint8_t*>(nullptr), sum_weights, [=](auto& panel) {
        panel.template accumulate<Bytes, BYTE_SUMS>(nullptr, [&](index tile) {
            for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
                const std::uint32_t bias = panel.bias(f);
                const ByteCell* total = panel.total + f * panel.ROW;
                if constexpr (BYTE_SUMS) {
                    const index k = panel.group * panel.p.filters + panel.filter + f;
                    const Vec<ByteCell> constant = broadcast<ByteCell>(bias + w_sum[k]);
                    panel.write(f, [&](index v) {
                        const Vec<ByteCell> m = load(total + v * LANES<ByteCell>);
                        return (Vec<std::int32_t>)(constant + panel.sum[v] - m - m);
                    });
                } else {
                    std::int32_t y[panel.ROW];
                    for (index i = 0; i < panel.ROW; ++i)
                        y[i] = std::int32_t(bias - std::uint32_t(total[i]));
                    panel.write_lanes(f, y);
                }
            }
        });
    });
}

}  // namespace mulfree::MULFREE_ISA
