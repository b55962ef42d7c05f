"""RawModule: kernels that share variables, which the host fills and reads."""

import numpy as np
import pytest

from mulfree_cupy import emulator

F32, I32 = np.float32, np.int32
CODE = """
#ifndef START
#define START 5
#endif
__constant__ float weights[4];
static __constant__ int hidden[2];
__constant__ int given[3] = {1, 2, 3};
__constant__ const int fixed[2] = {7, 8};
__device__ int counter = START, unused;
__device__ double table[2][3];
__device__ int* pointer = &counter;
namespace ours { __device__ short steps[2]; static __constant__ short stride; }
extern "C" __global__ void scale(const float* x, float* y) {
    y[threadIdx.x] = weights[threadIdx.x] * x[threadIdx.x] + hidden[1];
}
extern "C" __global__ void count(int by) { atomicAdd(pointer, by); }
extern "C" __global__ void write_constant() { weights[0] = 1; }
extern "C" __global__ void overrun(int i) { table[0][0] = table[0][i]; }
template <class T> __global__ void read(T* out) {
    out[0] = counter; out[1] = given[0]; out[2] = fixed[1]; out[3] = table[1][2];
    out[4] = ours::steps[1] + ours::stride; out[5] = hidden[0];
}"""


def module(*options):
    return emulator.RawModule(code=CODE, options=options, name_expressions=["read<float>"])


def view(module, name, shape, dtype):
    return np.ndarray(shape, dtype, module.get_global(name))


def read(module, dtype="float"):
    out = np.zeros(6, F32 if dtype == "float" else I32)
    module.get_function(f"read<{dtype}>")((1,), (1,), (out,))
    return out.tolist()


@pytest.mark.parametrize("check", [True, False])
def test_constant_memory_filled_from_the_host(check):
    m, x, y = module(), np.arange(4, dtype=F32), np.zeros(4, F32)
    weights = view(m, "weights", 4, F32)
    np.testing.assert_array_equal(weights, 0)
    with emulator.emulated_cuda(check=check):
        for value in (2, 3):  # between two launches too
            weights[:] = value
            view(m, "hidden", 2, I32)[1] = 10
            m.get_function("scale")((1,), (4,), (x, y))
            np.testing.assert_array_equal(y, value * x + 10)


def test_what_the_text_gives_and_the_kernels_leave():
    m = module()
    assert read(m) == [5, 1, 8, 0, 0, 0]
    view(m, "given", 3, I32)[0] = 11
    view(m, "table", (2, 3), np.float64)[1, 2] = 0.5
    view(m, "ours::steps", 2, np.int16)[1] = 6
    view(m, "ours::stride", 1, np.int16)[0] = 1
    view(m, "hidden", 2, I32)[0] = 4
    m.get_function("count")((1,), (8,), (2,))
    assert read(m) == [21, 11, 8, 0.5, 7, 4]
    with emulator.emulated_cuda(check=False):  # another library, the same module
        m.get_function("count")((1,), (8,), (I32(1),))
    assert read(m, "int") == [29, 11, 8, 0, 7, 4]
    assert view(m, "counter", 1, I32)[0] == 29 and m.get_global("counter").nbytes == 4


def test_modules_of_one_text_are_apart():
    first, second, third = module(), module(), module("-DSTART=9")
    first.get_function("count")((1,), (1,), (I32(1),))
    assert [read(m)[0] for m in (first, second, third)] == [6, 5, 9]
    assert first.get_function("count") is first.get_function("count")


def test_kernels_of_a_module_are_checked():
    m = module()
    for name, kind, args in (
        ("write_constant", "read_only", ()),
        ("overrun", "out_of_row", (6,)),
    ):
        with pytest.raises(emulator.EmulationFault) as fault:
            m.get_function(name)((1,), (1,), args)
        assert fault.value.finding.kind == kind


@pytest.mark.parametrize("name", ["nothing", "fixed", "pointer", "steps", "their::steps", ""])
def test_no_such_variable(name):
    with pytest.raises(
        ValueError, match=f"no variable named '{name}'.*counter, given, table, unused, weights"
    ):
        module().get_global(name)


def test_errors():
    with pytest.raises(TypeError, match="RawModule: code must be a string, got bytes"):
        emulator.RawModule(code=b"")
    with pytest.raises(TypeError, match="RawModule: options must be a tuple of strings.*'-DN'"):
        emulator.RawModule(code="", options="-DN")
    with pytest.raises(TypeError, match="RawKernel: name must be a string, got NoneType"):
        emulator.RawKernel("", None)
    with pytest.raises(ValueError, match="no __global__ function named 'sum'"):
        module().get_function("sum")((1,), (1,), ())
