// Conversion of NumPy arrays to kernel arguments, and the kernels of the instruction set in use. Memory safety is
// always checked here and in the files of the operations; the validity of arguments, with messages for users, by the
// caller (mulfree_cupy/ops).
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "../kernels.hpp"

namespace mulfree {

namespace py = pybind11;

using Pair = std::pair<index, index>;
using Sides = std::pair<Pair, Pair>;  // padding (before, after) of the rows and of the columns
template <class T>
using Array = py::array_t<T, 0>;
template <class T>
using Optional = std::optional<Array<T>>;

extern const Kernels* chosen;  // module.cpp

template <class T>
const FloatKernels<T>& kernels() {
    if constexpr (sizeof(T) == 4) return chosen->f32;
    else return chosen->f64;
}

// Releases the GIL until the end of the scope. If Python exits meanwhile, a daemon thread that acquires the GIL again
// is unwound (before 3.14), which must not happen in a destructor: it waits here for the process to end.
class WithoutGil {
public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    WithoutGil(const WithoutGil&) = delete;
    ~WithoutGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

private:
    PyThreadState* state_;
};

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// An argument without conversion: writes to a converted copy would be lost.
inline py::arg exact(const char* name) { return py::arg(name).noconvert(); }

// Whether the elements can be addressed: aligned, strides in whole elements.
template <class T>
bool addressable(const py::array& a) {
    bool whole = reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0;
    for (py::ssize_t d = 0; d < a.ndim(); ++d) whole &= a.strides(d) % py::ssize_t(sizeof(T)) == 0;
    return whole;
}

// An array readable through strides: itself, or a copy if it is not addressable (fields of packed records).
template <class T>
py::array readable(py::array a) {
    return addressable<T>(a) ? a : py::array(a.attr("copy")("C"));
}

// An image to be read, with elements of the size of T. NumPy's stride of a dimension of size 1 is arbitrary; here it
// is that of C order.
template <class T>
struct Source {
    py::array array;
    Image<const T> image;

    explicit Source(py::array a) : array(readable<T>(std::move(a))) {
        require(array.ndim() == 4, "expected an array of 4 dimensions");
        require(array.size() > 0, "expected no empty arrays");
        index stride[4], extent = 1;
        for (int d = 3; d >= 0; --d) {
            stride[d] = shape(d) > 1 ? array.strides(d) / index(sizeof(T)) : extent;
            extent = shape(d) * stride[d];
        }
        image = {static_cast<const T*>(array.data()), stride[0], stride[1], stride[2], stride[3]};
    }
    index shape(int d) const { return array.shape(d); }
};

template <class T>
T* writable(py::array& a, int dimensions) {
    require(a.ndim() == dimensions, "the output has the wrong number of dimensions");
    require(a.flags() & py::array::c_style && addressable<T>(a), "the output must be C-contiguous and aligned");
    require(a.size() > 0, "expected no empty arrays");
    return static_cast<T*>(a.mutable_data());
}

template <class T>
const T* contiguous(const Array<T>& a, const char* name) {
    if (!(a.flags() & py::array::c_style && addressable<T>(a)))
        throw std::invalid_argument(std::string(name) + " must be C-contiguous and aligned");
    return a.data();
}

// An argument that must be an array of T already.
template <class T>
Array<T> exactly(const py::array& a) {
    if (!py::isinstance<Array<T>>(a)) throw py::type_error("an array has the wrong dtype");
    return py::reinterpret_borrow<Array<T>>(a);
}

// One value per filter or channel.
template <class T>
const T* values(const Array<T>& a, index count, const char* name) {
    if (a.size() != count)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(count) + " values, got " +
                                    std::to_string(a.size()));
    return contiguous(a, name);
}
template <class T>
const T* values(const Optional<T>& a, index count, const char* name) {
    return a ? values(*a, count, name) : nullptr;
}

inline bool same_shape(const py::array& a, const py::array& b) {
    bool same = a.ndim() == b.ndim();
    for (py::ssize_t d = 0; same && d < a.ndim(); ++d) same = a.shape(d) == b.shape(d);
    return same;
}

template <class T>
Image<T> image_of(T* data, index channels, index height, index width) {
    return {data, channels * height * width, height * width, width, 1};
}

// The axis of a forward pass. Steps beyond the padded image are equivalent, and so bounded.
constexpr index LONGEST = index(1) << 40;
inline Axis forward_axis(index size, index pixels, index taps, index stride, Pair padding, index dilation) {
    require(size > 0 && taps > 0 && stride > 0 && dilation > 0, "sizes, stride and dilation must be positive");
    const auto [before, after] = padding;
    require(before >= 0 && after >= 0 && before < LONGEST && after < LONGEST && size < LONGEST,
            "padding must not be negative, nor beyond 2**40");
    const index padded = before + size + after;
    require(taps == 1 || dilation <= (padded - 1) / (taps - 1), "the kernel is larger than the padded image");
    const index reach = (taps - 1) * dilation;
    require(pixels == (padded - reach - 1) / stride + 1, "sizes, stride, padding and dilation do not match");
    return {pixels, std::min(stride, padded), -before, taps, std::min(dilation, padded), size, 0, 1};
}

struct Bits128 {
    std::uint64_t half[2];
};

// Calls f(a value of an unsigned type of this size), as the type of elements copied from one array to the other.
template <class F>
void with_bits(const py::array& from, const py::array& to, F f) {
    constexpr auto OBJECTS = 1;  // NumPy's NPY_ITEM_REFCOUNT
    require(from.itemsize() == to.itemsize(), "both arrays must have the same dtype");
    require(!((from.dtype().flags() | to.dtype().flags()) & OBJECTS), "objects cannot be moved as bits");
    switch (from.itemsize()) {
    case 1: return f(std::uint8_t());
    case 2: return f(std::uint16_t());
    case 4: return f(std::uint32_t());
    case 8: return f(std::uint64_t());
    case 16: return f(Bits128());
    default: throw std::invalid_argument("elements must have 1, 2, 4, 8 or 16 bytes");
    }
}

// One function per file of this folder.
void bind_convolution(py::module_& m);
void bind_columns(py::module_& m);
void bind_shift(py::module_& m);
void bind_winograd(py::module_& m);
void bind_batch_norm(py::module_& m);
void bind_pool(py::module_& m);
void bind_distances(py::module_& m);

}  // namespace mulfree
