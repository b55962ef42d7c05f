// The shift and its convolutions.
#include "../ops/shift.hpp"

#include <algorithm>
#include <map>
#include <vector>

#include "epilogue.hpp"
#include "packed_weights.hpp"

namespace mulfree {
namespace {

using Table = Array<std::int64_t>;

Shift shift_of(const py::array& shown, const py::array& image, const Table& table, Pair stride) {
    require(shown.ndim() == 4 && image.ndim() == 4, "expected arrays of 4 dimensions");
    const auto axis = [&](int d, index step) {
        return forward_axis(image.shape(d), shown.shape(d), 1, step, {}, 1);
    };
    require(table.ndim() == 2 && table.shape(0) == image.shape(1) && table.shape(1) == 2,
            "shifts must have a row for every channel");
    const index channels = image.shape(1), height = image.shape(2), width = image.shape(3);
    const std::int64_t* given = contiguous(table, "shifts");
    std::vector<index> moves(2 * channels);  // clamped to the image size, so none overflows
    for (index c = 0; c < channels; ++c) {
        moves[2 * c] = std::clamp<index>(given[2 * c], -height, height);
        moves[2 * c + 1] = std::clamp<index>(given[2 * c + 1], -width, width);
    }
    return {image.shape(0), channels, axis(2, stride.first), axis(3, stride.second), std::move(moves)};
}

// The displacements of a convolution's channels. With `dense` planes also as bits (kernels.hpp).
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
        shifts.inside_bytes = s.height.pixels * s.width.pixels / 8 + 8;  // a vector's bits are loaded as four bytes
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

// The original weights of a 1x1 convolution.
template <class T>
Array<T> matrix_of(const PackedWeights& w) {
    require(w.filters.groups == 1 && w.filters.rows * w.filters.columns == 1,
            "w was packed for a kernel of several taps, or for groups");
    return py::reinterpret_borrow<Array<T>>(py::array(w.array).reshape({w.filters.all, w.filters.channels}));
}

// With an epilogue, `out` is its output.
template <class T>
void shift_forward(const ConvolutionKernel<T, T>& kernel, const Array<T>& x_array, const Array<T>& w,
                   const PackedWeights* packed, const Table& table, const Optional<T>& bias, py::array out, Pair stride,
                   const Epilogue<T>* epilogue = nullptr) {
    const Source<T> x(x_array);
    T* y = epilogue ? nullptr : writable<T>(out, 4);
    const Shift s = shift_of(out, x.array, table, stride);
    require(w.ndim() == 2 && w.shape(1) == s.channels && out.shape(1) == w.shape(0) &&
                out.shape(0) == s.batch,
            "x, w and out do not match");
    const T* weights = contiguous(w, "w");
    const void* packed_w = packed ? packed->data(kernel) : nullptr;
    const index filters = w.shape(0);
    const T* b = values(bias, filters, "bias");
    WithoutGil others_run;
    const ShiftTable shifted(s, dense(x.image, s.width.size));
    kernel.run({s.batch, 1, s.channels, filters, s.height, s.width, x.image, weights, 0, s.channels, 1, 1, 1, b,
                image_of(y, filters, s.height.pixels, s.width.pixels), &shifted.shifts, nullptr, packed_w, epilogue});
}

// The gradient by x: a 1x1 convolution of grad whose output is written to the shifted positions. Calls
// run(convolution, shifts).
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
    WithoutGil others_run;
    const ShiftTable shifted(s, x_dense);
    clear_hidden(s, to);
    run(Convolution<T, T>{s.batch, 1, filters, s.channels,
                          forward_axis(s.height.pixels, s.height.pixels, 1, 1, {}, 1),
                          forward_axis(s.width.pixels, s.width.pixels, 1, 1, {}, 1), grad.image, weights, 0, 1,
                          s.channels, 1, 1, nullptr,
                          image_of(to, s.channels, s.height.size, s.width.size), nullptr, &shifted.shifts});
}

template <class T>
void shift_grad_w(const Array<T>& grad_array, const Array<T>& x_array, const Optional<T>& w,
                  const Table& table, py::array grad_w, Pair stride) {
    const Source<T> grad(grad_array), x(x_array);
    T* to = writable<T>(grad_w, 2);
    const Shift s = shift_of(grad.array, x.array, table, stride);
    require(grad_w.shape(0) == grad.shape(1) && grad_w.shape(1) == s.channels && grad.shape(0) == s.batch,
            "grad, x and grad_w do not match");
    require(!w || same_shape(*w, grad_w), "w and grad_w must have the same shape");
    const T* weights = w ? contiguous(*w, "w") : nullptr;
    const index filters = grad_w.shape(0);
    WithoutGil others_run;
    const ShiftTable shifted(s, false);
    kernels<T>().grad_w({s.batch, 1, s.channels, filters, s.height, s.width, grad.image, x.image, weights, to,
                         &shifted.shifts});
}

template <class T>
void bind(py::module_& m) {
    const auto forward = [&](const char* name, auto kernel) {  // with plain weights, packed weights, an epilogue
        m.def(name, [kernel](Array<T> x, Array<T> w, Table shifts, Optional<T> bias, Array<T> out, Pair s) {
            shift_forward<T>(kernel(), x, w, nullptr, shifts, bias, out, s);
        }, exact("x"), exact("w"), exact("shifts"), exact("bias"), exact("out"), py::arg("stride"));
        m.def(name, [kernel](Array<T> x, const PackedWeights& w, Table shifts, Optional<T> bias, Array<T> out,
                             Pair s) {
            shift_forward<T>(kernel(), x, matrix_of<T>(w), &w, shifts, bias, out, s);
        }, exact("x"), exact("w"), exact("shifts"), exact("bias"), exact("out"), py::arg("stride"));
        bind_fused<T, Array<T>, const PackedWeights&, Table, Optional<T>, py::array, Pair>(m, name, [kernel](
            Array<T> x, const PackedWeights& w, Table shifts, Optional<T> bias, py::array out, Pair s,
            const EpilogueArguments<T>& arguments) {
            const Epilogue<T> epilogue = arguments.on(out, w.filters.all);
            shift_forward<T>(kernel(), x, matrix_of<T>(w), &w, shifts, bias, out, s, &epilogue);
        }, exact("x"), exact("w"), exact("shifts"), exact("bias"), exact("out"), py::arg("stride"));
    };
    forward("shift_conv", []() -> auto& { return kernels<T>().conv; });
    forward("shift_adder_conv", []() -> auto& { return kernels<T>().adder_conv; });
    m.def("shift_conv_grad_x", [](Array<T> grad, Array<T> w, Table shifts, Array<T> grad_x, Pair s) {
        shift_grad_x<T>(Source<T>(grad), w, shifts, grad_x, s, true,
                        [](const Convolution<T, T>& p) { kernels<T>().conv.run(p); });
    }, exact("grad"), exact("w"), exact("shifts"),
       exact("grad_x"), py::arg("stride"));
    m.def("shift_adder_conv_grad_x", [](Array<T> grad, Array<T> x_array, Array<T> w, Table shifts,
                                        Array<T> grad_x, Pair s) {
        require(same_shape(x_array, grad_x), "x and grad_x must have the same shape");
        const Source<T> x(x_array);
        shift_grad_x<T>(Source<T>(grad), w, shifts, grad_x, s, dense(x.image, x.shape(3)),
                        [&](const Convolution<T, T>& p) {
            kernels<T>().adder_grad_x({p.batch, 1, p.filters, p.channels, p.height, p.width, p.x, x.image, p.w,
                                       p.y, p.y_shifts});
        });
    }, exact("grad"), exact("x"), exact("w"),
       exact("shifts"), exact("grad_x"), py::arg("stride"));
    m.def("shift_conv_grad_w", [](Array<T> grad, Array<T> x, Table shifts, Array<T> grad_w, Pair s) {
        shift_grad_w<T>(grad, x, std::nullopt, shifts, grad_w, s);
    }, exact("grad"), exact("x"), exact("shifts"),
       exact("grad_w"), py::arg("stride"));
    m.def("shift_adder_conv_grad_w", [](Array<T> grad, Array<T> x, Array<T> w, Table shifts,
                                        Array<T> grad_w, Pair s) {
        shift_grad_w<T>(grad, x, w, shifts, grad_w, s);
    }, exact("grad"), exact("x"), exact("w"),
       exact("shifts"), exact("grad_w"), py::arg("stride"));
}

// `adjoint` shifts an output of shift back.
void shift_any(py::array source, const Table& table, py::array target, Pair stride, bool adjoint) {
    with_bits(source, target, [&](auto bits) {
        using T = decltype(bits);
        const Source<T> from(source);
        T* to = writable<T>(target, 4);
        const Shift s = adjoint ? shift_of(from.array, target, table, stride)
                                : shift_of(target, from.array, table, stride);
        require(source.shape(0) == target.shape(0) && source.shape(1) == target.shape(1),
                "batches or channels do not match");
        WithoutGil others_run;
        if (adjoint) shift_backward(*chosen, s, from.image, to);
        else shift<1>(*chosen, s, from.image, to);
    });
}

}  // namespace

void bind_shift(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
    m.def("shift", [](py::array x, Table shifts, py::array out, Pair s) {
        shift_any(x, shifts, out, s, false);
    }, exact("x"), exact("shifts"), exact("out"), py::arg("stride"));
    m.def("shift_backward", [](py::array grad, Table shifts, py::array grad_x, Pair s) {
        shift_any(grad, shifts, grad_x, s, true);
    }, exact("grad"), exact("shifts"), exact("grad_x"), py::arg("stride"));
}

}  // namespace mulfree
