// Ordinary convolution: y = bias + sum x w.
#pragma once

#include "../engine/driver.hpp"

namespace mulfree::MULFREE_ISA {

// One FMA per term.
template <class T>
struct Dot : Operation<T, T, T> {
    static Vec<T> term(Vec<T> total, Vec<T> x, Vec<T> w) { return multiply_add(x, w, total); }
    static auto answer(T bias, typename Dot::Constant) {
        return [b = broadcast(bias)](Vec<T> total, const auto&, NoDoubt) { return total + b; };
    }
};

template <class T>
struct Conv {
    template <class F>
    static void with_operation(const Convolution<T, T>&, F f) { f(Dot<T>()); }
};

}  // namespace mulfree::MULFREE_ISA
