// The convolutions, ordinary and adder, and their gradients.
#include <algorithm>

#include "../ops/absent_terms.hpp"
#include "epilogue.hpp"
#include "packed_weights.hpp"

namespace mulfree {
namespace {

struct Window {
    Pair stride;
    Sides padding;
    Pair dilation;

    Axis height(index size, index pixels, index taps) const {
        return forward_axis(size, pixels, taps, stride.first, padding.first, dilation.first);
    }
    Axis width(index size, index pixels, index taps) const {
        return forward_axis(size, pixels, taps, stride.second, padding.second, dilation.second);
    }
};

// ---- matrix products ----------------------------------------------------------------------------------

// A kernel as large as the image uses every number once: then all numbers of an image can be treated as channels.
// Returns whether that is so.
bool meets_all_once(const py::array& x, const py::array& w, const Window& window) {
    return x.ndim() == 4 && w.ndim() == 4 && x.shape(2) == w.shape(2) && x.shape(3) == w.shape(3) &&
           window.padding == Sides() && window.dilation == Pair(1, 1);
}
template <class A>
A as_channels(const A& a) {
    const py::array rows =
        py::array(a).reshape({a.shape(0), a.shape(1) * a.shape(2) * a.shape(3), py::ssize_t(1), py::ssize_t(1)});
    return py::reinterpret_borrow<A>(rows);  // reinterpreted as the same bits
}

// Planes of one pixel: the images become the pixels of one row, so that lanes have a constant stride.
template <class P, class... Images>
void images_as_row(P& p, Images&... images) {
    const auto one = [](const Axis& a) { return a.pixels == 1 && a.taps == 1 && a.size == 1 && a.offset == 0; };
    if (!one(p.height) || !one(p.width)) return;
    p.width.pixels = p.width.size = p.batch;
    p.width.step = 1;
    p.batch = 1;
    ((images.column = images.batch), ...);
}

// ---- forward --------------------------------------------------------------------------------------------

// With an epilogue, `out` is its output.
template <class X, class Y>
void forward(const ConvolutionKernel<X, Y>& kernel, Array<X> x_array, Array<X> w, const PackedWeights* packed,
             const Optional<Y>& bias, py::array out, const Window& window, index groups,
             const typename EpilogueOf<Y>::type* epilogue = nullptr) {
    Y* y = epilogue ? nullptr : writable<Y>(out, 4);
    const void* packed_w = packed ? packed->data(kernel) : nullptr;
    if (meets_all_once(x_array, w, window)) {
        if (w.shape(2) * w.shape(3) > 1) packed_w = nullptr;  // it is another matrix
        x_array = as_channels(x_array), w = as_channels(w);
    }
    const Source<X> x(x_array);
    const Filters f(w, groups);
    f.check(x.shape(1), out.shape(1));
    require(!packed || packed->filters.groups == groups, "w was packed for another number of groups");
    require(out.shape(0) == x.shape(0), "x and out must have as many images");
    Convolution<X, Y> p{
        x.shape(0), groups, f.channels, f.each(), window.height(x.shape(2), out.shape(2), f.rows),
        window.width(x.shape(3), out.shape(3), f.columns), x.image, contiguous(w, "w"), f.each() * f.taps(),
        f.taps(), f.rows * f.columns, f.columns, 1, values(bias, f.all, "bias"),
        image_of(y, f.all, out.shape(2), out.shape(3)), nullptr, nullptr, packed_w, epilogue};
    images_as_row(p, p.x, p.y);
    WithoutGil others_run;
    kernel.run(p);
}

// ---- the gradient by x of the convolution --------------------------------------------------------------

// The gradient by x as a convolution of grad with w, one stride phase at a time. Pixels without taps are zero.
template <class T>
void conv_grad_x(const Array<T>& grad_array, Array<T> w, Array<T> grad_x, const Window& window, index groups) {
    T* to = writable<T>(grad_x, 4);
    if (meets_all_once(grad_x, w, window)) grad_x = as_channels(grad_x), w = as_channels(w);
    const Source<T> grad(grad_array);
    const Filters f(w, groups);
    f.check(grad_x.shape(1), grad.shape(1));
    const index batch = grad_x.shape(0), height = grad_x.shape(2), width = grad_x.shape(3);
    require(grad.shape(0) == batch, "grad and grad_x must have as many images");
    const Axis h = window.height(height, grad.shape(2), f.rows);
    const Axis v = window.width(width, grad.shape(3), f.columns);
    const T* weights = contiguous(w, "w");
    const Image<T> x = image_of(to, f.channels * groups, height, width);
    WithoutGil others_run;
    const auto touches_all = [](const Axis& a) { return a.taps >= a.step && tap_period(a) == a.step; };
    if (!touches_all(h) || !touches_all(v))
        for_each_unit(batch, MOVE * double(batch * x.batch),
                      [&](index n) { std::fill_n(to + n * x.batch, x.batch, T(0)); });
    for (index row = 0; row < std::min(h.step, height); ++row)
        for (index column = 0; column < std::min(v.step, width); ++column) {
            const Axis rows = phase_axis(h, row), columns = phase_axis(v, column);
            if (rows.taps == 0 || columns.taps == 0) continue;
            const Image<T> y{to + row * x.row + column, x.batch, x.channel, x.row * h.step, v.step};
            Convolution<T, T> phase{
                batch, groups, f.each(), f.channels, rows, columns, grad.image, weights, f.each() * f.taps(),
                f.rows * f.columns, f.taps(), f.columns, 1, nullptr, y};
            images_as_row(phase, phase.x, phase.y);
            kernels<T>().conv.run(phase);
        }
    if (all_finite(weights, f.all * f.taps())) return;
    AdderGradX<T> p{batch, groups, f.channels, f.each(), h, v, grad.image,
                    {to, x.batch, x.channel, x.row, x.column}, weights, x};
    images_as_row(p, p.grad, p.x, p.grad_x);
    mend_nan(p, [](double w, double) { return w; });
}

// ---- the other gradients --------------------------------------------------------------------------------

template <class T>
void adder_conv_grad_x(const Array<T>& grad_array, Array<T> x_array, Array<T> w, Array<T> grad_x,
                       const Window& window, index groups) {
    T* to = writable<T>(grad_x, 4);
    require(same_shape(x_array, grad_x), "x and grad_x must have the same shape");
    if (meets_all_once(x_array, w, window)) x_array = as_channels(x_array), w = as_channels(w);
    const Source<T> grad(grad_array), x(x_array);
    const Filters f(w, groups);
    f.check(x.shape(1), grad.shape(1));
    require(grad.shape(0) == x.shape(0), "grad and x must have as many images");
    AdderGradX<T> p{
        x.shape(0), groups, f.channels, f.each(), window.height(x.shape(2), grad.shape(2), f.rows),
        window.width(x.shape(3), grad.shape(3), f.columns), grad.image, x.image, contiguous(w, "w"),
        image_of(to, x.shape(1), x.shape(2), x.shape(3))};
    images_as_row(p, p.grad, p.x, p.grad_x);
    WithoutGil others_run;
    kernels<T>().adder_grad_x(p);
    if (!all_finite(p.w, f.all * f.taps()) || passes_over(p.height) || passes_over(p.width))
        mend_nan(p, [](double w, double x) { return std::clamp(w - x, -1.0, 1.0); });  // NaN stays
}

// For the adder if w is given.
template <class T>
void grad_w(const Array<T>& grad_array, Array<T> x_array, const Optional<T>& w, Array<T> grad_w,
            const Window& window, index groups) {
    T* to = writable<T>(grad_w, 4);
    require(!w || same_shape(*w, grad_w), "w and grad_w must have the same shape");
    if (meets_all_once(x_array, grad_w, window)) x_array = as_channels(x_array), grad_w = as_channels(grad_w);
    const Source<T> grad(grad_array), x(x_array);
    const Filters f(grad_w, groups);
    f.check(x.shape(1), grad.shape(1));
    require(grad.shape(0) == x.shape(0), "grad and x must have as many images");
    GradW<T> p{
        x.shape(0), groups, f.channels, f.each(), window.height(x.shape(2), grad.shape(2), f.rows),
        window.width(x.shape(3), grad.shape(3), f.columns), grad.image, x.image,
        w ? contiguous(*w, "w") : nullptr, to};
    images_as_row(p, p.x, p.grad);
    WithoutGil others_run;
    kernels<T>().grad_w(p);
}

// ---- names ------------------------------------------------------------------------------------------------

// Binds f(arrays..., window, groups) with these argument names.
template <class... Arrays, class F, class... Names>
void bind(py::module_& m, const char* function, F f, Names... names) {
    m.def(function, [f](Arrays... arrays, Pair stride, Sides padding, Pair dilation, index groups) {
        f(arrays..., Window{stride, padding, dilation}, groups);
    }, exact(names)..., py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
}

// Binds <function>, whose weights may be packed; <function>_fused; and pack_<function>. The kernel reads the bits of
// `Given` as X.
template <class Given, class X, class Y>
void bind_forward(py::module_& m, const char* function, KernelInUse<X, Y> kernel) {
    using A = Array<Given>;
    using T = typename EpilogueOf<Y>::type::Number;
    const auto bits = [](const A& a) { return py::reinterpret_borrow<Array<X>>(a); };
    bind<A, A, Optional<Y>, Array<Y>>(m, function, [=](
        const A& x, const A& w, const Optional<Y>& bias, const Array<Y>& out, const Window& window, index groups) {
        forward<X, Y>(kernel(), bits(x), bits(w), nullptr, bias, out, window, groups);
    }, "x", "w", "bias", "out");
    bind<A, const PackedWeights&, Optional<Y>, Array<Y>>(m, function, [=](
        const A& x, const PackedWeights& w, const Optional<Y>& bias, const Array<Y>& out, const Window& window,
        index groups) {
        forward<X, Y>(kernel(), bits(x), py::reinterpret_borrow<Array<X>>(w.array), &w, bias, out, window, groups);
    }, "x", "w", "bias", "out");
    bind_fused<T, const A&, const PackedWeights&, const Optional<Y>&, py::array, Pair, Sides, Pair, index>(m, function, [=](
        const A& x, const PackedWeights& w, const Optional<Y>& bias, py::array out, Pair stride, Sides padding,
        Pair dilation, index groups, const EpilogueArguments<T>& arguments) {
        const Epilogue<T> epilogue = arguments.on(out, w.filters.all);
        forward<X, Y>(kernel(), bits(x), py::reinterpret_borrow<Array<X>>(w.array), &w, bias, out,
                      {stride, padding, dilation}, groups, &epilogue);
    }, exact("x"), exact("w"), exact("bias"), exact("out"), py::arg("stride"), py::arg("padding"),
       py::arg("dilation"), py::arg("groups"));
    m.def((std::string("pack_") + function).c_str(), [=](const A& w, index groups) {
        return std::make_unique<PackedWeights>(kernel(), bits(w), groups);
    }, exact("w"), py::arg("groups"));
}

template <class T>
void bind_float(py::module_& m) {
    using A = Array<T>;
    bind_forward<T, T, T>(m, "conv", []() -> auto& { return kernels<T>().conv; });
    bind_forward<T, T, T>(m, "adder_conv", []() -> auto& { return kernels<T>().adder_conv; });
    bind<A, A, A>(m, "conv_grad_x", conv_grad_x<T>, "grad", "w", "grad_x");
    bind<A, A, A, A>(m, "adder_conv_grad_x", adder_conv_grad_x<T>, "grad", "x", "w", "grad_x");
    bind<A, A, A>(m, "conv_grad_w", [](A grad, A x, A out, const Window& window, index groups) {
        grad_w<T>(grad, x, std::nullopt, out, window, groups);
    }, "grad", "x", "grad_w");
    bind<A, A, A, A>(m, "adder_conv_grad_w", grad_w<T>, "grad", "x", "w", "grad_w");
}

}  // namespace

void bind_convolution(py::module_& m) {
    py::class_<PackedWeights>(m, "PackedWeights").def_property_readonly("nbytes", &PackedWeights::bytes);
    bind_float<float>(m);
    bind_float<double>(m);
    using std::uint8_t, std::uint16_t, std::int32_t;
    bind_forward<uint8_t, uint8_t, int32_t>(m, "adder_conv", []() -> auto& { return chosen->adder_conv_u8; });
    bind_forward<std::int8_t, uint8_t, int32_t>(m, "adder_conv", []() -> auto& { return chosen->adder_conv_i8; });
    bind_forward<std::int16_t, uint16_t, int32_t>(m, "adder_conv", []() -> auto& { return chosen->adder_conv_i16; });
    bind_forward<float, float, float>(m, "binary_conv", []() -> auto& { return chosen->popcount.binary_f32; });
    bind_forward<double, double, double>(m, "binary_conv", []() -> auto& { return chosen->popcount.binary_f64; });
    const char* names[] = {"adder_conv_1bit", "adder_conv_2bit", "adder_conv_3bit", "adder_conv_4bit"};
    for (int i = 0; i < 4; ++i)
        bind_forward<uint8_t, uint8_t, int32_t>(m, names[i], [=]() -> auto& { return chosen->popcount.low_bit_adder[i]; });
}

}  // namespace mulfree
