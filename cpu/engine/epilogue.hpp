// What becomes of an answer between the sum and the memory (Epilogue in kernels.hpp), a vector at a time.
#pragma once

#include "spans.hpp"

namespace mulfree::MULFREE_ISA {

// The epilogue of pixels that begin `offset` elements further.
template <class T>
inline Epilogue<T> moved(Epilogue<T> e, index offset) {
    if (e.residual) e.residual += offset;
    if (e.narrow_residual) e.narrow_residual += offset;
    if (e.wide) e.wide += offset;
    if (e.narrow) e.narrow += offset;
    return e;
}

// Of one filter, on vectors of COUNT answers.
template <class T, index COUNT>
class FilterEpilogue {
public:
    using V = Lanes<T, COUNT>;

    // `plane` is where the filter's pixels begin, in elements from the first of y.
    FilterEpilogue(const Epilogue<T>& e, index filter, index plane)
        : e_(e), scale_(all(e.scale ? e.scale[filter] : T(1))), origin_(all(e.origin ? e.origin[filter] : T(0))),
          offset_(all(e.offset ? e.offset[filter] : T(0))), plane_(plane) {}

    // Stores a vector of answers to the lanes of its spans.
    template <class Answer>
    void store(const Span* span, const Span* end, index lane_stride, Answer answer) const {
        V z = (__builtin_convertvector(answer, V) - origin_) * scale_ + offset_;
        if (e_.residual) z += all(e_.residual_scale) * lanes_of(span, end, e_.residual + plane_, lane_stride);
        if (e_.narrow_residual)
            z += all(e_.residual_scale) * lanes_of(span, end, e_.narrow_residual + plane_, lane_stride);
        z = z > all(e_.high) ? all(e_.high) : z;  // a NaN stays,
        if (e_.narrow) {
            z = z > all(e_.low) ? z : all(e_.low);  // or is `low` where there is none
            constexpr T WHOLE = sizeof(T) == sizeof(float) ? T(1 << 23) : T(std::int64_t(1) << 52);
            const V rounded = (z + all(WHOLE)) - all(WHOLE);  // to even where two are as near
            scatter<std::uint8_t, COUNT>(
                span, end, e_.narrow + plane_, lane_stride,
                __builtin_convertvector(__builtin_convertvector(rounded, Lanes<std::int32_t, COUNT>),
                                        Lanes<std::uint8_t, COUNT>));
        } else {
            z = z < all(e_.low) ? all(e_.low) : z;
            scatter<T, COUNT>(span, end, e_.wide + plane_, lane_stride, z);
        }
    }

private:
    const Epilogue<T>& e_;
    const V scale_, origin_, offset_;
    const index plane_;

    static V all(T value) { return value - V{}; }

    template <class R>
    static V lanes_of(const Span* span, const Span* end, const R* plane, index lane_stride) {
        if (lane_stride == 1 && span->mask == bits(0, COUNT)) {
            Lanes<R, COUNT> lanes;
            __builtin_memcpy(&lanes, plane + span->offset, sizeof lanes);
            return __builtin_convertvector(lanes, V);
        }
        V v{};
        for (; span != end; ++span)
            for_each_lane<COUNT>(*span, [&](index l) { v[l] = T(plane[span->offset + l * lane_stride]); });
        return v;
    }
};

}  // namespace mulfree::MULFREE_ISA
