// im2col and col2im.
#include "../ops/columns.hpp"

#include "arrays.hpp"

namespace mulfree {
namespace {

Columns columns(const py::array& x, const py::array& cols, Pair kernel, Pair stride, Sides padding,
                Pair dilation) {
    require(cols.ndim() == 3, "cols must have 3 dimensions");
    const auto axis = [](index size, index taps, index s, Pair p, index d) {
        const index span = size + std::clamp<index>(p.first, 0, LONGEST) + std::clamp<index>(p.second, 0, LONGEST) - 1;
        const bool fits = taps > 0 && d > 0 && s > 0 && (taps == 1 || d <= span / (taps - 1));
        return forward_axis(size, fits ? (span - (taps - 1) * d) / s + 1 : 0, taps, s, p, d);
    };
    const Columns c{x.shape(0), x.shape(1),
                    axis(x.shape(2), kernel.first, stride.first, padding.first, dilation.first),
                    axis(x.shape(3), kernel.second, stride.second, padding.second, dilation.second)};
    const auto product = [](index whole, std::initializer_list<index> factors) {  // that cannot overflow
        for (index f : factors) {
            if (whole % f) return false;
            whole /= f;
        }
        return whole == 1;
    };
    require(cols.shape(0) == c.batch && product(cols.shape(1), {c.channels, kernel.first, kernel.second}) &&
                product(cols.shape(2), {c.height.pixels, c.width.pixels}),
            "cols and x do not match");
    return c;
}

void im2col_any(py::array x_array, py::array cols, Pair kernel, Pair stride, Sides padding, Pair dilation) {
    with_bits(x_array, cols, [&](auto bits) {
        using T = decltype(bits);
        const Source<T> x(x_array);
        T* to = writable<T>(cols, 3);
        const Columns c = columns(x.array, cols, kernel, stride, padding, dilation);
        WithoutGil others_run;
        im2col<T>(c, x.image, to);
    });
}

template <class T>
void col2im_sum(const Array<T>& cols_array, Array<T> x, Pair kernel, Pair stride, Sides padding,
                Pair dilation) {
    T* to = writable<T>(x, 4);
    const py::array cols = readable<T>(cols_array);
    const Columns c = columns(x, cols, kernel, stride, padding, dilation);
    const auto step = [&](int k) { return index(cols.strides(k)) / index(sizeof(T)); };
    const index batch = step(0), tap = step(1), pixel = step(2);
    const T* from = static_cast<const T*>(cols.data());
    WithoutGil others_run;
    col2im<T>(c, from, batch, tap, pixel, to);
}

}  // namespace

void bind_columns(py::module_& m) {
    m.def("im2col", &im2col_any, exact("x"), exact("cols"), py::arg("kernel"), py::arg("stride"),
          py::arg("padding"), py::arg("dilation"));
    const auto bind = [&](auto sum) {
        m.def("col2im", sum, exact("cols"), exact("x"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
              py::arg("dilation"));
    };
    bind(&col2im_sum<float>);
    bind(&col2im_sum<double>);
}

}  // namespace mulfree
