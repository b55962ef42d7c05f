"""The CUDA kernels of shift against the formulas: emulated with all checks on, and on a GPU."""

import contextlib
import math
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, namespace, run, shift_problems
from test_convolution import assert_close

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.launch import cuda, emulator, limits, select
from mulfree_cupy.launch import shift as launchers

WAYS = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
ways = pytest.mark.parametrize("way", WAYS)
RUNGS = select.names("shift")
TILED = RUNGS[:2]
BACKWARDS = ["shift_conv_backward", "shift_adder_conv_backward"]


def bits(array):
    """The bytes of every element: NaN is compared too."""
    return np.ascontiguousarray(array).view(f"V{array.itemsize}")


def values(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@ways
@settings(max_examples=40)
@given(problem=shift_problems(), layout=st.sampled_from(LAYOUTS))
def test_the_table_kernel_is_the_formula(way, problem, layout):
    x, options = problem.x, dict(shifts=problem.shifts, stride=problem.stride)
    answer = run(way, mf.shift, x, **options)
    assert_array_equal(bits(answer), bits(spec.shift(x, **options)))
    grad = lay_out(problem.grad(x.shape[1]), layout)
    back = run(way, mf.shift_backward, grad, x_shape=x.shape, **options)
    assert_array_equal(bits(back), bits(spec.shift_backward(grad, x_shape=x.shape, **options)))


@st.composite
def aligned_problems(draw):
    """Planes of any size that are together a multiple of 16 bytes, and shifts beyond them too."""
    itemsize, channels = draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.integers(1, 5))
    plane = draw(st.tuples(st.integers(1, 12), st.integers(1, 40)))
    images = 16 // math.gcd(16, itemsize * channels * plane[0] * plane[1])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.integers(1, 256, (images, channels, *plane, itemsize), np.uint8)
    far = draw(st.sampled_from([1, 3, 50]))
    return x.view(f"V{itemsize}")[..., 0], rng.integers(-far, far + 1, (channels, 2))


AS_NUMBERS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}


@ways
@settings(max_examples=100)
@given(problem=aligned_problems())
def test_the_table_kernel_moves_every_element_size(way, problem):
    x, shifts = problem
    numbers = x.view(AS_NUMBERS[x.itemsize])
    answer = run(way, mf.shift, numbers, shifts=shifts, kernel="3_table")
    assert_array_equal(bits(answer), bits(spec.shift(x, shifts)))
    back = run(way, mf.shift_backward, numbers, shifts=shifts, x_shape=x.shape)
    assert_array_equal(bits(back), bits(spec.shift_backward(x, shifts, x.shape)))


@st.composite
def modulo_problems(draw, kernel):
    size, dilation = 3, 1
    if kernel != TILED[0]:
        size = draw(st.integers(1, 7))
        dilation = draw(st.integers(1, 7 // max(1, size // 2)))
    channels = draw(st.integers(size**2, size**2 + 12))
    plane = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    x = values((draw(st.integers(1, 2)), channels, *plane), seed=draw(st.integers(0, 99)))
    return x, mf.modulo_shifts(channels, size, dilation=dilation)


@ways
@pytest.mark.parametrize("kernel", TILED)
@settings(max_examples=15)
@given(data=st.data())
def test_the_tiled_kernels_are_the_formula(way, kernel, data):
    x, shifts = data.draw(modulo_problems(kernel))
    options = dict(shifts=shifts, kernel=kernel)
    answer = run(way, mf.shift, x, **options)
    assert_array_equal(answer, spec.shift(x, shifts))
    back = run(way, mf.shift_backward, x, x_shape=x.shape, **options)
    assert_array_equal(back, spec.shift_backward(x, shifts, x.shape))


@ways
@pytest.mark.parametrize("kernel", RUNGS)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "float32", "int64", "complex128"])
def test_every_bit_is_moved(way, kernel, dtype):
    size = np.dtype(dtype).itemsize
    x = np.random.default_rng(1).integers(0, 256, (2, 11, 5, 7, size), np.uint8)
    x, shifts = x.view(dtype)[..., 0], mf.modulo_shifts(11)
    answer = run(way, mf.shift, x, shifts=shifts, kernel=kernel)
    assert answer.dtype == x.dtype
    assert_array_equal(bits(answer), spec.shift(bits(x), shifts))


@ways
@pytest.mark.parametrize("kernel", ["3_table", "4_fused_conv"])
@pytest.mark.parametrize("name", ["shift_conv", "shift_adder_conv"])
@settings(max_examples=30)
@given(problem=shift_problems())
def test_the_convolutions_are_their_formulas(way, kernel, name, problem):
    x, w, shifts, options = problem.x, problem.w, problem.shifts, dict(stride=problem.stride)

    def convolve(x, w, bias):
        return getattr(mf, name)(x, w, shifts, bias, kernel=kernel, **options)

    expected = getattr(spec, name)(x, w, shifts, problem.bias, **options)
    assert_close(run(way, convolve, x, w, problem.bias), expected, x.dtype)


@ways
@pytest.mark.parametrize("name", BACKWARDS)
@settings(max_examples=40)
@given(problem=shift_problems(), layout=st.sampled_from(LAYOUTS))
def test_the_gradients_are_their_formulas(way, name, problem, layout):
    x, w, options = problem.x, problem.w, dict(shifts=problem.shifts, stride=problem.stride)
    grad = lay_out(problem.grad(len(w)), layout)
    answer = run(way, getattr(mf, name), grad, x, w, **options)
    for ours, theirs in zip(answer, getattr(spec, name)(grad, x, w, **options), strict=True):
        assert_close(ours, theirs, x.dtype)


def clipped(shifts, x):
    """A table as the launchers take it."""
    return np.clip(shifts, *(sign * np.array(x.shape[2:]) for sign in (-1, 1))).astype(np.int32)


def unwritten(shape, dtype="float32"):
    return np.full(shape, np.nan, dtype)


WIDE = {
    "whole tiles": ((2, 64, 8, 12), 64),
    "130 filters, vectors": ((2, 16, 8, 8), 130),
    "200 channels": ((1, 200, 5, 7), 3),
    "one filter": ((2, 9, 6, 6), 1),
}


@pytest.mark.parametrize("shape, filters", WIDE.values(), ids=WIDE.keys())
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_every_tile_of_the_fused_kernels(shape, filters, dtype, stride):
    """float16 is multiplied and summed in float32, and rounded once."""
    x, w = values(shape, dtype), values((filters, shape[1]), dtype, 1)
    bias, shifts = values(filters, dtype, 2), clipped(mf.modulo_shifts(shape[1]), x)
    expected = spec.shift_conv(x, w, shifts, bias, stride=stride)
    out, grad = unwritten(expected.shape, dtype), values(expected.shape, dtype, 3)
    grad_x, grad_w = unwritten(x.shape, dtype), unwritten(w.shape, dtype)
    with mf.emulated_cuda():
        launchers.shift_conv(emulator.device, x, w, shifts, bias, out, stride)
        launchers.shift_conv_backward(emulator.device, grad, x, w, shifts, grad_x, grad_w, stride)
    gradients = spec.shift_conv_backward(grad, x, w, shifts, stride=stride)
    for ours, theirs in zip((out, grad_x, grad_w), (expected, *gradients), strict=True):
        tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("launcher", [launchers.shift_conv, launchers.shift_adder_conv])
@pytest.mark.parametrize("kernel", ["3_table", "4_fused_conv"])
def test_no_bias_is_no_array(launcher, kernel):
    passed = []
    device = emulator.Device()
    device.launch = lambda path, entry, *_: passed.append(_[-1])
    x, w, shifts = values((2, 9, 5, 6)), values((4, 9)), mf.modulo_shifts(9)
    launcher(device, x, w, shifts, None, np.empty((2, 4, 5, 6), "f"), (1, 1), kernel)
    assert sum(argument is None for argument in passed[-1]) == 1


@pytest.mark.parametrize("way", WAYS)
def test_half_goes_the_separate_way_too(way):
    x, w = values((2, 9, 5, 6), "float16"), values((4, 9), "float16", 1)
    shifts = mf.modulo_shifts(9)
    answer = run(way, mf.shift_conv, x, w, shifts, kernel="3_table")
    assert answer.dtype == np.float16
    expected = spec.shift_conv(x, w, shifts)
    assert_allclose(answer, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_the_gradient_of_w_is_summed_in_parts():
    """Many pixels are cut into parts; the answer is the same every time."""
    x, w = values((3, 5, 30, 31)), values((4, 5), seed=1)
    shifts = clipped(np.arange(10).reshape(5, 2) - 5, x)
    grad, launches = values((3, 4, 30, 31), seed=2), []

    class Recorder(emulator.Device):
        def launch(self, path, entry, defines, grid, block, args):
            launches.append((entry, grid))
            emulator.device.launch(path, entry, defines, grid, block, args)

    answers = []
    for _ in range(2):
        grad_x, grad_w = unwritten(x.shape), unwritten(w.shape)
        launchers.shift_conv_backward(Recorder(), grad, x, w, shifts, grad_x, grad_w, (1, 1))
        answers.append(grad_w)
    assert launches[1:3] == [("shift_conv_grad_w", (1, 5)), ("add_parts", (1,))]
    assert_array_equal(*answers)
    assert_close(answers[0], spec.shift_conv_backward(grad, x, w, shifts)[1], "float32")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BACKWARDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_gradients_of_images_that_no_launch_can_take_at_once(way, name, dtype, monkeypatch):
    """The parts of all launches are added up by one kernel, and not by CuPy's."""
    if dtype == "float16" and name == "shift_adder_conv_backward":
        pytest.skip("float32 and float64 alone")
    x, w = values((5, 6, 9, 7), dtype), values((4, 6), dtype, seed=1)
    shifts, grad = clipped(np.arange(12).reshape(6, 2) - 6, x), values((5, 4, 9, 7), dtype, seed=2)
    monkeypatch.setattr(limits, "WORKSPACE", 2 * 2 * 2 * x[0].nbytes)
    monkeypatch.setattr(launchers, "_images_at_once", lambda *_: 2)
    monkeypatch.setattr(launchers, "_LEAST_PART", 64)
    answers = run(way, getattr(mf, name), grad, x, w, shifts)
    tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    for ours, theirs in zip(answers, getattr(spec, name)(grad, x, w, shifts), strict=True):
        assert_allclose(ours, theirs, rtol=0, atol=tolerance * abs(theirs).max())


@pytest.mark.parametrize("images, launched", [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_the_parts_of_an_adder_gradient_are_added_up_in_one_launch(images, launched, monkeypatch):
    x, w = values((images, 9, 9, 7)), values((4, 9), seed=1)
    grad, shifts = values((images, 4, 9, 7), seed=2), mf.modulo_shifts(9)
    monkeypatch.setattr(limits, "WORKSPACE", 2 * 2 * x[0].nbytes)
    with mf.emulated_cuda(trace=True) as report:
        mf.shift_adder_conv_backward(grad, x, w, shifts)
    counts = report.counts
    assert counts["adder_grad_w"].launches == launched
    assert ("add_parts" in counts) == (launched > 1)
    assert launched == 1 or counts["add_parts"].launches == 1


@pytest.mark.parametrize("where", ["x", "w", "grad"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_go_where_the_formulas_send_them(where, value):
    arrays = dict(x=values((2, 9, 4, 5)), w=values((3, 9), seed=1), grad=values((2, 3, 4, 5)))
    arrays[where].flat[7] = value
    x, w, grad = arrays.values()
    shifts = mf.modulo_shifts(9)
    with np.errstate(invalid="ignore"), mf.emulated_cuda():
        answers = mf.shift_conv(x, w, shifts), *mf.shift_conv_backward(grad, x, w, shifts)
        expected = (
            spec.shift_conv(x, w, shifts),
            *spec.shift_conv_backward(grad, x, w, shifts),
        )
    for ours, theirs in zip(answers, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# Threads launched and elements loaded per output, square planes: side, kernel_size, dilation.
WASTE = {
    (7, 3, 1): (5.22, 1.00), (7, 5, 1): (5.22, 1.00), (7, 7, 1): (5.22, 1.00),
    (7, 5, 2): (5.22, 1.00), (7, 7, 2): (20.9, 4.0),
    (14, 3, 1): (1.31, 1.00), (14, 5, 1): (5.22, 1.65), (14, 3, 2): (5.22, 1.65),
    (14, 7, 1): (5.22, 2.04), (14, 5, 2): (5.22, 2.47), (14, 7, 2): (20.9, 9.9),
    (16, 3, 1): (4.00, 1.27), (16, 5, 1): (4.00, 1.56), (16, 7, 1): (4.00, 1.89),
    (16, 5, 2): (4.00, 2.25), (16, 7, 2): (16, 9.0),
    (32, 3, 1): (2.25, 1.27), (32, 5, 1): (2.25, 1.56), (32, 7, 1): (4.00, 2.34),
    (32, 5, 2): (4.00, 3.06), (32, 7, 2): (16, 12.3),
    (56, 3, 1): (1.31, 1.23), (56, 5, 1): (2.04, 1.65), (56, 7, 1): (2.94, 2.36),
    (56, 5, 2): (4.00, 3.45), (56, 7, 2): (16, 13.8),
    (112, 3, 1): (1.31, 1.27), (112, 5, 1): (2.04, 1.75), (112, 7, 1): (2.94, 2.50),
    (112, 5, 2): (4.00, 3.72), (112, 7, 2): (16, 14.9),
}  # fmt: skip


@pytest.mark.parametrize(
    "side, size, dilation, most_blocks", [*((*key, None) for key in WASTE), (56, 3, 1, 128)]
)
def test_waste_of_the_tiles(side, size, dilation, most_blocks):
    """A thread writes one element of the tile, whether or not it has an output."""
    channels = size**2
    x = values((1, channels, side, side))
    shifts = clipped(mf.modulo_shifts(channels, size, dilation=dilation), x)
    kernel = TILED[(size, dilation) != (3, 1)]
    out = unwritten(x.shape)
    with mf.emulated_cuda(check=False, trace=True) as report:
        launchers.shift(emulator.device, x, shifts, out, (1, 1), kernel, most_blocks)
    (counts,) = report.counts.values()
    assert_array_equal(out, spec.shift(x, shifts))
    threads, loads = counts.shared_stores / x.size, counts.global_loads / x.size
    expected = WASTE[side, size, dilation]
    assert (threads, loads) == pytest.approx(expected, abs=0.051 if expected[0] > 9 else 0.0051)
    assert counts.global_stores == x.size


# Loads of the table kernel for a store of 16 bytes, one of them of the table: side, then dtype.
MOVED = ["uint8", "float16", "float32", "float64", "complex128"]
LOADS = {
    7: (5.44, 4.85, 3.78, 2.28, 1.82),
    16: (3.88, 4.19, 3.72, 2.52, 1.92),
    32: (4.26, 4.43, 3.86, 2.59, 1.96),
    56: (5.18, 4.53, 3.92, 2.62, 1.98),
}


@pytest.mark.parametrize("side", LOADS)
@pytest.mark.parametrize("dtype", MOVED)
def test_waste_of_the_table_kernel(side, dtype):
    """A thread stores 16 bytes, for any plane and element; without shared memory."""
    x = np.random.default_rng(0).integers(0, 2, (16, 18, side, side)).astype(dtype)
    shifts = mf.modulo_shifts(18)
    with mf.emulated_cuda(check=False, trace=True) as report:
        answer = mf.shift(x, shifts)
    ((name, counts),) = report.counts.items()
    assert_array_equal(answer, spec.shift(x, shifts))
    assert name == "shift_table" and counts.shared_stores == counts.barriers == 0
    assert counts.global_stores == x.nbytes // 16
    loads = counts.global_loads / counts.global_stores
    assert loads == pytest.approx(LOADS[side][MOVED.index(dtype)], abs=0.0051)


@pytest.mark.parametrize("side", [7, 16])
def test_the_fused_kernel_moves_no_more_than_the_convolution(side):
    """Its loads of x are those inside the image; nothing else is read or written for the shift."""
    x, w, shifts = values((1, 16, side, side)), values((16, 16), seed=1), mf.modulo_shifts(16)
    with mf.emulated_cuda(check=False, trace=True) as fused:
        mf.shift_conv(x, w, shifts)
    with mf.emulated_cuda(check=False, trace=True) as alone:
        mf.shift_conv(x, w, np.zeros_like(shifts))
    (fused,), (alone,) = fused.counts.values(), alone.counts.values()
    outside = sum(side**2 - (side - abs(dh)) * (side - abs(dw)) for dh, dw in shifts)
    assert fused.global_loads == alone.global_loads - outside
    assert fused.global_stores == alone.global_stores


def test_planes_in_several_launches_make_no_difference(monkeypatch):
    """As tensors of more than 2**31 elements take, whose indices have 32 bits a launch."""
    x, shifts = values((3, 11, 5, 7)), clipped(mf.modulo_shifts(11), values((1, 1, 5, 7)))
    shifts[0] = 4, -6
    launches = []

    class Recorder(emulator.Device):
        def launch(self, path, entry, defines, grid, block, args):
            numbers = [a for a in args if np.ndim(a) == 0]
            launches.append([*(numbers[0] if len(numbers) == 1 else numbers)][:2])
            emulator.device.launch(path, entry, defines, grid, block, args)

    monkeypatch.setattr(limits, "INT32", 11 + 8 * 35)
    for stride in ((1, 1), (2, 3)):
        expected = spec.shift(x, shifts, stride=stride)
        out, back = unwritten(expected.shape), unwritten(x.shape)
        launchers.shift(Recorder(), x, shifts, out, stride)
        assert_array_equal(out, expected)
        launchers.shift_backward(Recorder(), expected, shifts, back, stride)
        assert_array_equal(back, spec.shift_backward(expected, shifts, x.shape, stride=stride))
    # Elements written, and the channel that the first belongs to.
    assert launches[:5] == [[280, 0], [280, 8], [280, 5], [280, 2], [35, 10]]
    shifts, out, launches[:] = mf.modulo_shifts(11).astype(np.int32), unwritten(x.shape), []
    for kernel in TILED:
        launchers.shift(Recorder(), x, shifts, out, (1, 1), kernel)
        assert_array_equal(out, spec.shift(x, shifts))
    assert launches[:5] == [[8, 0], [8, 8], [8, 5], [8, 2], [1, 10]]


def test_images_in_several_launches_make_no_difference(monkeypatch):
    x, w, shifts = values((5, 9, 4, 6)), values((7, 9), seed=1), mf.modulo_shifts(9)
    grad = values((5, 7, 4, 6), seed=2)
    monkeypatch.setattr(limits, "INT32", 2 * 11 * 24)
    monkeypatch.setattr(limits, "WORKSPACE", 4 * 9 * 24 * 4)
    with mf.emulated_cuda():
        for name in ("shift_conv", "shift_adder_conv"):
            for kernel in select.names(name):
                answer = getattr(mf, name)(x, w, shifts, kernel=kernel)
                assert_close(answer, getattr(spec, name)(x, w, shifts), "float32")
        for name in BACKWARDS:
            answer = getattr(mf, name)(grad, x, w, shifts)
            for ours, theirs in zip(answer, getattr(spec, name)(grad, x, w, shifts), strict=True):
                assert_close(ours, theirs, "float32")


@given(st.integers(1, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_division_by_multiplication_is_exact(d, numerators):
    by = int(launchers._divisor(d))
    edges = [0, 1, d - 1, d, 2**31 - 1, 2**31 - 1 - (2**31 - 1) % d]
    for n in [*numerators, *edges, *((2**31 - 1) // d * d - 1 + i for i in (0, 1))]:
        if 0 <= n < 2**31:
            assert (n * (by & 0xFFFFFFFF) % 2**64) >> (by >> 32) == n // d


def test_a_plane_at_the_end_of_the_indices():
    """Offsets up to the last 32-bit index, of a plane with little else: none wraps."""
    height, width = 3, (2**31 - 2**17) // 3
    recorded = []

    class Recorder(emulator.Device):
        def launch(self, path, entry, defines, grid, block, args):
            recorded.append((grid, block, args[-1]))

    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1, 1, height, width), (0,) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launchers, "_planes", lambda function, x, y: [(0, x[0], y[0])])
        launchers.shift(Recorder(), x, np.array([[2, -7]], np.int32), x, (1, 1))
    ((blocks,), (threads,), planes) = recorded[0]
    assert planes["total"] == height * width and blocks * threads * 16 < 2**31
    assert [*planes["size"]] == [height, width]


class OnGpu(np.ndarray):
    """What the launchers take for a CuPy array."""

    device = contextlib.nullcontext()


class Counting(cuda.Device):
    """The CUDA device on NumPy arrays, its launches emulated, that counts what waits."""

    def __init__(self):
        self.current, self.uploads, self.synchronisations = 0, 0, 0
        stream = types.SimpleNamespace(synchronize=self.synchronize)
        self.cuda = types.SimpleNamespace(
            Device=lambda: types.SimpleNamespace(id=self.current),
            get_current_stream=lambda: stream,
        )

    @property
    def xp(self):
        return self

    def __getattr__(self, name):
        return lambda *args, **options: getattr(np, name)(*args, **options).view(OnGpu)

    def asarray(self, array):
        self.uploads += 1
        return np.array(array)

    def synchronize(self):
        self.synchronisations += 1

    def launch(self, path, entry, defines, grid, block, args):
        emulator.device.launch(path, entry, defines, grid, block, args)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(cuda, "_constants", {})
    return Counting()


def on_gpu(shape, seed=0):
    return values(shape, seed=seed).view(OnGpu)


def test_a_table_is_uploaded_once(counting):
    x, w, grad = on_gpu((2, 9, 4, 5)), on_gpu((3, 9), 1), on_gpu((2, 3, 4, 5), 2)
    shifts, out, back = mf.modulo_shifts(9).astype(np.int32), np.empty_like(x), np.empty_like(x)
    y, grad_w = np.empty_like(grad), np.empty_like(w)
    for _ in range(2):
        for kernel in RUNGS:
            launchers.shift(counting, x, shifts.copy(), out, (1, 1), kernel)
            launchers.shift_backward(counting, out, shifts, back, (1, 1), kernel)
        launchers.shift_conv(counting, x, w, shifts, None, y, (1, 1))
        launchers.shift_adder_conv(counting, x, w, shifts, None, y, (1, 1))
        for backward in BACKWARDS:
            getattr(launchers, backward)(counting, grad, x, w, shifts, back, grad_w, (1, 1))
        # The table and its opposite, for the adjoint.
        assert counting.uploads == counting.synchronisations == 2


def test_a_table_that_its_owner_changes_is_another(counting):
    x, shifts = on_gpu((1, 4, 3, 5)), np.zeros((4, 2), np.int32)
    out = np.empty_like(x)
    for step in range(3):
        shifts[1] = step, -1
        launchers.shift(counting, x, shifts, out, (1, 1))
        assert_array_equal(out, spec.shift(x, shifts))
        assert counting.uploads == 1 + step
    counting.current = 1
    launchers.shift(counting, x, shifts, out, (1, 1))
    assert counting.uploads == 4


def test_a_full_cache_still_gives_the_right_table(counting, monkeypatch):
    monkeypatch.setattr(cuda, "_MOST_CONSTANTS", 1)
    first, second = np.zeros((4, 2), np.int32), np.ones((4, 2), np.int32)
    kept = counting.constant(first)
    for _ in range(2):
        assert_array_equal(counting.constant(second), second)
        assert counting.constant(first) is kept
    assert counting.uploads == 3 and counting.synchronisations == 1


def test_threads_share_a_table(counting):
    shifts, found, together = np.ones((4, 2), np.int32), [], threading.Barrier(8)

    def ask():
        together.wait()
        found.append(counting.constant(shifts))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(array) for array in found}) == 1 == counting.uploads


@pytest.mark.gpu
def test_a_second_call_can_be_captured():
    """Nothing is copied from the host, and nothing waits."""
    xp = namespace("gpu")
    x, w = xp.asarray(values((2, 9, 4, 8))), xp.asarray(values((3, 9), seed=1))
    bias, shifts = xp.zeros(3, "float32"), mf.modulo_shifts(9)
    expected = mf.shift(x, shifts), mf.shift_conv(x, w, shifts, bias)
    answers = [xp.empty_like(array) for array in expected]
    xp.cuda.Device().synchronize()
    with xp.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        mf.shift(x, shifts, out=answers[0])
        mf.shift_conv(x, w, shifts, bias, out=answers[1])
        graph = stream.end_capture()
        graph.launch()
        stream.synchronize()
    for ours, theirs in zip(answers, expected, strict=True):
        assert_array_equal(ours.get(), theirs.get())


@ways
def test_a_table_may_lie_where_the_image_does(way):
    xp = namespace(way)
    x, shifts = values((2, 9, 4, 5)), mf.modulo_shifts(9)
    with contextlib.nullcontext() if way == "gpu" else mf.emulated_cuda():
        answer = mf.shift(xp.asarray(x), xp.asarray(shifts))
    assert_array_equal(answer if way != "gpu" else answer.get(), spec.shift(x, shifts))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x, t, out: launchers.shift(emulator.device, x, t, out, (1, 1)),
            r"shift: C \+ H\*W must be at most 20, got 21",
        ),
        (
            lambda x, t, out: launchers.shift_conv(
                emulator.device, x, np.ones((2, 9), "f4"), t, None, out, (1, 1)
            ),
            r"shift_conv: \(C \+ 2\)\*H\*W of x, of shape \(1, 9, 3, 4\), must be at most 20",
        ),
    ],
)
def test_what_32_bits_cannot_index_is_an_error(monkeypatch, call, message):
    monkeypatch.setattr(limits, "INT32", 20)
    x = values((1, 9, 3, 4))
    with pytest.raises(ValueError, match=message):
        call(x, mf.modulo_shifts(9).astype(np.int32), unwritten(x.shape))


@pytest.mark.parametrize(
    "kernel, shifts, stride, message",
    [
        (
            "1_tiled_modulo", mf.modulo_shifts(25, 5), 1,
            r"shift: kernel '1_tiled_modulo' takes only stride 1 and the modulo shifts of 3x3 with "
            r"dilation 1; 2_tiled_generic, 3_table can",
        ),
        (
            "2_tiled_generic", mf.group_shifts(18), 1,
            r"modulo shifts with dilation \* \(kernel_size // 2\) at most 7; 3_table can",
        ),
        ("2_tiled_generic", mf.modulo_shifts(9, dilation=8), 1, "3_table can"),
        ("1_tiled_modulo", mf.modulo_shifts(9), 2, "takes only stride 1 .*; 3_table can"),
    ],
)  # fmt: skip
def test_a_tiled_kernel_says_which_can(kernel, shifts, stride, message):
    x = values((1, len(shifts), 20, 20))
    with mf.emulated_cuda(), pytest.raises(ValueError, match=message):
        mf.shift(x, shifts, stride=stride, kernel=kernel)
    grad = mf.shift(x, shifts, stride=stride)
    with mf.emulated_cuda(), pytest.raises(ValueError, match=r"shift_backward: .* 3_table can"):
        mf.shift_backward(grad, shifts, x.shape, stride=stride, kernel=kernel)


def test_an_unknown_kernel_is_an_error():
    x, shifts = values((1, 9, 4, 4)), mf.modulo_shifts(9).astype(np.int32)
    message = "shift: no kernel named 'fast'; there are 1_tiled_modulo, 2_tiled_generic, 3_table"
    with pytest.raises(ValueError, match=message):
        launchers.shift(emulator.device, x, shifts, x, (1, 1), "fast")


@ways
def test_an_answer_that_is_not_aligned_takes_the_narrow_stores(way):
    x, shifts = values((1, 9, 4, 4)), mf.modulo_shifts(9)
    out = unwritten(1 + x.size)[1:].reshape(x.shape)
    answer = run(way, lambda x, out: mf.shift(x, shifts, out=out), x, out)
    assert_array_equal(answer, spec.shift(x, shifts))
