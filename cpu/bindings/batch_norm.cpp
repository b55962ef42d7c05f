// The passes of batch normalisation.
#include "arrays.hpp"

namespace mulfree {
namespace {

template <class T>
BatchNorm<T> planes(const Array<T>& x) {
    require(x.ndim() == 3, "x must have 3 dimensions");
    require(x.size() > 0, "expected no empty arrays");
    BatchNorm<T> p{};
    p.batch = x.shape(0), p.channels = x.shape(1), p.pixels = x.shape(2), p.x = contiguous(x, "x");
    return p;
}

template <class T>
const T* like(const BatchNorm<T>& p, const Array<T>& a, const char* name) {
    return values(a, p.batch * p.channels * p.pixels, name);
}
template <class T>
const T* like(const BatchNorm<T>& p, const Optional<T>& a, const char* name) {
    return a ? like(p, *a, name) : nullptr;
}

template <class T>
const T* by_channel(const BatchNorm<T>& p, const Array<T>& a, const char* name) {
    return values(a, p.channels, name);
}

template <class T>
Array<T> empty_like(const BatchNorm<T>& p) {
    return Array<T>({p.batch, p.channels, p.pixels});
}

template <class T>
void run_pass(void (*kernel)(const BatchNorm<T>&), const BatchNorm<T>& p) {
    WithoutGil others_run;
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
BatchNorm<T> backward(const Array<T>& grad, const Array<T>& x, const Optional<T>& answer, const Array<T>& mean) {
    BatchNorm<T> p = planes(x);
    p.grad = like(p, grad, "grad"), p.answer = like(p, answer, "answer"), p.mean = by_channel(p, mean, "mean");
    return p;
}

template <class T>
void bind(py::module_& m) {
    m.def("batch_norm_moments", [](Array<T> x) {
        return summed(kernels<T>().batch_norm_moments, planes(x));
    }, exact("x"));
    m.def("batch_norm", [](Array<T> x, Array<T> mean, Array<T> scale, Array<T> bias, Optional<T> residual,
                           bool relu, Optional<T> out) {
        BatchNorm<T> p = planes(x);
        p.mean = by_channel(p, mean, "mean"), p.scale = by_channel(p, scale, "scale");
        p.bias = by_channel(p, bias, "bias"), p.residual = like(p, residual, "residual"), p.relu = relu;
        Array<T> y = out ? *out : empty_like(p);
        require(same_shape(x, y), "x and out must have the same shape");
        p.y = writable<T>(y, 3);
        run_pass(kernels<T>().batch_norm, p);
        return y;
    }, exact("x"), exact("mean"), exact("scale"), exact("bias"), exact("residual"), py::arg("relu"),
       exact("out") = py::none());
    m.def("batch_norm_sums", [](Array<T> grad, Array<T> x, Optional<T> answer, Array<T> mean) {
        return summed(kernels<T>().batch_norm_sums, backward(grad, x, answer, mean));
    }, exact("grad"), exact("x"), exact("answer"), exact("mean"));
    m.def("batch_norm_grad", [](Array<T> grad, Array<T> x, Optional<T> answer, Array<T> mean, Array<T> scale,
                                Array<T> constant, Array<T> along_x, bool wants_flow) {
        BatchNorm<T> p = backward(grad, x, answer, mean);
        p.scale = by_channel(p, scale, "scale"), p.constant = by_channel(p, constant, "constant");
        p.along_x = by_channel(p, along_x, "along_x");
        Array<T> grad_x = empty_like(p);
        Optional<T> flow;
        if (wants_flow) flow = empty_like(p);
        p.y = grad_x.mutable_data(), p.flow = flow ? flow->mutable_data() : nullptr;
        run_pass(kernels<T>().batch_norm_grad, p);
        return py::make_tuple(grad_x, flow);
    }, exact("grad"), exact("x"), exact("answer"), exact("mean"), exact("scale"), exact("constant"),
       exact("along_x"), py::arg("wants_flow"));
}

}  // namespace

void bind_batch_norm(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace mulfree
