// The epilogue (Epilogue in kernels.hpp), a vector at a time.
#pragma once

#include "spans.hpp"

namespace mulfree::MULFREE_ISA {

// The epilogue for pixels starting `offset` elements further.
template <class T>
inline Epilogue<T> moved(Epilogue<T> e, index offset) {
    if (e.residual) e.residual += offset;
    if (e.narrow_residual) e.narrow_residual += offset;
    if (e.wide) e.wide += offset;
    if (e.narrow) e.narrow += offset;
    return e;
}

// Of one filter, on vectors of COUNT outputs.
template <class T, index COUNT>
class FilterEpilogue {
public:
    using V = Lanes<T, COUNT>;

    // `plane` is the offset of the filter's first pixel in y, in elements.
    FilterEpilogue(const Epilogue<T>& e, index filter, index plane)
        : e_(e), scale_(all(e.scale ? e.scale[filter] : T(1))), origin_(all(e.origin ? e.origin[filter] : T(0))),
          offset_(all(e.offset ? e.offset[filter] : T(0))), plane_(plane) {}

    // Stores a vector of outputs contiguously, `place` elements after the first pixel,
    template <class Answer>
    void store(index place, Answer answer) const {
        put(answer, [&](const auto* plane) { return consecutive(plane + place); },
            [&](auto* plane, auto lanes) { store_lanes(plane + place, lanes); });
    }
    // or to the lanes of its spans.
    template <class Answer>
    void store(const Span* span, const Span* end, index lane_stride, Answer answer) const {
        put(answer, [&](const auto* plane) { return lanes_of(span, end, plane, lane_stride); },
            [&](auto* plane, auto lanes) { scatter_lanes(span, end, plane, lane_stride, lanes); });
    }

private:
    const Epilogue<T>& e_;
    const V scale_, origin_, offset_;
    const index plane_;

    static V all(T value) { return value - V{}; }

    // read(plane) loads a residual, write(plane, lanes) stores.
    template <class Answer, class Read, class Write>
    void put(Answer answer, Read read, Write write) const {
        V z = (__builtin_convertvector(answer, V) - origin_) * scale_ + offset_;
        if (e_.residual) z += all(e_.residual_scale) * read(e_.residual + plane_);
        if (e_.narrow_residual) z += all(e_.residual_scale) * read(e_.narrow_residual + plane_);
        z = z > all(e_.high) ? all(e_.high) : z;  // NaN propagates,
        if (e_.narrow) {
            z = z > all(e_.low) ? z : all(e_.low);  // or becomes `low` in uint8
            constexpr T WHOLE = sizeof(T) == sizeof(float) ? T(1 << 23) : T(std::int64_t(1) << 52);
            const V rounded = (z + all(WHOLE)) - all(WHOLE);  // ties to even
            const auto whole = __builtin_convertvector(rounded, Lanes<std::int32_t, COUNT>);
            write(e_.narrow + plane_, to_bytes<COUNT>(whole));
        } else {
            write(e_.wide + plane_, z < all(e_.low) ? all(e_.low) : z);
        }
    }

    static V consecutive(const T* from) {
        V v;
        __builtin_memcpy(&v, from, sizeof v);
        return v;
    }
    static V consecutive(const std::uint8_t* from) { return __builtin_convertvector(load_bytes<COUNT>(from), V); }
    template <class R>
    static V lanes_of(const Span* span, const Span* end, const R* plane, index lane_stride) {
        if (lane_stride == 1 && span->mask == bits(0, COUNT)) return consecutive(plane + span->offset);
        V v{};
        for (; span != end; ++span)
            for_each_lane<COUNT>(*span, [&](index l) { v[l] = T(plane[span->offset + l * lane_stride]); });
        return v;
    }
    template <class R>
    static void scatter_lanes(const Span* span, const Span* end, R* plane, index lane_stride, Lanes<R, COUNT> lanes) {
        scatter<R, COUNT>(span, end, plane, lane_stride, lanes);
    }
};

}  // namespace mulfree::MULFREE_ISA
