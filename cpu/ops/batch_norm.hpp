// Batch normalisation fused with the residual and the ReLU that follow it: four passes over memory, each a loop over
// contiguous rows of pixels. A channel is summed by one thread, so the result does not depend on their number; a row
// is summed in T, the rows in double.
#pragma once

#include "../engine/threads.hpp"
#include "../engine/isa.hpp"

namespace mulfree::MULFREE_ISA {

template <class T, class F>
inline void for_each_channel(const BatchNorm<T>& p, F f) {
    for_each_unit(p.channels, MOVE * double(p.batch * p.channels * p.pixels), f);
}

template <class T, class Element>
inline Element* row_of(const BatchNorm<T>& p, Element* a, index n, index c) {
    return a ? a + (n * p.channels + c) * p.pixels : nullptr;
}

// Two sums over a row, by vectors and then by single elements.
template <class T>
struct Pair {
    T first, second;
};

template <class T, class Vector, class Single>
inline Pair<T> sum_pairs(index n, Vector by_vector, Single by_element) {
    Vec<T> first{}, second{};
    index i = 0;
    for (; i + LANES<T> <= n; i += LANES<T>) by_vector(i, first, second);
    Pair<T> sum{sum_lanes<T>(first), sum_lanes<T>(second)};
    for (; i < n; ++i) by_element(i, sum);
    return sum;
}

// Mean and variance, relative to the channel's first element: one pass, without cancellation if the mean is many
// deviations away from zero, as after an adder convolution.
template <class T>
inline void batch_norm_moments(const BatchNorm<T>& p) {
    for_each_channel(p, [&](index c) {
        const T origin = *row_of(p, p.x, 0, c);
        const Vec<T> origins = broadcast(origin);
        double sum = 0, squares = 0;
        for (index n = 0; n < p.batch; ++n) {
            const T* x = row_of(p, p.x, n, c);
            const auto row = sum_pairs<T>(
                p.pixels,
                [&](index i, Vec<T>& s, Vec<T>& q) {
                    const Vec<T> d = load(x + i) - origins;
                    s += d, q += d * d;
                },
                [&](index i, Pair<T>& s) {
                    const T d = x[i] - origin;
                    s.first += d, s.second += d * d;
                });
            sum += row.first, squares += row.second;
        }
        const double count = double(p.batch * p.pixels), shift = sum / count;
        const double variance = squares / count - shift * shift;
        p.first[c] = T(double(origin) + shift);
        p.second[c] = T(variance < 0 ? 0 : variance);
    });
}

// y = relu((x - mean) * scale + bias + residual); y may be x, or the residual.
template <class T>
inline void batch_norm(const BatchNorm<T>& p) {
    for_each_channel(p, [&](index c) {
        const T mean = p.mean[c], scale = p.scale[c], bias = p.bias[c];
        for (index n = 0; n < p.batch; ++n) {
            const T* x = row_of(p, p.x, n, c);
            const T* residual = row_of(p, p.residual, n, c);
            T* y = row_of(p, p.y, n, c);
            index i = 0;
            for (; i + LANES<T> <= p.pixels; i += LANES<T>) {
                Vec<T> z = (load(x + i) - mean) * scale + bias;
                if (residual) z = z + load(residual + i);
                if (p.relu) z = z < Vec<T>{} ? Vec<T>{} : z;  // propagates NaN
                store(y + i, z);
            }
            for (; i < p.pixels; ++i) {
                T z = (x[i] - mean) * scale + bias;
                if (residual) z = z + residual[i];
                y[i] = p.relu && z < 0 ? T(0) : z;
            }
        }
    });
}

// The gradient after the ReLU: grad where the output is positive or NaN.
template <class T>
inline T flow(const T* grad, const T* answer, index i) {
    return answer && answer[i] <= 0 ? T(0) : grad[i];
}
template <class T>
inline Vec<T> flows(const T* grad, const T* answer, index i) {
    if (!answer) return load(grad + i);
    const auto stopped = load(answer + i) <= Vec<T>{};
    return (Vec<T>)((decltype(stopped))load(grad + i) & ~stopped);
}

// The sums of flow and of flow * (x - mean).
template <class T>
inline void batch_norm_sums(const BatchNorm<T>& p) {
    for_each_channel(p, [&](index c) {
        const T mean = p.mean[c];
        const Vec<T> means = broadcast(mean);
        double sum = 0, dot = 0;
        for (index n = 0; n < p.batch; ++n) {
            const T *x = row_of(p, p.x, n, c), *grad = row_of(p, p.grad, n, c);
            const T* answer = row_of(p, p.answer, n, c);
            const auto row = sum_pairs<T>(
                p.pixels,
                [&](index i, Vec<T>& s, Vec<T>& d) {
                    const Vec<T> g = flows(grad, answer, i);
                    s += g, d += g * (load(x + i) - means);
                },
                [&](index i, Pair<T>& s) {
                    const T g = flow(grad, answer, i);
                    s.first += g, s.second += g * (x[i] - mean);
                });
            sum += row.first, dot += row.second;
        }
        p.first[c] = T(sum), p.second[c] = T(dot);
    });
}

// y = flow * scale - constant - (x - mean) * along_x, and the flow itself if requested
template <class T>
inline void batch_norm_grad(const BatchNorm<T>& p) {
    for_each_channel(p, [&](index c) {
        const T mean = p.mean[c], scale = p.scale[c], constant = p.constant[c], along = p.along_x[c];
        for (index n = 0; n < p.batch; ++n) {
            const T *x = row_of(p, p.x, n, c), *grad = row_of(p, p.grad, n, c);
            const T* answer = row_of(p, p.answer, n, c);
            T* grad_x = row_of(p, p.y, n, c);
            T* passed = row_of(p, p.flow, n, c);
            index i = 0;
            for (; i + LANES<T> <= p.pixels; i += LANES<T>) {
                const Vec<T> g = flows(grad, answer, i);
                store(grad_x + i, g * scale - constant - (load(x + i) - mean) * along);
                if (passed) store(passed + i, g);
            }
            for (; i < p.pixels; ++i) {
                const T g = flow(grad, answer, i);
                grad_x[i] = g * scale - constant - (x[i] - mean) * along;
                if (passed) passed[i] = g;
            }
        }
    });
}

}  // namespace mulfree::MULFREE_ISA
