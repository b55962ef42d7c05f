// The epilogue (Epilogue in kernels.hpp) from its Python arguments.
#pragma once

#include <limits>

#include "arrays.hpp"

namespace mulfree {

// The numbers are T; residual and out may be T or uint8, in which case the result is rounded.
template <class T>
struct EpilogueArguments {
    Optional<T> scale, origin, offset;
    std::optional<py::array> residual;
    double residual_scale, low, high;

    Epilogue<T> on(py::array& out, index filters) const {
        Epilogue<T> e{};
        e.scale = values(scale, filters, "scale"), e.origin = values(origin, filters, "origin");
        e.offset = values(offset, filters, "offset");
        e.residual_scale = T(residual_scale), e.low = T(low), e.high = T(high);
        require(low <= high, "low must be at most high");
        if (is_bytes(out)) {
            require(low >= 0 && high <= 255, "what is rounded to uint8 must be clipped to [0, 255]");
            e.narrow = writable<std::uint8_t>(out, 4);
        } else {
            exactly<T>(out);
            e.wide = writable<T>(out, 4);
        }
        if (!residual) return e;
        require(same_shape(*residual, out), "residual and out must have the same shape");
        if (is_bytes(*residual)) e.narrow_residual = contiguous(exactly<std::uint8_t>(*residual), "residual");
        else e.residual = contiguous(exactly<T>(*residual), "residual");
        return e;
    }

private:
    static bool is_bytes(const py::array& a) { return py::isinstance<Array<std::uint8_t>>(a); }
};

// Binds <function>_fused as f(given..., epilogue); `names` are the names of the given arguments.
template <class T, class... Given, class F, class... Names>
void bind_fused(py::module_& m, const char* function, F f, Names... names) {
    constexpr double INFINITE = std::numeric_limits<double>::infinity();
    m.def((std::string(function) + "_fused").c_str(), [f](
        Given... given, const Optional<T>& scale, const Optional<T>& origin, const Optional<T>& offset,
        const std::optional<py::array>& residual, double residual_scale, double low, double high) {
        f(given..., EpilogueArguments<T>{scale, origin, offset, residual, residual_scale, low, high});
    }, names..., exact("scale") = py::none(), exact("origin") = py::none(), exact("offset") = py::none(),
       exact("residual") = py::none(), py::arg("residual_scale") = 1.0, py::arg("low") = -INFINITE,
       py::arg("high") = INFINITE);
}

}  // namespace mulfree
