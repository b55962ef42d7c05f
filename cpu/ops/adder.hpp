// AdderNet's forward pass on floats: y = bias - sum |x - w|.
#pragma once

#include "../engine/driver.hpp"

namespace mulfree::MULFREE_ISA {

// |x - w| as written: three instructions per term (NEON: two), always accurate.
template <class T>
struct AbsoluteDifference : Operation<T, T, T> {
    static Vec<T> term(Vec<T> total, Vec<T> x, Vec<T> w) { return add(total, absolute_difference(x, w)); }
    static auto answer(T bias, typename AbsoluteDifference::Constant) {
        return [b = broadcast(bias)](Vec<T> total, const auto&, NoDoubt) { return b - total; };
    }
};

// sum |x - w| = (sum max(x, w) - sum x) + (sum max(x, w) - sum w), which takes two instructions per term instead of
// three but cancels when x and w are close compared with their size. The rounding error is a few float32 epsilons of
// size = sum |x| + sum |w|, so a result of at least size / 8 is accurate to 1e-6; tiles with a smaller one, a NaN or
// an overflow are recomputed term by term.
struct Maximum : Operation<float, float, float> {
    using V = Vec<float>;
    using Exact = AbsoluteDifference<float>;

    static V term(V total, V x, V w) { return add(total, max(x, w)); }

    static constexpr int COLUMN_SUMS = 2;
    static void add_column(V* sums, V x) { sums[0] += x, sums[1] += abs(x); }

    struct Constant {
        double sum, size;
    };
    static constexpr bool HAS_CONSTANT = true;
    static void add_weight(Constant& c, float w) { c.sum += w, c.size += __builtin_fabsf(w); }

    struct Doubt {
        V negative{}, infinite{};  // collect sign bits; collect NaN
        bool any() const { return any_negative(negative) || below<float>(infinite, V{}); }
    };
    static auto answer(float bias, const Constant& c) {
        const V sum = broadcast(float(c.sum)), size = broadcast(float(c.size)), b = broadcast(bias);
        return [=](V total, const ColumnSums<Maximum>& x, Doubt& doubt) {
            const V distance = (total - x.part[0]) + (total - sum);
            const V margin = distance - 0.125f * (x.part[1] + size);
            doubt.negative = either(doubt.negative, margin);
            doubt.infinite += margin * 0.0f;
            return b - distance;
        };
    }
};

// For so few terms, or where a distance is one instruction, the sum of maxima is not faster, and it cancels.
constexpr index FEW_TAPS = 4;

template <class T>
struct Adder {
    template <class F>
    static void with_operation(const Convolution<T, T>& p, F f) {
        if constexpr (sizeof(T) == sizeof(float) && !DISTANCE_IN_ONE)
            if (p.channels * p.height.taps * p.width.taps > FEW_TAPS) return f(Maximum());
        f(AbsoluteDifference<T>());
    }
};

}  // namespace mulfree::MULFREE_ISA
