// L1 distances of rows and of windows.
#include "arrays.hpp"

namespace mulfree {
namespace {

// The numbers of a row must lie side by side; rows may lie anywhere.
template <class T>
Rows<T> rows_of(const Array<T>& a) {
    require(a.ndim() == 2, "expected an array of 2 dimensions");
    require(a.size() > 0, "expected no empty arrays");
    require(addressable<T>(a), "rows must be aligned");
    require(a.shape(1) == 1 || a.strides(1) == py::ssize_t(sizeof(T)), "the numbers of a row must lie side by side");
    return {a.data(), a.shape(0), a.shape(0) > 1 ? a.strides(0) / index(sizeof(T)) : 0};
}

template <class T, class D>
void pairwise(const DistanceFunctions<T, D>& functions, const Array<T>& a, const Array<T>& b, Array<D> out) {
    const Rows<D> answer = rows_of(out);
    D* to = out.mutable_data();  // which refuses what is read-only
    const Distances<T, D> p{rows_of(a), rows_of(b), a.shape(1), to, answer.stride};
    require(a.shape(1) == b.shape(1), "rows of a and b must have as many numbers");
    require(out.shape(0) == p.a.count && out.shape(1) == p.b.count, "out must have a row of b for every row of a");
    WithoutGil others_run;
    functions.all(p);
}

template <class T, class D>
void nearest(const DistanceFunctions<T, D>& functions, const Array<T>& queries, const Array<T>& points,
             Array<D> distances, Array<std::int64_t> indices) {
    D* to = writable<D>(distances, 2);
    const Nearest<T, D> p{rows_of(queries), rows_of(points), queries.shape(1), distances.shape(1), to,
                          writable<std::int64_t>(indices, 2)};
    require(queries.shape(1) == points.shape(1), "queries and points must have as many numbers");
    require(same_shape(distances, indices), "distances and indices must have the same shape");
    require(distances.shape(0) == p.a.count && p.k <= p.b.count, "there must be as many answers as queries, and points");
    WithoutGil others_run;
    functions.nearest(p);
}

template <class T, class D>
void match_template(const DistanceFunctions<T, D>& functions, const Array<T>& image, const Array<T>& pattern,
                    Array<D> out) {
    D* to = writable<D>(out, 2);
    require(image.ndim() == 3 && pattern.ndim() == 3, "expected arrays of 3 dimensions");
    require(image.size() > 0 && pattern.size() > 0, "expected no empty arrays");
    require(image.shape(0) == pattern.shape(0), "the image and the template must have as many channels");
    require(out.shape(0) == image.shape(1) - pattern.shape(1) + 1 && out.shape(1) == image.shape(2) - pattern.shape(2) + 1,
            "out must have a number for every place of the template");
    const Matching<T, D> p{image.shape(0), image.shape(1), image.shape(2), pattern.shape(1), pattern.shape(2),
                           contiguous(image, "image"), contiguous(pattern, "template"), to};
    WithoutGil others_run;
    functions.match_template(p);
}

template <class T, class D, class Functions>
void bind(py::module_& m, Functions functions) {
    m.def("pairwise_l1", [=](const Array<T>& a, const Array<T>& b, const Array<D>& out) {
        pairwise<T, D>(functions(), a, b, out);
    }, exact("a"), exact("b"), exact("out"));
    m.def("nearest_l1", [=](const Array<T>& queries, const Array<T>& points, const Array<D>& distances,
                            const Array<std::int64_t>& indices) {
        nearest<T, D>(functions(), queries, points, distances, indices);
    }, exact("queries"), exact("points"), exact("distances"), exact("indices"));
    m.def("match_template_l1", [=](const Array<T>& image, const Array<T>& pattern, const Array<D>& out) {
        match_template<T, D>(functions(), image, pattern, out);
    }, exact("image"), exact("template"), exact("out"));
}

}  // namespace

void bind_distances(py::module_& m) {
    bind<float, float>(m, []() -> auto& { return chosen->distances->f32; });
    bind<double, double>(m, []() -> auto& { return chosen->distances->f64; });
    bind<std::uint8_t, std::int32_t>(m, []() -> auto& { return chosen->distances->u8; });
}

}  // namespace mulfree
