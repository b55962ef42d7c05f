// The Python module mulfree_cupy._cpu: NumPy arrays to kernels, and the choice of instruction set. Shapes
// have been checked by the caller (mulfree_cupy/ops); what is checked here is what memory safety needs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absent_terms.hpp"
#include "columns.hpp"
#include "kernels.hpp"
#include "shift.hpp"
#include "threads.hpp"
#include "winograd_plan.hpp"

namespace py = pybind11;

namespace mulfree {
namespace {

using Pair = std::pair<index, index>;

// ---- instruction sets ---------------------------------------------------------------------------------

#if defined(__aarch64__)
bool has_dot_products() {
#if defined(__APPLE__)
    return true;  // since the M1
#elif defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return false;
#endif
}
#endif

std::vector<const Kernels*> available() {
#if defined(__aarch64__)
    std::vector<const Kernels*> found{&neon_kernels};
    if (has_dot_products()) found.push_back(&neon_dotprod_kernels);
#else
    std::vector<const Kernels*> found{&baseline_kernels};
#endif
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(&avx512_kernels);
#endif
    return found;
}

const Kernels* chosen = nullptr;

void use_features(const std::string& name) {
    std::string names;
    for (const Kernels* k : available()) {
        if (name == k->name) {
            chosen = k;
            return;
        }
        names += names.empty() ? k->name : std::string(", ") + k->name;
    }
    throw std::invalid_argument("CPU features '" + name + "' are not available; this machine has " + names);
}

template <class T>
const FloatKernels<T>& kernels() {
    if constexpr (sizeof(T) == 4) return chosen->f32;
    else return chosen->f64;
}

// ---- arrays -----------------------------------------------------------------------------------------------

template <class T>
using Array = py::array_t<T, 0>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// Whether the elements can be addressed: aligned, strides in whole elements.
template <class T>
bool addressable(const py::array& a) {
    bool whole = reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0;
    for (py::ssize_t d = 0; d < a.ndim(); ++d) whole &= a.strides(d) % py::ssize_t(sizeof(T)) == 0;
    return whole;
}

// An array that may be read through strides: itself, or a copy of what cannot be addressed (fields of
// packed records).
template <class T>
py::array readable(py::array a) {
    return addressable<T>(a) ? a : py::array(a.attr("copy")("C"));
}

template <class T>
struct Source {
    py::array array;
    Image<const T> image;

    explicit Source(py::array a) : array(readable<T>(std::move(a))) {
        require(array.ndim() == 4, "expected an array of 4 dimensions");
        const auto stride = [&](int d) { return index(array.strides(d)) / index(sizeof(T)); };
        image = {static_cast<const T*>(array.data()), stride(0), stride(1), stride(2), stride(3)};
    }
    index shape(int d) const { return array.shape(d); }
};

template <class T>
T* writable(py::array& a, int dimensions) {
    require(a.ndim() == dimensions, "the output has the wrong number of dimensions");
    require(a.flags() & py::array::c_style && addressable<T>(a), "the output must be C-contiguous and aligned");
    return static_cast<T*>(a.mutable_data());
}

template <class T>
const T* contiguous(const Array<T>& a, const char* name) {
    if (!(a.flags() & py::array::c_style && addressable<T>(a)))
        throw std::invalid_argument(std::string(name) + " must be C-contiguous and aligned");
    return a.data();
}

template <class T>
Image<T> image_of(T* data, index channels, index height, index width) {
    return {data, channels * height * width, height * width, width, 1};
}

// ---- axes -------------------------------------------------------------------------------------------------

Axis forward_axis(index size, index pixels, index taps, index stride, index padding, index dilation) {
    return {pixels, stride, -padding, taps, dilation, size, 0, 1};
}

// The axis of the gradient by x for the pixels first, first + stride, ... of x. Pixel h meets tap i at
// source position (h + padding - i * dilation) / stride, where that is whole.
Axis phase_axis(index first, index x_size, index grad_size, index taps, index stride, index padding,
                index dilation) {
    const index phase = (first + padding) % stride;
    const index tap_stride = stride / std::gcd(stride, dilation);
    index tap = 0;
    while (tap < tap_stride && tap * dilation % stride != phase) ++tap;
    if (tap == tap_stride) tap = taps;  // no tap meets this phase
    const index met = tap < taps ? (taps - tap + tap_stride - 1) / tap_stride : 0;
    return {(x_size - first + stride - 1) / stride, 1,          (first + padding - tap * dilation) / stride,
            met,  -tap_stride * dilation / stride,  grad_size,  tap,  tap_stride};
}

// The convolution of grad with w that is the gradient by x, one stride phase at a time:
// run(convolution, row, column) gets the phase whose first pixel is (row, column). Pixels that no tap
// meets are zero.
template <class T, class Run>
void for_each_phase(const Source<T>& grad, const Array<T>& w, py::array grad_x, Pair stride, Pair padding,
                    Pair dilation, index groups, Run run) {
    T* to = writable<T>(grad_x, 4);
    const index batch = grad_x.shape(0), channels = grad_x.shape(1), height = grad_x.shape(2),
                width = grad_x.shape(3);
    const index filters = w.shape(0), kernel_h = w.shape(2), kernel_w = w.shape(3);
    const index positions = kernel_h * kernel_w, group_channels = channels / groups;
    require(grad.shape(0) == batch && grad.shape(1) == filters, "grad does not match x and w");
    const T* weights = contiguous(w, "w");
    Image<T> x = image_of(to, channels, height, width);
    py::gil_scoped_release release;
    const auto touches_all = [](index taps, index stride, index dilation) {
        return taps >= stride && std::gcd(stride, dilation) == 1;
    };
    if (!touches_all(kernel_h, stride.first, dilation.first) ||
        !touches_all(kernel_w, stride.second, dilation.second))
        std::fill(to, to + batch * x.batch, T(0));
    for (index row = 0; row < std::min(stride.first, height); ++row)
        for (index column = 0; column < std::min(stride.second, width); ++column) {
            const Axis h = phase_axis(row, height, grad.shape(2), kernel_h, stride.first, padding.first,
                                      dilation.first);
            const Axis v = phase_axis(column, width, grad.shape(3), kernel_w, stride.second, padding.second,
                                      dilation.second);
            if (h.taps == 0 || v.taps == 0) continue;
            Image<T> y{to + row * x.row + column, x.batch, x.channel, x.row * stride.first, stride.second};
            Convolution<T, T> phase{
                batch, groups, filters / groups, group_channels, h, v, grad.image, weights,
                filters / groups * group_channels * positions, positions, group_channels * positions,
                kernel_w, 1, nullptr, y};
            run(phase, row, column);
        }
}

// ---- matrix products ----------------------------------------------------------------------------------------

// A kernel as large as the image meets every number once: then all the numbers of an image may as well be
// channels. Returns whether that is so.
bool meets_all_once(const py::array& x, const py::array& w, Pair padding, Pair dilation) {
    return x.ndim() == 4 && w.ndim() == 4 && x.shape(2) == w.shape(2) && x.shape(3) == w.shape(3) &&
           padding == Pair(0, 0) && dilation == Pair(1, 1);
}
template <class A>
A as_channels(A a) {
    return a.reshape({a.shape(0), a.shape(1) * a.shape(2) * a.shape(3), py::ssize_t(1), py::ssize_t(1)});
}

// Planes of one pixel: the images become the pixels of one row, so that lanes lie at even distances.
template <class P, class... Images>
void images_as_row(P& p, Images&... images) {
    const auto one = [](const Axis& a) { return a.pixels == 1 && a.taps == 1 && a.size == 1 && a.offset == 0; };
    if (!one(p.height) || !one(p.width)) return;
    p.width.pixels = p.width.size = p.batch;
    p.width.step = 1;
    p.batch = 1;
    ((images.column = images.batch), ...);
}

// ---- operations -------------------------------------------------------------------------------------------

template <class X, class Y>
void forward(void (*kernel)(const Convolution<X, Y>&), const py::array& x_array, const Array<X>& w_array,
             const std::optional<Array<Y>>& bias, py::array out, Pair stride, Pair padding, Pair dilation,
             index groups) {
    const bool product = meets_all_once(x_array, w_array, padding, dilation);
    const Source<X> x(product ? as_channels(x_array) : x_array);
    const Array<X> w = product ? as_channels(w_array) : w_array;
    Y* y = writable<Y>(out, 4);
    require(w.ndim() == 4, "w must have 4 dimensions");
    const index filters = w.shape(0), channels = w.shape(1), kh = w.shape(2), kw = w.shape(3);
    require(groups > 0 && filters % groups == 0 && x.shape(1) == channels * groups &&
                out.shape(0) == x.shape(0) && out.shape(1) == filters,
            "x, w, out and groups do not match");
    const index taps = channels * kh * kw;
    Convolution<X, Y> p{
        x.shape(0), groups, channels, filters / groups,
        forward_axis(x.shape(2), out.shape(2), kh, stride.first, padding.first, dilation.first),
        forward_axis(x.shape(3), out.shape(3), kw, stride.second, padding.second, dilation.second),
        x.image, contiguous(w, "w"), filters / groups * taps, taps, kh * kw, kw, 1,
        bias ? contiguous(*bias, "bias") : nullptr,
        image_of(y, filters, out.shape(2), out.shape(3))};
    images_as_row(p, p.x, p.y);
    py::gil_scoped_release release;
    kernel(p);
}

template <class T>
AdderGradX<T> grad_x_of(const Source<T>& grad, const Source<T>& x, const Array<T>& w, py::array& grad_x,
                        Pair stride, Pair padding, Pair dilation, index groups) {
    T* to = writable<T>(grad_x, 4);
    require(w.ndim() == 4 && groups > 0, "w must have 4 dimensions");
    const index filters = w.shape(0), channels = w.shape(1), kh = w.shape(2), kw = w.shape(3);
    require(std::equal(grad_x.shape(), grad_x.shape() + 4, x.array.shape()) &&
                filters % groups == 0 && x.shape(1) == channels * groups && grad.shape(1) == filters &&
                grad.shape(0) == x.shape(0),
            "grad, x, w, grad_x and groups do not match");
    AdderGradX<T> p{
        x.shape(0), groups, channels, filters / groups,
        forward_axis(x.shape(2), grad.shape(2), kh, stride.first, padding.first, dilation.first),
        forward_axis(x.shape(3), grad.shape(3), kw, stride.second, padding.second, dilation.second),
        grad.image, x.image, contiguous(w, "w"), image_of(to, x.shape(1), x.shape(2), x.shape(3))};
    images_as_row(p, p.grad, p.x, p.grad_x);
    return p;
}

template <class T>
void adder_grad_x(const Source<T>& grad, const Source<T>& x, const Array<T>& w, py::array grad_x, Pair stride,
                  Pair padding, Pair dilation, index groups) {
    const AdderGradX<T> p = grad_x_of(grad, x, w, grad_x, stride, padding, dilation, groups);
    py::gil_scoped_release release;
    kernels<T>().adder_grad_x(p);
    if (!all_finite(p.w, w.size()) || passes_over(p.height) || passes_over(p.width))
        mend_nan(p, [](double w, double x) { return std::clamp(w - x, -1.0, 1.0); });  // NaN stays
}

template <class T>
void conv_grad_x(const Source<T>& grad, const Array<T>& w, py::array grad_x, Pair stride, Pair padding,
                 Pair dilation, index groups) {
    for_each_phase<T>(grad, w, grad_x, stride, padding, dilation, groups,
                      [](Convolution<T, T>& phase, index, index) {
        images_as_row(phase, phase.x, phase.y);
        kernels<T>().conv(phase);
    });
    if (all_finite(w.data(), w.size())) return;
    const auto p = grad_x_of(grad, Source<T>(grad_x), w, grad_x, stride, padding, dilation, groups);
    py::gil_scoped_release release;
    mend_nan(p, [](double w, double) { return w; });
}

template <class T>
void grad_w(const Source<T>& grad, const Source<T>& x, const T* w, py::array grad_w_array, Pair stride,
            Pair padding, Pair dilation, index groups) {
    T* to = writable<T>(grad_w_array, 4);
    const index filters = grad_w_array.shape(0), channels = grad_w_array.shape(1),
                kh = grad_w_array.shape(2), kw = grad_w_array.shape(3);
    require(groups > 0 && filters % groups == 0 && x.shape(1) == channels * groups &&
                grad.shape(1) == filters && grad.shape(0) == x.shape(0),
            "grad, x, grad_w and groups do not match");
    GradW<T> p{
        x.shape(0), groups, channels, filters / groups,
        forward_axis(x.shape(2), grad.shape(2), kh, stride.first, padding.first, dilation.first),
        forward_axis(x.shape(3), grad.shape(3), kw, stride.second, padding.second, dilation.second),
        grad.image, x.image, w, to};
    images_as_row(p, p.x, p.grad);
    py::gil_scoped_release release;
    kernels<T>().grad_w(p);
}

Columns columns(const py::array& x, Pair kernel, Pair stride, Pair padding, Pair dilation) {
    const auto axis = [](index size, index taps, index s, index p, index d) {
        return forward_axis(size, (size + 2 * p - d * (taps - 1) - 1) / s + 1, taps, s, p, d);
    };
    return {x.shape(0), x.shape(1),
            axis(x.shape(2), kernel.first, stride.first, padding.first, dilation.first),
            axis(x.shape(3), kernel.second, stride.second, padding.second, dilation.second)};
}

template <class T>
void bind_float(py::module_& m) {
    using Bias = std::optional<Array<T>>;
    m.def("conv", [](Array<T> x, Array<T> w, Bias bias, Array<T> out, Pair s, Pair p, Pair d, index groups) {
        forward<T, T>(kernels<T>().conv, x, w, bias, out, s, p, d, groups);
    }, py::arg("x").noconvert(), py::arg("w").noconvert(), py::arg("bias").noconvert().none(true),
       py::arg("out").noconvert(), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
       py::arg("groups"));
    m.def("adder_conv", [](Array<T> x, Array<T> w, Bias bias, Array<T> out, Pair s, Pair p, Pair d,
                           index groups) {
        forward<T, T>(kernels<T>().adder_conv, x, w, bias, out, s, p, d, groups);
    }, py::arg("x").noconvert(), py::arg("w").noconvert(), py::arg("bias").noconvert().none(true),
       py::arg("out").noconvert(), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
       py::arg("groups"));
    m.def("conv_grad_x", [](Array<T> grad, Array<T> w, Array<T> grad_x, Pair s, Pair p, Pair d,
                            index groups) {
        const bool product = meets_all_once(grad_x, w, p, d);
        conv_grad_x<T>(Source<T>(grad), product ? as_channels(w) : w, product ? as_channels(grad_x) : grad_x,
                       s, p, d, groups);
    }, py::arg("grad").noconvert(), py::arg("w").noconvert(), py::arg("grad_x").noconvert(),
       py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
    m.def("adder_conv_grad_x", [](Array<T> grad, Array<T> x_array, Array<T> w, Array<T> grad_x, Pair s,
                                  Pair p, Pair d, index groups) {
        const bool product = meets_all_once(x_array, w, p, d);
        adder_grad_x<T>(Source<T>(grad), Source<T>(product ? as_channels(x_array) : x_array),
                        product ? as_channels(w) : w, product ? as_channels(grad_x) : grad_x, s, p, d,
                        groups);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("w").noconvert(),
       py::arg("grad_x").noconvert(), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
       py::arg("groups"));
    m.def("conv_grad_w", [](Array<T> grad, Array<T> x, Array<T> out, Pair s, Pair p, Pair d, index groups) {
        const bool product = meets_all_once(x, out, p, d);
        grad_w<T>(Source<T>(grad), Source<T>(product ? as_channels(x) : x), nullptr,
                  product ? as_channels(out) : out, s, p, d, groups);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("grad_w").noconvert(),
       py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
    m.def("adder_conv_grad_w", [](Array<T> grad, Array<T> x, Array<T> w, Array<T> out, Pair s, Pair p,
                                  Pair d, index groups) {
        const bool product = meets_all_once(x, out, p, d);
        grad_w<T>(Source<T>(grad), Source<T>(product ? as_channels(x) : x), contiguous(w, "w"),
                  product ? as_channels(out) : out, s, p, d, groups);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("w").noconvert(),
       py::arg("grad_w").noconvert(), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
       py::arg("groups"));
    m.def("col2im", [](Array<T> cols, Array<T> x, Pair kernel, Pair s, Pair p, Pair d) {
        T* to = writable<T>(x, 4);
        require(cols.ndim() == 3, "cols must have 3 dimensions");
        cols = readable<T>(cols);
        const Columns c = columns(x, kernel, s, p, d);
        require(cols.shape(0) == c.batch && cols.shape(1) == c.channels * kernel.first * kernel.second &&
                    cols.shape(2) == c.height.pixels * c.width.pixels,
                "cols and x do not match");
        const auto stride = [&](int k) { return index(cols.strides(k)) / index(sizeof(T)); };
        const index batch = stride(0), tap = stride(1), pixel = stride(2);
        py::gil_scoped_release release;
        col2im<T>(c, cols.data(), batch, tap, pixel, to);
    }, py::arg("cols").noconvert(), py::arg("x").noconvert(), py::arg("kernel"), py::arg("stride"),
       py::arg("padding"), py::arg("dilation"));
}

// ---- batch normalisation ------------------------------------------------------------------------------------

template <class T>
BatchNorm<T> planes(const Array<T>& x) {
    require(x.ndim() == 3, "x must have 3 dimensions");
    BatchNorm<T> p{};
    p.batch = x.shape(0), p.channels = x.shape(1), p.pixels = x.shape(2), p.x = contiguous(x, "x");
    return p;
}

template <class T>
const T* like(const BatchNorm<T>& p, const Array<T>& a) {
    require(a.size() == p.batch * p.channels * p.pixels, "arrays of one shape expected");
    return contiguous(a, "every array");
}

template <class T>
const T* by_channel(const BatchNorm<T>& p, const Array<T>& a) {
    require(a.size() == p.channels, "one value a channel expected");
    return contiguous(a, "every array");
}

template <class T>
Array<T> empty_like(const BatchNorm<T>& p) {
    return Array<T>({p.batch, p.channels, p.pixels});
}

template <class T>
void run_pass(void (*kernel)(const BatchNorm<T>&), const BatchNorm<T>& p) {
    py::gil_scoped_release release;
    kernel(p);
}

// The two results of a pass that sums.
template <class T>
py::tuple summed(void (*kernel)(const BatchNorm<T>&), BatchNorm<T> p) {
    Array<T> first(p.channels), second(p.channels);
    p.first = first.mutable_data(), p.second = second.mutable_data();
    run_pass(kernel, p);
    return py::make_tuple(first, second);
}

template <class T>
void bind_batch_norm(py::module_& m) {
    using Optional = std::optional<Array<T>>;
    m.def("batch_norm_moments", [](Array<T> x) {
        return summed(kernels<T>().batch_norm_moments, planes(x));
    }, py::arg("x").noconvert());
    m.def("batch_norm", [](Array<T> x, Array<T> mean, Array<T> scale, Array<T> bias, Optional residual,
                           bool relu) {
        BatchNorm<T> p = planes(x);
        p.mean = by_channel(p, mean), p.scale = by_channel(p, scale), p.bias = by_channel(p, bias);
        p.residual = residual ? like(p, *residual) : nullptr, p.relu = relu;
        Array<T> y = empty_like(p);
        p.y = y.mutable_data();
        run_pass(kernels<T>().batch_norm, p);
        return y;
    }, py::arg("x").noconvert(), py::arg("mean").noconvert(), py::arg("scale").noconvert(),
       py::arg("bias").noconvert(), py::arg("residual").noconvert().none(true), py::arg("relu"));
    const auto backward = [](const Array<T>& grad, const Array<T>& x, const Optional& answer,
                             const Array<T>& mean) {
        BatchNorm<T> p = planes(x);
        p.grad = like(p, grad), p.answer = answer ? like(p, *answer) : nullptr, p.mean = by_channel(p, mean);
        return p;
    };
    m.def("batch_norm_sums", [=](Array<T> grad, Array<T> x, Optional answer, Array<T> mean) {
        return summed(kernels<T>().batch_norm_sums, backward(grad, x, answer, mean));
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("answer").noconvert().none(true),
       py::arg("mean").noconvert());
    m.def("batch_norm_grad", [=](Array<T> grad, Array<T> x, Optional answer, Array<T> mean, Array<T> scale,
                                 Array<T> constant, Array<T> along_x, bool wants_flow) {
        BatchNorm<T> p = backward(grad, x, answer, mean);
        p.scale = by_channel(p, scale), p.constant = by_channel(p, constant);
        p.along_x = by_channel(p, along_x);
        Array<T> grad_x = empty_like(p);
        Optional flow;
        if (wants_flow) flow = empty_like(p);
        p.y = grad_x.mutable_data(), p.flow = flow ? flow->mutable_data() : nullptr;
        run_pass(kernels<T>().batch_norm_grad, p);
        return py::make_tuple(grad_x, flow);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("answer").noconvert().none(true),
       py::arg("mean").noconvert(), py::arg("scale").noconvert(), py::arg("constant").noconvert(),
       py::arg("along_x").noconvert(), py::arg("wants_flow"));
}

// ---- Winograd ---------------------------------------------------------------------------------------------

using Matrices = std::optional<std::pair<Array<double>, Array<double>>>;

// The problem but for its arrays; the transforms' matrices are kept beside it, in T.
template <class T>
struct WinogradProblem : Winograd<T> {
    std::vector<T> matrices;

    WinogradProblem(index tile, index batch, index channels, index filters, index height, index width,
                    index out_height, index out_width, Pair padding, bool relu, const Matrices& given)
        : Winograd<T>{} {
        require(tile == 4 || tile == 6, "tiles must be 4 x 4 or 6 x 6");
        require(given.has_value() == (tile == 6), "matrices belong to tiles of 6 x 6");
        require(padding.first >= 0 && padding.second >= 0 && out_height == height + 2 * padding.first - 2 &&
                    out_width == width + 2 * padding.second - 2 && out_height > 0 && out_width > 0,
                "sizes and padding do not match");
        const index m = tile - 2;
        const auto tiles = [=](index out) { return (out + m - 1) / m; };
        this->batch = batch, this->channels = channels, this->filters = filters, this->relu = relu;
        this->height = forward_axis(height, tiles(out_height), tile, m, padding.first, 1);
        this->width = forward_axis(width, tiles(out_width), tile, m, padding.second, 1);
        this->out_height = forward_axis(out_height, tiles(out_height), m, m, 0, 1);
        this->out_width = forward_axis(out_width, tiles(out_width), m, m, 0, 1);
        if (given) {
            require(given->first.size() == 36 && given->second.size() == 24, "matrices must be (6, 6), (4, 6)");
            const double *bt = contiguous(given->first, "the matrices"), *at = contiguous(given->second, "the matrices");
            matrices.assign(bt, bt + 36);
            matrices.insert(matrices.end(), at, at + 24);
            this->bt = matrices.data(), this->at = matrices.data() + 36;
        }
    }
    WinogradProblem(const WinogradProblem&) = delete;
};

struct WinogradShape {
    index tile, filters, channels;
    WinogradShape(const std::tuple<index, index, index>& shape)
        : tile(std::get<0>(shape)), filters(std::get<1>(shape)), channels(std::get<2>(shape)) {
        require((tile == 4 || tile == 6) && filters > 0 && channels > 0, "shape must be (4 or 6, K, C)");
    }
    explicit WinogradShape(const py::array& u) : WinogradShape(checked(u)) {}

private:
    static std::tuple<index, index, index> checked(const py::array& u) {
        require(u.ndim() == 4 && u.shape(0) == u.shape(1), "u must have the shape (t, t, K, C)");
        return {u.shape(0), u.shape(2), u.shape(3)};
    }
};

template <class T, int ROWS>
WinogradPlan<T> sparse_plan(const char* form, const Array<std::int64_t>& indptr,
                            const Array<std::int32_t>& indices, const Array<T>& values,
                            const WinogradShape& shape) {
    const std::int64_t* bounds = contiguous(indptr, "indptr");
    const std::int32_t* columns = contiguous(indices, "indices");
    const T* weights = contiguous(values, "values");
    const index rows = shape.tile * shape.tile * ((shape.filters + ROWS - 1) / ROWS), count = indices.size();
    require(indptr.size() == rows + 1 && bounds[0] == 0 && bounds[rows] == count && values.size() == count * ROWS,
            "indptr, indices, values and shape do not match");
    py::gil_scoped_release release;
    require(std::is_sorted(bounds, bounds + rows + 1), "indptr must not decrease");
    require(std::all_of(columns, columns + count, [&](std::int32_t c) { return c >= 0 && c < shape.channels; }),
            "indices must lie within the channels");
    return WinogradPlan<T>::template sparse<ROWS>(form, shape.tile, shape.filters, shape.channels, bounds,
                                                  columns, weights);
}

template <class T>
void bind_winograd(py::module_& m, const char* plan_name, const char* dtype) {
    using Plan = WinogradPlan<T>;
    using Indptr = Array<std::int64_t>;
    using Indices = Array<std::int32_t>;
    py::class_<Plan>(m, plan_name)
        .def_property_readonly("form", [](const Plan& p) { return p.form; })
        .def_property_readonly("shape", [](const Plan& p) { return py::make_tuple(p.tile, p.filters, p.channels); })
        .def_property_readonly("dtype", [=](const Plan&) { return dtype; })
        .def_property_readonly("nbytes", &Plan::bytes);
    m.def("winograd_dense", [](Array<T> u) {
        const WinogradShape shape(u);
        const T* weights = contiguous(u, "u");
        py::gil_scoped_release release;
        return Plan::dense(shape.tile, shape.filters, shape.channels, [=](index position, index k, index c) {
            return weights[(position * shape.filters + k) * shape.channels + c];
        });
    }, py::arg("u").noconvert());
    m.def("winograd_sparse", [](Indptr indptr, Indices indices, Array<T> values,
                                std::tuple<index, index, index> shape) {
        return sparse_plan<T, 1>("sparse", indptr, indices, values, shape);
    }, py::arg("indptr").noconvert(), py::arg("indices").noconvert(), py::arg("values").noconvert(),
       py::arg("shape"));
    m.def("winograd_blocks", [](Indptr indptr, Indices indices, Array<T> values,
                                std::tuple<index, index, index> shape) {
        return sparse_plan<T, WINOGRAD_ROWS>("blocks", indptr, indices, values, shape);
    }, py::arg("indptr").noconvert(), py::arg("indices").noconvert(), py::arg("values").noconvert(),
       py::arg("shape"));
    m.def("winograd_conv", [](Array<T> x_array, const Plan& plan, std::optional<Array<T>> bias, Array<T> out,
                              Pair padding, bool relu, Matrices matrices) {
        const Source<T> x(x_array);
        T* y = writable<T>(out, 4);
        require(x.shape(1) == plan.channels && out.shape(0) == x.shape(0) && out.shape(1) == plan.filters &&
                    (!bias || bias->size() == plan.filters),
                "x, plan, bias and out do not match");
        WinogradProblem<T> p(plan.tile, x.shape(0), plan.channels, plan.filters, x.shape(2), x.shape(3),
                             out.shape(2), out.shape(3), padding, relu, matrices);
        p.x = x.image, p.weights = plan.weights(), p.bias = bias ? contiguous(*bias, "bias") : nullptr;
        p.y = image_of(y, plan.filters, out.shape(2), out.shape(3));
        py::gil_scoped_release release;
        kernels<T>().winograd_conv(p);
    }, py::arg("x").noconvert(), py::arg("plan"), py::arg("bias").noconvert().none(true),
       py::arg("out").noconvert(), py::arg("padding"), py::arg("relu"), py::arg("matrices").none(true));
    m.def("winograd_conv_grad_x", [](Array<T> grad_array, Array<T> x_array, Array<T> u, Array<T> grad_x,
                                     Pair padding, bool relu, Matrices matrices) {
        const Source<T> grad(grad_array), x(x_array);
        const WinogradShape shape(u);
        const T* weights = contiguous(u, "u");
        T* to = writable<T>(grad_x, 4);
        require(grad.shape(1) == shape.filters && x.shape(1) == shape.channels && grad.shape(0) == x.shape(0) &&
                    std::equal(grad_x.shape(), grad_x.shape() + 4, x_array.shape()),
                "grad, x, u and grad_x do not match");
        WinogradProblem<T> p(shape.tile, x.shape(0), shape.channels, shape.filters, x.shape(2), x.shape(3),
                             grad.shape(2), grad.shape(3), padding, relu, matrices);
        p.grad = grad.image, p.x = x.image;
        p.y = image_of(to, shape.channels, x.shape(2), x.shape(3));
        py::gil_scoped_release release;
        const auto transposed = Plan::dense(shape.tile, shape.channels, shape.filters,
                                            [=](index position, index c, index k) {
            return weights[(position * shape.filters + k) * shape.channels + c];
        });
        p.weights = transposed.weights();
        kernels<T>().winograd_grad_x(p);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("u").noconvert(),
       py::arg("grad_x").noconvert(), py::arg("padding"), py::arg("relu"), py::arg("matrices").none(true));
    m.def("winograd_conv_grad_u", [](Array<T> grad_array, Array<T> x_array, Array<T> grad_u, Pair padding,
                                     bool relu, Matrices matrices) {
        const Source<T> grad(grad_array), x(x_array);
        const WinogradShape shape(grad_u);
        require(grad.shape(1) == shape.filters && x.shape(1) == shape.channels && grad.shape(0) == x.shape(0),
                "grad, x and grad_u do not match");
        WinogradProblem<T> p(shape.tile, x.shape(0), shape.channels, shape.filters, x.shape(2), x.shape(3),
                             grad.shape(2), grad.shape(3), padding, relu, matrices);
        p.grad = grad.image, p.x = x.image, p.grad_u = writable<T>(grad_u, 4);
        py::gil_scoped_release release;
        kernels<T>().winograd_grad_u(p);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("grad_u").noconvert(),
       py::arg("padding"), py::arg("relu"), py::arg("matrices").none(true));
}

// ---- shifts -------------------------------------------------------------------------------------------------

using Table = py::array_t<std::int64_t, 0>;

Shift shift_of(const py::array& shown, const py::array& image, const Table& table, Pair stride) {
    require(shown.ndim() == 4 && image.ndim() == 4, "expected arrays of 4 dimensions");
    const auto axis = [&](int d, index step) {
        require(shown.shape(d) == (image.shape(d) + step - 1) / step, "sizes and stride do not match");
        return forward_axis(image.shape(d), shown.shape(d), 1, step, 0, 1);
    };
    require(table.ndim() == 2 && table.shape(0) == image.shape(1) && table.shape(1) == 2,
            "shifts must have a row for every channel");
    const index channels = image.shape(1), height = image.shape(2), width = image.shape(3);
    const std::int64_t* given = contiguous(table, "shifts");
    std::vector<index> moves(2 * channels);  // beyond the image one is as good as another, and none overflows
    for (index c = 0; c < channels; ++c) {
        moves[2 * c] = std::clamp<index>(given[2 * c], -height, height);
        moves[2 * c + 1] = std::clamp<index>(given[2 * c + 1], -width, width);
    }
    return {image.shape(0), channels, axis(2, stride.first), axis(3, stride.second), std::move(moves)};
}

// The displacements of a convolution's channels. With `dense` planes they also are bits (kernels.hpp).
class ShiftTable {
public:
    ShiftTable(const Shift& s, bool dense) : kind_(s.channels) {
        std::map<std::pair<index, index>, index> found;
        for (index c = 0; c < s.channels; ++c)
            kind_[c] = found.emplace(Pair(s.table[2 * c], s.table[2 * c + 1]), found.size()).first->second;
        const bool few = index(found.size()) < MOST_KINDS;
        const index kinds = few ? index(found.size()) : s.channels;
        row_.resize(kinds), column_.resize(kinds);
        for (index c = 0; c < s.channels; ++c) {
            if (!few) kind_[c] = c;
            row_[kind_[c]] = s.table[2 * c], column_[kind_[c]] = s.table[2 * c + 1];
        }
        shifts = {s.height, s.width, kinds, row_.data(), column_.data(), kind_.data(), nullptr, 0};
        shifts.inside_bytes = s.height.pixels * s.width.pixels / 8 + 8;  // a vector's bits are read as four bytes
        if (!dense || s.height.step > 1 || s.width.step > 1 || kinds * shifts.inside_bytes > INSIDE) return;
        inside_.resize(kinds * shifts.inside_bytes);
        for (index k = 0; k < kinds; ++k) {
            const Shown rows(s.height, row_[k]), columns(s.width, column_[k]);
            for (index r = rows.first; r < rows.end; ++r)
                set_bits(inside_.data() + k * shifts.inside_bytes, r * s.width.pixels + columns.first,
                         r * s.width.pixels + columns.end);
        }
        shifts.inside = inside_.data();
    }
    ShiftTable(const ShiftTable&) = delete;

    Shifts shifts;

private:
    static constexpr index INSIDE = 8 << 20;  // bytes

    static void set_bits(std::uint8_t* bits, index first, index end) {
        for (; first < end && first % 8; ++first) bits[first / 8] |= std::uint8_t(1 << first % 8);
        for (; first + 8 <= end; first += 8) bits[first / 8] = 255;
        for (; first < end; ++first) bits[first / 8] |= std::uint8_t(1 << first % 8);
    }

    std::vector<index> kind_, row_, column_;
    std::vector<std::uint8_t> inside_;
};

template <class T>
bool dense(const Image<T>& x, index width) {
    return x.column == 1 && x.row == width;
}

template <class T>
void shift_forward(void (*kernel)(const Convolution<T, T>&), const Array<T>& x_array, const Array<T>& w,
                   const Table& table, const std::optional<Array<T>>& bias, py::array out, Pair stride) {
    const Source<T> x(x_array);
    T* y = writable<T>(out, 4);
    const Shift s = shift_of(out, x.array, table, stride);
    require(w.ndim() == 2 && w.shape(1) == s.channels && out.shape(1) == w.shape(0) &&
                out.shape(0) == s.batch,
            "x, w and out do not match");
    const T* weights = contiguous(w, "w");
    const T* b = bias ? contiguous(*bias, "bias") : nullptr;
    const index filters = w.shape(0);
    py::gil_scoped_release release;
    const ShiftTable shifted(s, dense(x.image, s.width.size));
    kernel({s.batch, 1, s.channels, filters, s.height, s.width, x.image, weights, 0, s.channels, 1, 1, 1, b,
            image_of(y, filters, s.height.pixels, s.width.pixels), &shifted.shifts});
}

// The gradient by x: a 1x1 convolution of grad whose answer goes to the places that the pixels show.
// run(convolution, shifts) gets it.
template <class T, class Run>
void shift_grad_x(const Source<T>& grad, const Array<T>& w, const Table& table, py::array grad_x,
                  Pair stride, bool x_dense, Run run) {
    T* to = writable<T>(grad_x, 4);
    const Shift s = shift_of(grad.array, grad_x, table, stride);
    require(w.ndim() == 2 && w.shape(1) == s.channels && grad.shape(1) == w.shape(0) &&
                grad.shape(0) == s.batch,
            "grad, x and w do not match");
    const T* weights = contiguous(w, "w");
    const index filters = w.shape(0);
    py::gil_scoped_release release;
    const ShiftTable shifted(s, x_dense);
    clear_hidden(s, to);
    run(Convolution<T, T>{s.batch, 1, filters, s.channels,
                          forward_axis(s.height.pixels, s.height.pixels, 1, 1, 0, 1),
                          forward_axis(s.width.pixels, s.width.pixels, 1, 1, 0, 1), grad.image, weights, 0, 1,
                          s.channels, 1, 1, nullptr,
                          image_of(to, s.channels, s.height.size, s.width.size), nullptr, &shifted.shifts});
}

template <class T>
void shift_grad_w(const Array<T>& grad_array, const Array<T>& x_array, const T* w, const Table& table,
                  py::array grad_w, Pair stride) {
    const Source<T> grad(grad_array), x(x_array);
    T* to = writable<T>(grad_w, 2);
    const Shift s = shift_of(grad.array, x.array, table, stride);
    require(grad_w.shape(0) == grad.shape(1) && grad_w.shape(1) == s.channels && grad.shape(0) == s.batch,
            "grad, x and grad_w do not match");
    const index filters = grad_w.shape(0);
    py::gil_scoped_release release;
    const ShiftTable shifted(s, false);
    kernels<T>().grad_w({s.batch, 1, s.channels, filters, s.height, s.width, grad.image, x.image, w, to,
                         &shifted.shifts});
}

template <class T>
void bind_shift(py::module_& m) {
    using Bias = std::optional<Array<T>>;
    const auto forward = [&](const char* name, auto kernel) {
        m.def(name, [kernel](Array<T> x, Array<T> w, Table shifts, Bias bias, Array<T> out, Pair s) {
            shift_forward<T>(kernel(), x, w, shifts, bias, out, s);
        }, py::arg("x").noconvert(), py::arg("w").noconvert(), py::arg("shifts").noconvert(),
           py::arg("bias").noconvert().none(true), py::arg("out").noconvert(), py::arg("stride"));
    };
    forward("shift_conv", [] { return kernels<T>().conv; });
    forward("shift_adder_conv", [] { return kernels<T>().adder_conv; });
    m.def("shift_conv_grad_x", [](Array<T> grad, Array<T> w, Table shifts, Array<T> grad_x, Pair s) {
        shift_grad_x<T>(Source<T>(grad), w, shifts, grad_x, s, true,
                        [](const Convolution<T, T>& p) { kernels<T>().conv(p); });
    }, py::arg("grad").noconvert(), py::arg("w").noconvert(), py::arg("shifts").noconvert(),
       py::arg("grad_x").noconvert(), py::arg("stride"));
    m.def("shift_adder_conv_grad_x", [](Array<T> grad, Array<T> x_array, Array<T> w, Table shifts,
                                        Array<T> grad_x, Pair s) {
        const Source<T> x(x_array);
        shift_grad_x<T>(Source<T>(grad), w, shifts, grad_x, s, dense(x.image, x.shape(3)),
                        [&](const Convolution<T, T>& p) {
            kernels<T>().adder_grad_x({p.batch, 1, p.filters, p.channels, p.height, p.width, p.x, x.image, p.w,
                                       p.y, p.y_shifts});
        });
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("w").noconvert(),
       py::arg("shifts").noconvert(), py::arg("grad_x").noconvert(), py::arg("stride"));
    m.def("shift_conv_grad_w", [](Array<T> grad, Array<T> x, Table shifts, Array<T> grad_w, Pair s) {
        shift_grad_w<T>(grad, x, nullptr, shifts, grad_w, s);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("shifts").noconvert(),
       py::arg("grad_w").noconvert(), py::arg("stride"));
    m.def("shift_adder_conv_grad_w", [](Array<T> grad, Array<T> x, Array<T> w, Table shifts,
                                        Array<T> grad_w, Pair s) {
        shift_grad_w<T>(grad, x, contiguous(w, "w"), shifts, grad_w, s);
    }, py::arg("grad").noconvert(), py::arg("x").noconvert(), py::arg("w").noconvert(),
       py::arg("shifts").noconvert(), py::arg("grad_w").noconvert(), py::arg("stride"));
}

// ---- moves of bits --------------------------------------------------------------------------------------------

struct Bits128 {
    std::uint64_t half[2];
};

template <class T>
void im2col_bits(py::array x_array, py::array cols, Pair kernel, Pair s, Pair p, Pair d) {
    const Source<T> x(std::move(x_array));
    T* to = writable<T>(cols, 3);
    const Columns c = columns(x.array, kernel, s, p, d);
    require(cols.shape(0) == c.batch && cols.shape(1) == c.channels * kernel.first * kernel.second &&
                cols.shape(2) == c.height.pixels * c.width.pixels,
            "cols and x do not match");
    py::gil_scoped_release release;
    im2col<T>(c, x.image, to);
}

// Calls f(a value of an unsigned type of this size).
template <class F>
void with_bits(py::ssize_t size, F f) {
    switch (size) {
    case 1: return f(std::uint8_t());
    case 2: return f(std::uint16_t());
    case 4: return f(std::uint32_t());
    case 8: return f(std::uint64_t());
    case 16: return f(Bits128());
    default: throw std::invalid_argument("elements must have 1, 2, 4, 8 or 16 bytes");
    }
}

void im2col_any(py::array x, py::array cols, Pair kernel, Pair s, Pair p, Pair d) {
    require(x.itemsize() == cols.itemsize(), "x and cols must have the same dtype");
    with_bits(x.itemsize(), [&](auto bits) { im2col_bits<decltype(bits)>(x, cols, kernel, s, p, d); });
}

// `adjoint` moves an answer of shift back.
void shift_any(py::array source, const Table& table, py::array target, Pair stride, bool adjoint) {
    require(source.itemsize() == target.itemsize(), "both arrays must have the same dtype");
    with_bits(source.itemsize(), [&](auto bits) {
        using T = decltype(bits);
        const Source<T> from(source);
        T* to = writable<T>(target, 4);
        const Shift s = adjoint ? shift_of(from.array, target, table, stride)
                                : shift_of(target, from.array, table, stride);
        require(source.shape(0) == target.shape(0) && source.shape(1) == target.shape(1),
                "batches or channels do not match");
        py::gil_scoped_release release;
        if (adjoint) shift_backward(s, from.image, to);
        else shift<1>(s, from.image, to);
    });
}

double peak(const std::string& operation, double seconds) {
    const std::pair<const char*, int> names[] = {{"fma", PEAK_FMA},
                                                 {"max_add", PEAK_MAX_ADD},
                                                 {"sub_abs_add", PEAK_SUB_ABS_ADD},
                                                 {"u8_max_dot", PEAK_U8_MAX_DOT}};
    for (const auto& [name, number] : names)
        if (operation == name) {
            py::gil_scoped_release release;
            return chosen->peak(number, seconds);
        }
    throw std::invalid_argument("operation must be fma, max_add, sub_abs_add or u8_max_dot, got " + operation);
}

}  // namespace
}  // namespace mulfree

PYBIND11_MODULE(_cpu, m) {
    using namespace mulfree;
    m.doc() = "CPU kernels; use the functions of mulfree_cupy instead.";
    const char* wanted = std::getenv("MULFREE_CPU_FEATURES");
    chosen = available().back();
    if (wanted && *wanted) use_features(wanted);

    m.def("features", [] { return chosen->name; }, "The instruction set in use.");
    m.def("available_features", [] {
        py::list names;
        for (const Kernels* k : available()) names.append(k->name);
        return py::tuple(names);
    }, "The instruction sets this machine can run, slowest first.");
    m.def("use_features", &use_features, py::arg("name"), "Choose one of available_features().");
    m.def("get_num_threads", &max_threads, "The most threads that a call uses.");
    m.def("set_num_threads", &set_max_threads, py::arg("n"), "Let a call use at most n threads.");
    m.attr("compiler") = __VERSION__;
    m.def("peak", &peak, py::arg("operation"), py::arg("seconds") = 0.2,
          "Terms a second of an inner operation on registers, on all threads.");

    bind_float<float>(m);
    bind_float<double>(m);
    bind_shift<float>(m);
    bind_shift<double>(m);
    bind_batch_norm<float>(m);
    bind_batch_norm<double>(m);
    bind_winograd<float>(m, "WinogradPlanFloat32", "float32");
    bind_winograd<double>(m, "WinogradPlanFloat64", "float64");
    m.def("adder_conv", [](py::array_t<std::uint8_t, 0> x, py::array_t<std::uint8_t, 0> w,
                           std::optional<py::array_t<std::int32_t, 0>> bias, py::array_t<std::int32_t, 0> out,
                           Pair s, Pair p, Pair d, mulfree::index groups) {
        forward<std::uint8_t, std::int32_t>(chosen->adder_conv_u8, x, w, bias, out, s, p, d, groups);
    }, py::arg("x").noconvert(), py::arg("w").noconvert(), py::arg("bias").noconvert().none(true),
       py::arg("out").noconvert(), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
       py::arg("groups"));
    m.def("shift", [](py::array x, Table shifts, py::array out, Pair s) {
        shift_any(x, shifts, out, s, false);
    }, py::arg("x"), py::arg("shifts").noconvert(), py::arg("out"), py::arg("stride"));
    m.def("shift_backward", [](py::array grad, Table shifts, py::array grad_x, Pair s) {
        shift_any(grad, shifts, grad_x, s, true);
    }, py::arg("grad"), py::arg("shifts").noconvert(), py::arg("grad_x"), py::arg("stride"));
    m.def("im2col", &im2col_any, py::arg("x"), py::arg("cols"), py::arg("kernel"), py::arg("stride"),
          py::arg("padding"), py::arg("dilation"));
}
