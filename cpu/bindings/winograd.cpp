// Winograd's convolution, its plans and gradients.
#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "../ops/winograd/plan.hpp"
#include "arrays.hpp"

namespace mulfree {
namespace {

using Matrices = std::optional<std::pair<Array<double>, Array<double>>>;

// The problem without its arrays, and the transforms' matrices in T.
template <class T>
struct WinogradProblem : Winograd<T> {
    std::vector<T> matrices;

    WinogradProblem(index tile, index batch, index channels, index filters, index height, index width,
                    index out_height, index out_width, Sides padding, bool relu, const Matrices& given)
        : Winograd<T>{} {
        require(tile == 4 || tile == 6, "tiles must be 4 x 4 or 6 x 6");
        require(!given || tile == 6, "matrices belong to tiles of 6 x 6");
        forward_axis(height, out_height, 3, 1, padding.first, 1);  // which checks them
        forward_axis(width, out_width, 3, 1, padding.second, 1);
        const index m = tile - 2;
        const auto tiles = [=](index out) { return (out + m - 1) / m; };
        this->batch = batch, this->channels = channels, this->filters = filters, this->relu = relu;
        this->height = {tiles(out_height), m, -padding.first.first, tile, 1, height, 0, 1};
        this->width = {tiles(out_width), m, -padding.second.first, tile, 1, width, 0, 1};
        this->out_height = {tiles(out_height), m, 0, m, 1, out_height, 0, 1};
        this->out_width = {tiles(out_width), m, 0, m, 1, out_width, 0, 1};
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
        require((tile == 4 || tile == 6) && filters > 0 && channels > 0 && filters < LONGEST && channels < LONGEST,
                "shape must be (4 or 6, K, C)");
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
    WithoutGil others_run;
    require(std::is_sorted(bounds, bounds + rows + 1), "indptr must not decrease");
    require(std::all_of(columns, columns + count, [&](std::int32_t c) { return c >= 0 && c < shape.channels; }),
            "indices must lie within the channels");
    return WinogradPlan<T>::template sparse<ROWS>(form, shape.tile, shape.filters, shape.channels, bounds,
                                                  columns, weights);
}

// Seconds per product with dense weights, sparse ones and blocks: the best of some rounds, on the caller's thread
// only.
template <class T>
std::array<double, 3> costs() {
    constexpr index TILE = 4, POSITIONS = TILE * TILE, FILTERS = WINOGRAD_GROUP, CHANNELS = WINOGRAD_CHUNK;
    constexpr index GROUPS = FILTERS / WINOGRAD_ROWS;
    constexpr int ROUNDS = 9;
    std::vector<std::int64_t> rows{0}, groups{0};  // CSR row starts and channels: a quarter is kept
    std::vector<std::int32_t> columns, shared;
    std::minstd_rand random;
    const auto draw = [&](std::vector<std::int32_t>& to) {
        for (index c = 0; c < CHANNELS; ++c)
            if (random() % 4 == 0) to.push_back(std::int32_t(c));
        return std::int64_t(to.size());
    };
    for (index row = 0; row < POSITIONS * FILTERS; ++row) rows.push_back(draw(columns));
    for (index row = 0; row < POSITIONS * GROUPS; ++row) groups.push_back(draw(shared));
    const std::vector<T> values(POSITIONS * FILTERS * CHANNELS, T(1));

    using Plan = WinogradPlan<T>;
    const Plan plans[] = {
        Plan::dense(TILE, FILTERS, CHANNELS, values.data(), CHANNELS, 1),
        Plan::template sparse<1>("sparse", TILE, FILTERS, CHANNELS, rows.data(), columns.data(), values.data()),
        Plan::template sparse<WINOGRAD_ROWS>("blocks", TILE, FILTERS, CHANNELS, groups.data(), shared.data(),
                                             values.data())};
    const double products[] = {double(POSITIONS * FILTERS * CHANNELS), double(columns.size()),
                               double(shared.size() * WINOGRAD_ROWS)};
    std::array<double, 3> best;
    best.fill(std::numeric_limits<double>::infinity());
    for (int round = 0; round < ROUNDS; ++round)
        for (int form = 0; form < 3; ++form)
            best[form] = std::min(best[form], kernels<T>().winograd_seconds(plans[form].weights(), POSITIONS, FILTERS,
                                                                            CHANNELS) / products[form]);
    return best;
}

template <class T>
void bind(py::module_& m, const char* plan_name, const char* dtype) {
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
        WithoutGil others_run;
        return Plan::dense(shape.tile, shape.filters, shape.channels, weights, shape.channels, 1);
    }, exact("u"));
    m.def("winograd_sparse", [](Indptr indptr, Indices indices, Array<T> values,
                                std::tuple<index, index, index> shape) {
        return sparse_plan<T, 1>("sparse", indptr, indices, values, shape);
    }, exact("indptr"), exact("indices"), exact("values"),
       py::arg("shape"));
    m.def("winograd_blocks", [](Indptr indptr, Indices indices, Array<T> values,
                                std::tuple<index, index, index> shape) {
        return sparse_plan<T, WINOGRAD_ROWS>("blocks", indptr, indices, values, shape);
    }, exact("indptr"), exact("indices"), exact("values"),
       py::arg("shape"));
    m.def("winograd_conv", [](Array<T> x_array, const Plan& plan, Optional<T> bias, Array<T> out,
                              Sides padding, bool relu, Matrices matrices, Optional<T> residual, bool relu_of_out) {
        const Source<T> x(x_array);
        T* y = writable<T>(out, 4);
        require(!residual || same_shape(*residual, out), "residual and out must have the same shape");
        require(x.shape(1) == plan.channels && out.shape(0) == x.shape(0) && out.shape(1) == plan.filters,
                "x, plan and out do not match");
        WinogradProblem<T> p(plan.tile, x.shape(0), plan.channels, plan.filters, x.shape(2), x.shape(3),
                             out.shape(2), out.shape(3), padding, relu, matrices);
        p.x = x.image, p.weights = plan.weights(), p.bias = values(bias, plan.filters, "bias");
        p.y = image_of(y, plan.filters, out.shape(2), out.shape(3));
        if (residual)
            p.residual = image_of(contiguous(*residual, "residual"), plan.filters, out.shape(2), out.shape(3));
        p.relu_of_y = relu_of_out;
        WithoutGil others_run;
        kernels<T>().winograd_conv(p);
    }, exact("x"), py::arg("plan"), exact("bias"),
       exact("out"), py::arg("padding"), py::arg("relu"), py::arg("matrices"), exact("residual") = py::none(),
       py::arg("relu_of_out") = false);
    m.def("winograd_conv_grad_x", [](Array<T> grad_array, Array<T> x_array, Array<T> u, Array<T> grad_x,
                                     Sides padding, bool relu, Matrices matrices) {
        const Source<T> grad(grad_array), x(x_array);
        const WinogradShape shape(u);
        const T* weights = contiguous(u, "u");
        T* to = writable<T>(grad_x, 4);
        require(grad.shape(1) == shape.filters && x.shape(1) == shape.channels && grad.shape(0) == x.shape(0) &&
                    same_shape(x_array, grad_x),
                "grad, x, u and grad_x do not match");
        WinogradProblem<T> p(shape.tile, x.shape(0), shape.channels, shape.filters, x.shape(2), x.shape(3),
                             grad.shape(2), grad.shape(3), padding, relu, matrices);
        p.grad = grad.image, p.x = x.image;
        p.y = image_of(to, shape.channels, x.shape(2), x.shape(3));
        WithoutGil others_run;
        const auto transposed = Plan::dense(shape.tile, shape.channels, shape.filters, weights, 1, shape.channels);
        p.weights = transposed.weights();
        kernels<T>().winograd_grad_x(p);
    }, exact("grad"), exact("x"), exact("u"),
       exact("grad_x"), py::arg("padding"), py::arg("relu"), py::arg("matrices"));
    m.def("winograd_conv_grad_u", [](Array<T> grad_array, Array<T> x_array, Array<T> grad_u, Sides padding,
                                     bool relu, Matrices matrices) {
        const Source<T> grad(grad_array), x(x_array);
        const WinogradShape shape(grad_u);
        require(grad.shape(1) == shape.filters && x.shape(1) == shape.channels && grad.shape(0) == x.shape(0),
                "grad, x and grad_u do not match");
        WinogradProblem<T> p(shape.tile, x.shape(0), shape.channels, shape.filters, x.shape(2), x.shape(3),
                             grad.shape(2), grad.shape(3), padding, relu, matrices);
        p.grad = grad.image, p.x = x.image, p.grad_u = writable<T>(grad_u, 4);
        WithoutGil others_run;
        kernels<T>().winograd_grad_u(p);
    }, exact("grad"), exact("x"), exact("grad_u"),
       py::arg("padding"), py::arg("relu"), py::arg("matrices"));
}

}  // namespace

void bind_winograd(py::module_& m) {
    m.def("winograd_costs", [](const std::string& dtype) {
        require(dtype == "float32" || dtype == "float64", "dtype must be float32 or float64");
        WithoutGil others_run;
        return dtype == "float32" ? costs<float>() : costs<double>();
    }, py::arg("dtype"), "Measure the seconds per product with dense weights, sparse ones and blocks.");
    bind<float>(m, "WinogradPlanFloat32", "float32");
    bind<double>(m, "WinogradPlanFloat64", "float64");
}

}  // namespace mulfree
