// The Python module mulfree_cupy._cpu: the choice of instruction set, and the operations.
#include <cstdlib>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "../engine/threads.hpp"
#include "arrays.hpp"

namespace mulfree {

const Kernels* chosen = nullptr;
#if defined(__x86_64__)
const double hidden_one = 1;
#endif

namespace {

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
        __builtin_cpu_supports("avx512vnni")) {
        static Kernels all = avx512_kernels;
        all.popcount = __builtin_cpu_supports("avx512vpopcntdq") ? avx512_popcount_kernels : avx2_kernels.popcount;
        if (__builtin_cpu_is("amd")) {
            all.f32.adder_conv = avx512_amd_kernels.adder_f32, all.f64.adder_conv = avx512_amd_kernels.adder_f64;
            all.peak = avx512_amd_kernels.peak, all.distances = &avx512_amd_kernels.distances;
        }
        found.push_back(&all);
    }
#endif
    return found;
}

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

double peak(const std::string& operation, double seconds) {
    const std::pair<const char*, int> names[] = {{"fma", PEAK_FMA},
                                                 {"max_add", PEAK_MAX_ADD},
                                                 {"sub_abs_add", PEAK_SUB_ABS_ADD},
                                                 {"u8_max_dot", PEAK_U8_MAX_DOT}};
    if (operation == "popcount" || operation == "popcount_2_bits") {
        WithoutGil others_run;
        return chosen->popcount.peak(operation == "popcount" ? 1 : 2, seconds);
    }
    for (const auto& [name, bytes] : {std::pair("l1_u8", 1), std::pair("l1_f32", 4), std::pair("l1_f64", 8)})
        if (operation == name) {
            WithoutGil others_run;
            return chosen->distances->peak(bytes, seconds);
        }
    for (const auto& [name, number] : names)
        if (operation == name) {
            WithoutGil others_run;
            return chosen->peak(number, seconds);
        }
    throw std::invalid_argument("operation must be fma, max_add, sub_abs_add, u8_max_dot, popcount, popcount_2_bits, l1_u8, l1_f32 or l1_f64, got " +
                                operation);
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
    m.def("get_num_threads", &max_threads, "The maximum number of threads per call.");
    m.def("set_num_threads", &set_max_threads, py::arg("n"), "Set the maximum number of threads per call.");
    m.attr("compiler") = __VERSION__;
    m.def("peak", &peak, py::arg("operation"), py::arg("seconds") = 0.2,
          "Terms per second of an inner operation on registers, on all threads.");

    bind_convolution(m);
    bind_columns(m);
    bind_shift(m);
    bind_winograd(m);
    bind_batch_norm(m);
    bind_pool(m);
    bind_distances(m);
}
