// Max and average pooling, and the mean of each plane, or of its magnitudes.
#include "arrays.hpp"

namespace mulfree {
namespace {

template <class T>
void pool(void (*kernel)(const Pool<T>&), const Array<T>& x, Array<T> out, Pair window, Pair stride, Sides padding) {
    T* y = writable<T>(out, 4);
    require(x.ndim() == 4, "x must have 4 dimensions");
    require(x.shape(0) == out.shape(0) && x.shape(1) == out.shape(1), "x and out do not match");
    const Pool<T> p{x.shape(0) * x.shape(1),
                    forward_axis(x.shape(2), out.shape(2), window.first, stride.first, padding.first, 1),
                    forward_axis(x.shape(3), out.shape(3), window.second, stride.second, padding.second, 1),
                    contiguous(x, "x"), y, T(1 / (double(window.first) * double(window.second)))};
    WithoutGil others_run;
    kernel(p);
}

template <class X, class Y>
void plane_means(void (*kernel)(const PlaneMeans<X, Y>&), const Array<X>& x, Array<Y> out) {
    Y* y = writable<Y>(out, 2);
    require(x.ndim() == 4, "x must have 4 dimensions");
    require(x.size() > 0, "expected no empty arrays");
    require(x.shape(0) == out.shape(0) && x.shape(1) == out.shape(1), "x and out do not match");
    const PlaneMeans<X, Y> p{out.size(), x.shape(2) * x.shape(3), contiguous(x, "x"), y};
    WithoutGil others_run;
    kernel(p);
}

template <class T, class Kernel>
void bind_windows(py::module_& m, const char* function, Kernel kernel) {
    m.def(function, [=](Array<T> x, Array<T> out, Pair window, Pair stride, Sides padding) {
        pool<T>(kernel(), x, out, window, stride, padding);
    }, exact("x"), exact("out"), py::arg("kernel"), py::arg("stride"), py::arg("padding"));
}
template <class X, class Y, class Kernel>
void bind_means(py::module_& m, const char* function, Kernel kernel) {
    m.def(function, [=](Array<X> x, Array<Y> out) { plane_means<X, Y>(kernel(), x, out); }, exact("x"),
          exact("out"));
}

template <class T>
void bind(py::module_& m) {
    bind_windows<T>(m, "max_pool", [] { return kernels<T>().max_pool; });
    bind_windows<T>(m, "avg_pool", [] { return kernels<T>().avg_pool; });
    bind_means<T, T>(m, "plane_means", [] { return kernels<T>().plane_means; });
    bind_means<T, T>(m, "magnitude_means", [] { return kernels<T>().magnitude_means; });
}

}  // namespace

void bind_pool(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
    bind_windows<std::uint8_t>(m, "max_pool", [] { return chosen->max_pool_u8; });
    bind_means<std::uint8_t, float>(m, "plane_means", [] { return chosen->plane_means_u8; });
}

}  // namespace mulfree
