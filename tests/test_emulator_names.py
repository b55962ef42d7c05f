"""Names that a GPU leaves to the text, and texts with more in them than the kernel that runs."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import CompilationError, RawKernel, emulated_cuda

F32, I32 = np.float32, np.int32

NAMES = r"""
struct Config { dim3 blockDim; int threadIdx; int printf; };
typedef unsigned char uchar;
typedef unsigned long long longlong;
__device__ int index, time[3], remove, signal, rindex, write;
__device__ int read(int x) { return x; }
namespace my { struct Grid { uint3 gridDim; }; __device__ int blockIdx(int x) { return x + 1; } }
__device__ unsigned take(const dim3& d, const uint3* at = nullptr) { return d.x; }
template <class T> __device__ T larger(const T& a, const T& b) { return a < b ? b : a; }
extern "C" __global__ void names(int* x, int dim3, Config c) {
    int i = threadIdx.x, million = 1'000'000, bits = 0b1'0000;
    const char* text = R"(a 'raw' "string" of __shared__ int asm[3]; { ;)";
    char quote = '\'', tick = '"';
    __shared__ int s[1'00];
    s[i] = c.blockDim.y + c.threadIdx + c.printf;
    my::Grid grid = {{7, 8, 9}};
    const int first = my::blockIdx(3);
    auto columns = blockDim.x;
    unsigned int y = larger(threadIdx.y, 3u) + take(blockDim);
    index = dim3 + read(first);
    __syncthreads();
    {
        int blockDim = 5, threadIdx = 6;
        x[i] = s[i] + grid.gridDim.x + blockDim + threadIdx + columns + y;
        x[i] += (million == 1000000) + bits;
    }
    x[i] += quote == '\'' && tick == '"' && text[0] == 'a' && text[2] == '\'';
}"""


@pytest.mark.parametrize("check", [True, False])
def test_names_that_are_free_on_a_gpu(check):
    config = np.dtype([("blockDim", I32, 3), ("threadIdx", I32), ("printf", I32)])
    x = np.zeros(4, I32)
    with emulated_cuda(check=check):
        values = np.array(((0, 10, 0), 20, 30), config)[()]
        RawKernel(NAMES, "names")((1,), (4,), (x, I32(3), values))
    np.testing.assert_array_equal(x, 60 + 7 + 5 + 6 + 4 + (3 + 4) + 1 + 16 + 1)


FREE = """
__constant__ float gamma = 0.5f;
__device__ int random[2] = {3, 4};
template <class T> __device__ T select(bool which, T a, T b) { return which ? a : b; }
__device__ int div(int a, int b) { return (a + b - 1) / b; }
__device__ float abort(float x) { return -x; }
__device__ int rand() { return random[1]; }
extern "C" __global__ void f(float* x) {
    x[0] = select(x[0] > 0, gamma, 1.0f) + div(7, 2) + abort(1.0f) + rand();
}"""
HOST = """
HEADER
extern "C" __global__ void f(float* x) { x[0] = 5; }
int main(int count, char** words) {
    if (count > 1) srand(atoi(words[1]));
    float* x = (float*)calloc(rand() % 9, sizeof(float));
    if (!x) exit(EXIT_FAILURE);
    f<<<1, 1>>>(x);
    return abs(div(7, 2).quot);
}"""


def test_the_c_library_is_there_for_a_program_and_not_for_a_kernel_alone():
    x = np.ones(1, F32)
    RawKernel(FREE, "f")((1,), (1,), (x,))
    assert x[0] == 0.5 + 4 - 1 + 4
    for header in ("", "#include <cuda_runtime.h>", "#include <stdlib.h>", "#include <algorithm>"):
        RawKernel(HOST.replace("HEADER", header), "f")((1,), (1,), (x,))
        assert x[0] == 5


def test_a_variable_called_like_a_function_that_the_emulator_calls():
    code = 'NAMESPACE __device__ int mmap; } extern "C" __global__ void f(int* x) { x[0] = V; }'
    with pytest.raises(NotImplementedError, match="the variable mmap: rename it"):
        kernel = code.replace("NAMESPACE", 'extern "C" {').replace("V", "mmap")
        RawKernel(kernel, "f")((1,), (1,), (np.zeros(1, I32),))
    ours = code.replace("NAMESPACE", "namespace our {").replace("V", "our::mmap + 1")
    x = np.zeros(1, I32)
    RawKernel(ours, "f")((1,), (1,), (x,))
    assert x[0] == 1


def test_the_built_in_variables_in_three_dimensions():
    code = """
extern "C" __global__ void where(int* x) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    __syncthreads();
    int n = blockDim.x * blockDim.y * blockDim.z;
    int again = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    x[block * n + again] = block * n + thread;
}"""
    x = np.zeros(2 * 3 * 4 * 5 * 6 * 7, I32)
    RawKernel(code, "where")((2, 3, 4), (5, 6, 7), (x,))
    np.testing.assert_array_equal(x, np.arange(x.size))


UNUSED = """
#include <mma.h>
#include <cuda_fp16.h>
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
template <class T> __device__ T by_ptx(T x) {
    asm volatile("add.s32 %0, %0, 1;" : "+r"(x));                   // 7
    return x;
}
template <int N> __device__ void by_fragments(const half* a, float* c) {
    using namespace nvcuda::wmma;
    experimental::bmma_sync(a, a, a, c);                            // 12
}





template <class T> __device__ void over_the_grid(T* x) {
    cg::grid_group grid = cg::this_grid();
    grid.sync();                                                    // 21
    x[grid.thread_rank()] = grid.size();
}
template <class T> __device__ T over_the_cluster(T x) {
    cg::cluster_group cluster = cg::this_cluster();                 // 25
    return x + cluster.thread_rank();
}
__device__ void plain(float* x) { asm("bar.sync 1;"); }             // 28
__global__ void child(float* x) { x[0] = 1; }
extern "C" __global__ void parent(float* x) { child<<<1, 1>>>(x); } // 30
extern "C" __global__ void texture(float* x, cudaTextureObject_t t) {
    x[0] = tex2D<float>(t, 0.0f, 1.0f);                             // 32
}
extern "C" __global__ void simple(float* x, int n) {
    x[threadIdx.x] = n;
#ifdef CALL
    CALL;
#endif
}"""


def test_what_is_not_used_is_not_refused():
    for check in (True, False):
        x = np.zeros(4, F32)
        with emulated_cuda(check=check):
            RawKernel(UNUSED, "simple")((1,), (4,), (x, I32(3)))
        np.testing.assert_array_equal(x, 3)


@pytest.mark.parametrize(
    ("call", "line", "named"),
    [
        ("x[0] = by_ptx(n)", 7, "inline PTX"),
        ("by_fragments<16>(nullptr, x)", 12, "tensor-core"),
        ("x[0] = over_the_cluster(x[1])", 25, "thread block clusters"),
        ("plain(x)", 28, "inline PTX"),
        ("if (n > 100) plain(x)", 28, "inline PTX"),
    ],
)
def test_what_is_used_is_refused_on_its_line(call, line, named):
    kernel = RawKernel(UNUSED, "simple", (f"-DCALL={call}",))
    with pytest.raises(NotImplementedError, match=rf"simple:{line}: {named}.*#ifdef MULFREE_EMUL"):
        kernel((1,), (4,), (np.zeros(4, F32), I32(3)))


@pytest.mark.parametrize(("name", "line"), [("parent", 30), ("texture", 32)])
def test_other_kernels_of_the_text_are_refused_when_they_run(name, line):
    with pytest.raises(NotImplementedError, match=f"{name}:{line}: "):
        RawKernel(UNUSED, name)((1,), (4,), (np.zeros(4, F32), None)[: 1 + (name != "parent")])


def test_a_missing_header_is_named():
    code = '#include <cub/device/device_scan.cuh>\nextern "C" __global__ void f() {}'
    with pytest.raises(CompilationError, match=r"f:1: .*no header cub/device/device_scan\.cuh.*-I"):
        RawKernel(code, "f")((1,), (1,), ())


def test_macros_of_any_name_from_the_options():
    code = """
#include <cuda_fp16.h>
extern "C" __global__ void f(T* x) { x[threadIdx.x] = max(N, (int)threadIdx.x) + op(H) + UNSET; }
"""
    x = np.zeros(4, F32)
    options = "-DT=float", "-DN=2", "-DH", "-Dop(a)=(a + 1)", "-DUNSET=x", "-UUNSET", "-DUNSET=10"
    RawKernel(code, "f", options)((1,), (4,), (x,))
    assert x.tolist() == [14, 14, 14, 15]


@pytest.mark.parametrize("defined", ["before", "by options"])
def test_macros_of_one_letter_leave_headers_alone(defined):
    headers = (
        "cub/cub.cuh", "cuComplex.h", "thrust/complex.h", "cupy/complex.cuh", "mma.h",
        "curand_kernel.h", "cuda_bf16.h", "cuda/functional", "cooperative_groups.h",
    )  # fmt: skip
    macros = {
        "T": "float",
        "N": "32",
        "M": "nothing",
        "C": "D",
        "X": "(",
        "S": "",
        "A": "1",
        "Z": "2",
    }
    lines = [f"#define {name} {value}" for name, value in macros.items()] * (defined == "before")
    lines += [f"#include <{header}>" for header in headers]
    options = [f"-D{name}={value}" for name, value in macros.items()] * (defined != "before")
    code = (
        "\n".join(lines)
        + """
extern "C" __global__ void f(T* x) {
    __shared__ cub::BlockReduce<T, N>::TempStorage temp;
    T sum = cub::BlockReduce<T, N>(temp).Sum(x[threadIdx.x] + A + Z);
    if (threadIdx.x == 0) x[0] = sum;
}"""
    )
    x = np.ones(32, F32)
    RawKernel(code, "f", tuple(options))((1,), (32,), (x,))
    assert x[0] == 4 * 32


def test_one_of_several_kernels_of_a_name():
    code = """
namespace ours {
__global__ void fill(int* x) { x[threadIdx.x] = 1; }
__global__ void fill(float* x, float v) { x[threadIdx.x] = v; }
}"""
    x, y = np.zeros(4, I32), np.zeros(4, F32)
    RawKernel(code, "static_cast<void (*)(int*)>(ours::fill)")((1,), (4,), (x,))
    RawKernel(code, "static_cast<void (*)(float*, float)>(&ours::fill)")((1,), (4,), (y, F32(2)))
    assert x.tolist() == [1] * 4 and y.tolist() == [2] * 4
    with pytest.raises(ValueError, match="no __global__ function named 'pour'"):
        RawKernel(code, "static_cast<void (*)(int*)>(pour)")((1,), (4,), (x,))
