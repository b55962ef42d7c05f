"""Every CUDA launcher against the formulas: emulated with all checks on, and on a GPU."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import images_of, on_gpu
from test_adder import assert_within_the_bound_of_halves

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy import launch as launch_room
from mulfree_cupy import ops
from mulfree_cupy.launch import adder, convolution, emulator, implicit, limits, select

FLOAT_KERNELS = select.names("adder_conv")[:5]
CONV_RUNGS = select.names("conv")[:2]
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}

GEOMETRIES = {
    "27 taps": images_of(2, 3, 7, 9, 5, (3, 3), padding=(1, 1)),
    "147 taps, stride 2": images_of(1, 3, 15, 13, 16, (7, 7), (2, 2), (3, 3)),
    "stride (2, 1), wide padding, dilation": images_of(
        1, 4, 9, 6, 20, (3, 2), (2, 1), (3, 2), (1, 2)
    ),
    "depthwise, stride 2": images_of(3, 4, 5, 5, 4, (3, 3), (2, 2), (1, 1), groups=4),
    "groups, stride above kernel": images_of(
        2, 6, 8, 7, 9, (2, 3), (3, 4), (2, 0), (2, 1), groups=3
    ),
    "1x1": images_of(2, 5, 4, 4, 3, (1, 1)),
    "1x1, stride 2": images_of(3, 8, 6, 6, 4, (1, 1), (2, 2)),
    "one pixel, 70 filters": images_of(1, 3, 1, 1, 70, (1, 1)),
    "vectors everywhere": images_of(3, 8, 4, 8, 34, (3, 3), padding=(1, 1)),
    "a window larger than the bits of a pixel": images_of(
        1, 2, 18, 6, 3, (17, 2), (1, 2), (1, 1), (1, 2)
    ),
    "uneven padding": images_of(2, 3, 7, 9, 20, (3, 2), (2, 1), ((0, 3), (2, 1)), (1, 2)),
    "a wide window": images_of(1, 2, 3, 20, 20, (2, 16), padding=(1, 3)),
    "a whole tile of 128 filters": images_of(1, 4, 5, 5, 130, (2, 2), padding=(1, 1)),
}
geometries = pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES.keys())
floats = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Emulated:
    device = emulator.device

    def __call__(self, launcher, *args):
        with mf.emulated_cuda(check=True):
            launcher(self.device, *args)


class Gpu:
    """Takes NumPy arrays to the GPU and the answers back into them."""

    def __init__(self):
        cupy = pytest.importorskip("cupy")
        if not cupy.is_available():
            pytest.skip("no GPU")
        from mulfree_cupy.launch.cuda import device

        self.device = device

    def __call__(self, launcher, *args):
        moved = [on_gpu(a) if isinstance(a, np.ndarray) else a for a in args]
        launcher(self.device, *moved)
        for array, answer in zip(args, moved, strict=True):
            if isinstance(array, np.ndarray):
                array[...] = answer.get()


@pytest.fixture(params=[Emulated, pytest.param(Gpu, marks=pytest.mark.gpu)])
def run(request):
    return request.param()


def options(g):
    return dict(stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups)


def without_groups(g):
    return {name: value for name, value in options(g).items() if name != "groups"}


def values(shape, dtype, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return (rng.standard_normal(shape) + offset).astype(dtype)


def unwritten(shape, dtype):
    """What no kernel would write."""
    return np.full(shape, 77 if np.issubdtype(dtype, np.integer) else np.nan, dtype)


def assert_close(answer, expected, scale=None):
    """Within the dtype's tolerance of the largest entry, or of `scale`."""
    scale = np.abs(expected).max() if scale is None else scale
    assert_allclose(answer, expected, rtol=0, atol=TOLERANCE[answer.dtype.name] * scale)


@geometries
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", "complex128"])
def test_im2col(run, g, dtype):
    x = values(g.x_shape, "float32").astype(dtype)
    cols = unwritten(g.cols_shape, dtype)
    run(convolution.im2col, x, cols, g)
    expected = spec.im2col(x.real.astype("float64"), g.kernel, **without_groups(g))
    assert_array_equal(cols, expected.astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "complex128"])
@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("size", [(37, 37), (40, 37), (1501, 1), (1, 1500), (2, 2), (7, 3)])
def test_im2col_stores_four_elements_at_once_where_it_can(size, misaligned, dtype):
    g = images_of(2, 3, *size, 1, (3, 2), (1, 1), (1, 1), (1, 2))
    x = values(g.x_shape, "float32").astype(dtype)
    memory = unwritten(1 + math.prod(g.cols_shape), dtype)
    cols = memory[misaligned:][: math.prod(g.cols_shape)].reshape(g.cols_shape)
    with mf.emulated_cuda(check=True, trace=True) as report:
        convolution.im2col(emulator.device, x, cols, g)
    expected = spec.im2col(x.real.astype("float64"), g.kernel, **without_groups(g))
    assert_array_equal(cols, expected.astype(dtype))
    inside = spec.im2col(np.ones(g.x_shape), g.kernel, **without_groups(g)).sum()
    (counts,) = report.counts.values()
    each = 4 if cols.shape[2] % 4 == 0 and not misaligned and cols.itemsize <= 4 else 1
    assert counts.global_loads == inside
    assert counts.global_stores * each == cols.size


@geometries
@floats
def test_col2im(run, g, dtype):
    cols, x = values(g.cols_shape, dtype), unwritten(g.x_shape, dtype)
    run(convolution.col2im, cols, x, g)
    assert_close(x, spec.col2im(cols, g.x_shape, g.kernel, **without_groups(g)))


@geometries
@floats
def test_conv_and_its_gradients(run, g, dtype):
    x, w, bias = (values(s, dtype, i) for i, s in enumerate((g.x_shape, g.w_shape, g.filters)))
    for kernel in CONV_RUNGS:
        out = unwritten(g.out_shape, dtype)
        run(convolution.conv, x, w, bias, out, g, kernel)
        assert_close(out, spec.conv(x, w, bias, **options(g)))

    grad = values(g.out_shape, dtype, 3)
    grad_x, grad_w = unwritten(g.x_shape, dtype), unwritten(g.w_shape, dtype)
    run(convolution.conv_backward, grad, x, w, grad_x, grad_w, g)
    expected_x, expected_w = spec.conv_backward(grad, x, w, **options(g))
    assert_close(grad_x, expected_x)
    assert_close(grad_w, expected_w)


@geometries
@pytest.mark.parametrize("kernel", FLOAT_KERNELS)
@floats
def test_adder_conv(run, g, kernel, dtype):
    x, w, bias = (values(s, dtype, i) for i, s in enumerate((g.x_shape, g.w_shape, g.filters)))
    out = unwritten(g.out_shape, dtype)
    run(adder.adder_conv, x, w, bias, out, g, kernel)
    assert_close(out, spec.adder_conv(x, w, bias, **options(g)))


DEPTHWISE = {
    "3x3": images_of(2, 5, 9, 7, 5, (3, 3), padding=(1, 1), groups=5),
    "3x3, stride 2": images_of(1, 3, 35, 10, 3, (3, 3), (2, 2), (1, 1), groups=3),
    "dilation, wide padding": images_of(2, 3, 20, 9, 3, (3, 2), (2, 1), (5, 4), (4, 3), 3),
    "planes of one pixel": images_of(3, 50, 1, 1, 50, (3, 3), padding=(1, 1), groups=50),
    "planes of 4x4": images_of(3, 11, 4, 4, 11, (5, 5), padding=(2, 2), groups=11),
    "7x7, 4 filters a channel": images_of(2, 3, 17, 8, 12, (7, 7), padding=(3, 3), groups=3),
    "stride above kernel": images_of(2, 4, 25, 14, 8, (2, 3), (3, 4), (2, 0), (2, 1), 4),
    "uneven padding": images_of(2, 3, 9, 7, 3, (3, 2), (2, 1), ((0, 3), (2, 1)), (1, 2), 3),
    "one row": images_of(2, 3, 1, 300, 3, (1, 5), padding=(0, 2), groups=3),
    "one channel": images_of(2, 1, 8, 6, 2, (3, 3), padding=(1, 1)),
    "nothing but padding": images_of(1, 2, 2, 3, 2, (3, 3), padding=(9, 20), groups=2),
}
depthwise = pytest.mark.parametrize("g", DEPTHWISE.values(), ids=DEPTHWISE.keys())
FORWARDS = [
    (adder.adder_conv, spec.adder_conv, "5_implicit_conv"),
    (convolution.conv, spec.conv, "2_implicit_conv"),
]
forwards = pytest.mark.parametrize("launcher, formula, tiled", FORWARDS, ids=["adder", "ordinary"])


@depthwise
@floats
@forwards
@pytest.mark.parametrize("biased", [True, False])
def test_depthwise(run, g, dtype, launcher, formula, tiled, biased):
    """The same sums in the same order, so the same bits, as the tile's."""
    x, w, bias = (values(s, dtype, i) for i, s in enumerate((g.x_shape, g.w_shape, g.filters)))
    bias = bias if biased else None
    out, out_by_tile = unwritten(g.out_shape, dtype), unwritten(g.out_shape, dtype)
    run(launcher, x, w, bias, out, g)
    assert_close(out, formula(x, w, bias, **options(g)))
    run(launcher, x, w, bias, out_by_tile, g, tiled)
    assert_array_equal(out, out_by_tile)


@floats
@forwards
@pytest.mark.parametrize("place", ["x", "w", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_pass_through_depthwise(
    run, dtype, launcher, formula, tiled, place, value
):
    g = DEPTHWISE["3x3"]
    arrays = [values(s, dtype, i) for i, s in enumerate((g.x_shape, g.w_shape, g.filters))]
    arrays[["x", "w", "bias"].index(place)].reshape(-1)[1] = value
    out = unwritten(g.out_shape, dtype)
    run(launcher, *arrays, out, g)
    with np.errstate(invalid="ignore"):
        expected = formula(*arrays, **options(g))
    assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@forwards
def test_depthwise_loads_a_row_of_its_strip_once(launcher, formula, tiled):
    g = images_of(2, 3, 34, 35, 3, (3, 3), groups=3)
    x, w = values(g.x_shape, "float32"), values(g.w_shape, "float32", 1)
    out = unwritten(g.out_shape, "float32")
    with mf.emulated_cuda(check=True, trace=True) as report:
        launcher(emulator.device, x, w, None, out, g)
    (counts,) = report.counts.values()
    assert counts.global_stores == out.size
    assert counts.global_loads == out.size / 8 * (3 * 10 + 9)  # 8 rows a thread, and w


@forwards
@pytest.mark.parametrize(
    "g, taken",
    [
        *((g, True) for g in DEPTHWISE.values()),
        (images_of(1, 2, 9, 9, 2, (8, 1), groups=2), False),
        (images_of(1, 2, 9, 9, 2, (1, 8), groups=2), False),
        (images_of(1, 2, 9, 9, 2, (2, 2), (5, 1), groups=2), False),
        (images_of(1, 2, 9, 9, 2, (2, 2), dilation=(1, 5), groups=2), False),
        (images_of(1, 2, 9, 9, 10, (3, 3), groups=2), False),
        (images_of(1, 4, 9, 9, 4, (3, 3), groups=2), False),
    ],
)
def test_depthwise_is_taken_for_what_it_can(launcher, formula, tiled, g, taken):
    paths = []
    device = emulator.Device()
    device.launch = lambda path, *args: paths.append(path)
    x, w, out = (np.zeros(s, "float32") for s in (g.x_shape, g.w_shape, g.out_shape))
    for kernel in (None, tiled):
        launcher(device, x, w, None, out, g, kernel)
    room = "adder" if launcher is adder.adder_conv else "convolution"
    file = "depthwise" if taken else tiled
    assert paths == [f"{room}/{file}.cu", f"{room}/{tiled}.cu"]


@geometries
def test_adder_conv_of_uint8_is_exact(run, g):
    x, w = values(g.x_shape, "uint8"), values(g.w_shape, "uint8", 1)
    bias = np.arange(g.filters, dtype=np.int32) - 3
    out = unwritten(g.out_shape, np.int32)
    run(adder.adder_conv, x, w, bias, out, g)
    assert_array_equal(out, spec.adder_conv(x, w, bias, **options(g)))


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("channels", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("plane", [(1, 1), (3, 3), (2, 6), (7, 7), (8, 5), (33, 32)])
@pytest.mark.parametrize("misaligned", [0, 1, 4])
def test_channels_are_packed_four_pixels_at_once_where_planes_can_be(
    dtype, channels, plane, misaligned
):
    """A pixel a load where their number is odd, or x begins between vectors of four."""
    groups, size, each = 2, math.prod(plane), 4 // np.dtype(dtype).itemsize
    memory = values(16 + 3 * groups * channels * size, "uint8").astype(dtype)
    start = -memory.ctypes.data % (4 * memory.itemsize) // memory.itemsize + misaligned
    x = memory[start : start + 3 * groups * channels * size].reshape(3, -1, *plane)
    with mf.emulated_cuda(check=True, trace=True) as report:
        words = adder._packed(emulator.device, x, channels)
    padded = np.zeros((3 * groups, -(-channels // each), each, *plane), dtype)
    padded.reshape(len(padded), -1, *plane)[:, :channels] = x.reshape(-1, channels, *plane)
    assert_array_equal(words, np.moveaxis(padded, 2, -1).copy().view("<u4")[..., 0])
    (counts,) = report.counts.values()
    each = 1 if size % 4 or misaligned == 1 else 4
    assert counts.global_loads * each == x.size
    assert counts.global_stores * each == words.size


@geometries
def test_adder_conv_of_halves(run, g):
    x, w = values(g.x_shape, "float16"), values(g.w_shape, "float16", 1)
    bias, out = values(g.filters, "float32", 2), unwritten(g.out_shape, "float32")
    run(adder.adder_conv, x, w, bias, out, g, "7_half2")
    assert_within_the_bound_of_halves(out, x, w, bias, **options(g))


@geometries
@floats
@pytest.mark.parametrize("offset", [0, 1000])
def test_adder_conv_backward(run, g, dtype, offset):
    x, w = values(g.x_shape, dtype, 0, offset), values(g.w_shape, dtype, 1, offset)
    grad = values(g.out_shape, dtype, 2)
    grad_x, grad_w = unwritten(g.x_shape, dtype), unwritten(g.w_shape, dtype)
    run(adder.adder_conv_backward, grad, x, w, grad_x, grad_w, g)
    expected_x, expected_w = spec.adder_conv_backward(grad, x, w, **options(g))
    assert_close(grad_x, expected_x)
    assert_close(grad_w, expected_w)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3, 10, 1e6])
def test_grad_x_is_accurate_at_every_scale(run, scale):
    """Where the saturated form would cancel or lose digits, the kernel must not use it."""
    g = GEOMETRIES["vectors everywhere"]
    x = values(g.x_shape, "float32") * np.float32(scale)
    w = values(g.w_shape, "float32", 1) * np.float32(scale)
    grad, grad_x = values(g.out_shape, "float32", 2), unwritten(g.x_shape, "float32")
    run(adder.adder_conv_grad_x, grad, x, w, grad_x, g)
    assert_close(grad_x, spec.adder_conv_backward(grad, x, w, **options(g))[0])


@pytest.mark.parametrize("value", [1e29, 1.8e38, -3.4e38])
def test_a_gradient_of_x_that_fits_float32_does_not_overflow(run, value):
    """The saturated form doubles its sums."""
    g = GEOMETRIES["vectors everywhere"]
    x, w = values(g.x_shape, "float32"), values(g.w_shape, "float32", 1)
    grad, grad_x = np.zeros(g.out_shape, "float32"), unwritten(g.x_shape, "float32")
    grad[1, 2, 1, 1] = value
    run(adder.adder_conv_grad_x, grad, x, w, grad_x, g)
    expected = spec.adder_conv_backward(grad, x, w, **options(g))[0]
    assert_allclose(grad_x, expected, rtol=1e-5, atol=1e-6 * abs(value))


@pytest.mark.parametrize("where", ["grad", "x", "w"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@floats
def test_nan_and_infinity_pass_through_the_gradient_of_x(run, where, value, dtype):
    g = images_of(2, 3, 5, 6, 4, (3, 3), (2, 1), (1, 1))
    arrays = [values(s, dtype, i) for i, s in enumerate((g.out_shape, g.x_shape, g.w_shape))]
    arrays[["grad", "x", "w"].index(where)][1, 1, 1, 2] = value
    grad_x = unwritten(g.x_shape, dtype)
    run(adder.adder_conv_grad_x, *arrays, grad_x, g)
    with np.errstate(invalid="ignore"):
        expected = spec.adder_conv_backward(*arrays, **options(g))[0]
    assert_allclose(grad_x, expected, rtol=1e-4, atol=1e-5)


LONG_SUMS = {
    "16 filters, 144 taps": images_of(3, 16, 33, 20, 16, (3, 3), padding=(1, 1)),
    "64 filters, 288 taps, stride 2": images_of(5, 32, 20, 21, 64, (3, 3), (2, 2), (1, 1)),
    "10 filters, 1x1": images_of(600, 64, 1, 1, 10, (1, 1)),
}


@pytest.mark.parametrize("g", LONG_SUMS.values(), ids=LONG_SUMS.keys())
@floats
def test_the_gradient_of_w_in_many_parts(run, g, dtype):
    x, w = values(g.x_shape, dtype), values(g.w_shape, dtype, 1)
    grad, grad_w = values(g.out_shape, dtype, 2), unwritten(g.w_shape, dtype)
    run(adder.adder_conv_grad_w, grad, x, w, grad_w, g)
    assert_close(grad_w, spec.adder_conv_backward(grad, x, w, **options(g))[1])
    grad_w[...] = np.nan
    run(convolution.conv_backward, grad, x, w, x.copy(), grad_w, g)
    assert_close(grad_w, spec.conv_backward(grad, x, w, **options(g))[1])


@geometries
@floats
def test_the_gradient_of_w_by_its_sign(run, g, dtype):
    x, w = (values(s, dtype, i).round(1) for i, s in enumerate((g.x_shape, g.w_shape)))
    grad, grad_w = values(g.out_shape, dtype, 2), unwritten(g.w_shape, dtype)
    run(adder.adder_conv_sign_backward, grad, x, w, x.copy(), grad_w, g)
    _, expected = spec.adder_conv_sign_backward(grad, x, w, **options(g))
    assert_close(grad_w, expected)


@pytest.mark.parametrize("where", ["grad", "x", "w"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@floats
def test_nan_and_infinity_pass_through_the_gradient_of_w(run, where, value, dtype):
    """Also of a number of pixels that no step divides, and with no sign to cancel an infinity."""
    g = images_of(2, 3, 5, 6, 4, (3, 3), (2, 1), (1, 1))
    arrays = [values(s, dtype, i) for i, s in enumerate((g.out_shape, g.x_shape, g.w_shape))]
    arrays[0] = np.abs(arrays[0])
    arrays[["grad", "x", "w"].index(where)][1, 1, 1, 2] = value
    grad_w = unwritten(g.w_shape, dtype)
    run(adder.adder_conv_grad_w, *arrays, grad_w, g)
    with np.errstate(invalid="ignore"):
        expected = spec.adder_conv_backward(*arrays, **options(g))[1]
    assert_allclose(grad_w, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def launched(monkeypatch):
    """The entries of an emulated device, in the order of their launches."""
    entries, launch = [], emulator.device.launch
    device = emulator.Device()
    device.launch = lambda path, entry, *args: (entries.append(entry), launch(path, entry, *args))
    monkeypatch.setattr(launch_room, "device_for", lambda array: device)
    return entries


@pytest.mark.parametrize("stride", [1, 2, (3, 4)])
def test_gradients_take_three_launches(launched, monkeypatch, stride):
    monkeypatch.setattr(implicit, "_LEAST_PART", 16)
    x, w = values((6, 4, 16, 13), "float32"), values((8, 4, 3, 3), "float32", 1)
    for forward, backward, names in (
        (mf.adder_conv, mf.adder_conv_backward, ["adder_grad_x", "adder_grad_w", "add_parts"]),
        (mf.conv, mf.conv_backward, ["conv_grad_x", "conv_grad_w", "add_parts"]),
    ):
        y = forward(x, w, stride=stride, padding=1)
        launched.clear()
        backward(y, x, w, stride=stride, padding=1)
        assert launched == names


def test_a_linear_layer_takes_four_launches(launched):
    a, w = values((300, 20), "float32"), values((10, 20), "float32", 1)
    y = ops.convolution.matmul(a, w.T)
    ops.convolution.matmul_backward(y, a, w.T)
    assert launched == ["conv", "conv_grad_x", "conv_grad_w", "add_parts"]


@pytest.mark.parametrize("kernel", FLOAT_KERNELS)
@floats
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 27, 33), (70, 147, 65), (4, 16, 128)])
def test_adder_matmul(run, kernel, dtype, shape):
    m, length, p = shape
    a, b = values((m, length), dtype), values((length, p), dtype, 1)
    out = unwritten((m, p), dtype)
    run(adder.adder_matmul, a, b, out, kernel)
    assert_close(out, spec.adder_matmul(a, b))


def test_adder_matmul_of_uint8_is_exact(run):
    a, b = values((19, 30), "uint8"), values((30, 21), "uint8", 1)
    out = unwritten((19, 21), np.int32)
    run(adder.adder_matmul, a, b, out)
    assert_array_equal(out, spec.adder_matmul(a, b))


def test_arrays_that_are_not_aligned_take_the_narrow_loads(run):
    buffer = values(1 + 16 * 8 + 8 * 16, "float32")
    a, b = buffer[1:129].reshape(16, 8), buffer[129:257].reshape(8, 16)
    out = unwritten(1 + 16 * 16, "float32")[1:].reshape(16, 16)
    expected = spec.adder_matmul(a, b)
    for kernel in FLOAT_KERNELS:
        run(adder.adder_matmul, a, b, out, kernel)
        assert_close(out, expected)


CHUNKED = {
    "two images": (images_of(5, 4, 5, 4, 3, (3, 3), padding=(1, 1)), 2 * (36 + 3) * 32 * 8),
    "32 pixels": (images_of(2, 4, 9, 11, 6, (3, 2), padding=(2, 1), groups=2), 1),
    "64 pixels, stride and dilation": (
        images_of(2, 3, 20, 23, 2, (3, 3), (2, 1), (2, 1), (1, 2)),
        2 * (27 + 2) * 32 * 8,
    ),
    "1x1": (images_of(2, 3, 5, 10, 4, (1, 1)), 1),
    "nothing but padding": (images_of(1, 1, 2, 3, 2, (3, 3), padding=(9, 20)), 1),
}


@pytest.mark.parametrize("g, workspace", CHUNKED.values(), ids=CHUNKED.keys())
def test_chunks_make_no_difference(run, monkeypatch, g, workspace):
    x, w = values(g.x_shape, "float64"), values(g.w_shape, "float64", 1)
    bias, grad = values(g.filters, "float64", 3), values(g.out_shape, "float64", 2)
    monkeypatch.setattr(limits, "WORKSPACE", workspace)
    padded = g.channels * math.prod(g.padded_size)
    monkeypatch.setattr(limits, "INT32", 2 * max(padded, grad[0].size))
    out = unwritten(g.out_shape, "float64")
    for kernel in FLOAT_KERNELS:
        out[...] = np.nan
        run(adder.adder_conv, x, w, bias, out, g, kernel)
        assert_close(out, spec.adder_conv(x, w, bias, **options(g)))
    for kernel in CONV_RUNGS:
        out[...] = np.nan
        run(convolution.conv, x, w, bias, out, g, kernel)
        assert_close(out, spec.conv(x, w, bias, **options(g)))
    for launcher, formula in (
        (convolution.conv_backward, spec.conv_backward),
        (adder.adder_conv_backward, spec.adder_conv_backward),
    ):
        grad_x, grad_w = unwritten(g.x_shape, "float64"), unwritten(g.w_shape, "float64")
        run(launcher, grad, x, w, grad_x, grad_w, g)
        expected_x, expected_w = formula(grad, x, w, **options(g))
        assert_close(grad_x, expected_x)
        assert_close(grad_w, expected_w)


def test_the_matrix_of_a_large_image_stays_within_the_workspace(monkeypatch):
    g = images_of(2, 8, 40, 40, 16, (3, 3), padding=(1, 1))
    largest = {}

    class Recorder(emulator.Device):
        def launch(self, path, entry, defines, grid, block, args):
            matrix = {"im2col": 1, "adder_matmul": 1}.get(entry)
            if matrix is not None:
                largest[entry] = max(largest.get(entry, 0), args[matrix].nbytes)

    workspace = 2**16
    monkeypatch.setattr(limits, "WORKSPACE", workspace)
    grad, x, w = (np.zeros(shape, "float32") for shape in (g.out_shape, g.x_shape, g.w_shape))
    convolution.conv(Recorder(), x, w, None, grad, g, "1_im2col")
    adder.adder_conv(Recorder(), x, w, None, grad, g, "1_naive")
    assert largest.keys() == {"im2col", "adder_matmul"}
    assert all(workspace / 2 < size <= workspace for size in largest.values())


def test_grids_fold_what_is_too_many_for_one_launch(run, monkeypatch):
    g = images_of(5, 4, 5, 4, 6, (3, 3), padding=(1, 1), groups=2)
    x, w = values(g.x_shape, "float64"), values(g.w_shape, "float64", 1)
    out, cols = unwritten(g.out_shape, "float64"), unwritten(g.cols_shape, "float64")
    monkeypatch.setattr(limits, "GRID_LIMIT", 3)
    run(adder.adder_conv, x, w, None, out, g, "1_naive")
    assert_close(out, spec.adder_conv(x, w, **options(g)))
    run(convolution.im2col, x, cols, g)
    assert_array_equal(cols, spec.im2col(x, g.kernel, **without_groups(g)))
    a, b = values((100, 4), "float64"), values((4, 7), "float64", 1)
    product = unwritten((100, 7), "float64")
    run(adder.adder_matmul, a, b, product, "2_shared_tile")
    assert_close(product, spec.adder_matmul(a, b))


def test_an_image_too_large_for_32_bit_offsets_is_an_error(monkeypatch):
    g = GEOMETRIES["27 taps"]
    monkeypatch.setattr(limits, "INT32", 100)
    x, w, out = values(g.x_shape, "float32"), values(g.w_shape, "float32"), np.zeros(g.out_shape)
    message = r"adder_conv: .* image of x, of shape \(2, 3, 7, 9\), must be at most 100, got 297"
    with pytest.raises(ValueError, match=message):
        adder.adder_conv(emulator.device, x, w, None, out, g)


TOO_LONG = images_of(1, 1, 5, 4, 1, (2, 2), padding=(0, 2**30), stride=(1, 2**30))
X, W, OUT, COLS = (
    np.zeros(shape, "float32")
    for shape in (TOO_LONG.x_shape, TOO_LONG.w_shape, TOO_LONG.out_shape, TOO_LONG.cols_shape)
)


@pytest.mark.parametrize(
    "launcher, arrays",
    [
        (convolution.im2col, (X, COLS)),
        (convolution.col2im, (COLS, X)),
        (convolution.conv, (X, W, None, OUT)),
        (convolution.conv_backward, (OUT, X, W, X, W)),
        (adder.adder_conv, (X, W, None, OUT)),
        (adder.adder_conv_backward, (OUT, X, W, X, W)),
    ],
)
def test_padding_beyond_32_bits_is_an_error(launcher, arrays):
    message = rf"{launcher.__name__}: W \+ padding must be at most \d+, got 2147483652"
    with pytest.raises(ValueError, match=message):
        launcher(emulator.device, *arrays, TOO_LONG)


def test_the_implicit_kernels_refuse_what_reaches_nowhere():
    """gather.cuh marks what is outside every image by a row of -2**30."""
    g = images_of(1, 1, 5, 4, 1, (2, 2), padding=(0, 2**29), stride=(1, 2**30))
    with pytest.raises(ValueError, match=r"must be at most 1073741824, got 1073741828"):
        adder.adder_conv(emulator.device, X, W, None, OUT, g)


def test_too_many_groups_for_a_grid_is_an_error(monkeypatch):
    g = GEOMETRIES["depthwise, stride 2"]
    x, w, out = (values(s, "float32") for s in (g.x_shape, g.w_shape, g.out_shape))
    monkeypatch.setattr(limits, "GRID_LIMIT", 3)
    with pytest.raises(ValueError, match="adder_conv: kernel '1_naive' takes at most 3 groups"):
        adder.adder_conv(emulator.device, x, w, None, out, g, "1_naive")


def test_an_error_of_adder_matmul_names_it(monkeypatch):
    a, b = values((3, 4), "float32"), values((4, 5), "float32")
    monkeypatch.setattr(limits, "INT32", 4)
    with pytest.raises(ValueError, match="adder_matmul: P must be at most 4, got 5"):
        adder.adder_matmul(emulator.device, a, b, np.zeros((3, 5), "float32"))
    monkeypatch.setattr(limits, "INT32", 12)
    with pytest.raises(ValueError, match=r"adder_matmul: .* padded image of x"):
        adder.adder_matmul(emulator.device, a, b, np.zeros((3, 5)), "5_implicit_conv")


def test_kernels_and_new_arrays_go_to_the_gpu_of_the_arrays():
    """The launchers make that GPU current, whichever was."""
    current = []

    class OnGpu(np.ndarray):
        @property
        def device(self):
            return self

        def __enter__(self):
            current.append(1)

        def __exit__(self, *_):
            current.pop()

    class Recorder:
        launched = 0

        class xp:
            def __getattr__(self, name):
                assert current, name
                return getattr(np, name)

        xp = xp()

        def launch(self, *args):
            assert current
            self.launched += 1

    g = GEOMETRIES["27 taps"]
    new = lambda shape: np.zeros(shape, "float32").view(OnGpu)  # noqa: E731
    x, w, out, cols = map(new, (g.x_shape, g.w_shape, g.out_shape, g.cols_shape))
    for launcher, arrays in (
        (convolution.im2col, (x, cols, g)),
        (convolution.col2im, (cols, x, g)),
        (convolution.conv, (x, w, None, out, g)),
        (convolution.conv_backward, (out, x, w, x, w, g)),
        (adder.adder_matmul, (cols[0], cols[0].T, new((27, 27)))),
        (adder.adder_conv, (x, w, None, out, g)),
        (adder.adder_conv_backward, (out, x, w, x, w, g)),
    ):
        device = Recorder()
        launcher(device, *arrays)
        assert device.launched and not current


@pytest.mark.parametrize(
    "dtype, kernel, message",
    [
        ("float32", "6_uint8", "kernel '6_uint8' does not take float32; 1_naive, 2_shared_tile"),
        ("uint8", "1_naive", "kernel '1_naive' does not take uint8; 6_uint8 can"),
        (
            "float32",
            "fastest",
            "no kernel named 'fastest'; there are 1_naive, .*, depthwise",
        ),
    ],
)
def test_a_rung_that_cannot_is_an_error(dtype, kernel, message):
    g = GEOMETRIES["1x1"]
    x, w = values(g.x_shape, dtype), values(g.w_shape, dtype)
    with pytest.raises(ValueError, match=f"adder_conv: {message}"):
        adder.adder_conv(emulator.device, x, w, None, unwritten(g.out_shape, dtype), g, kernel)


@pytest.fixture(scope="module")
def counts():
    """What each rung does for 128x128 outputs with sums of 64 terms, by rung."""
    a, b = values((128, 64), "float32"), values((64, 128), "float32", 1)
    found = {}
    for kernel in FLOAT_KERNELS:
        with mf.emulated_cuda(check=False, trace=True) as report:
            out = unwritten((128, 128), "float32")
            adder.adder_matmul(emulator.device, a, b, out, kernel)
        (found[kernel],) = report.counts.values()
    return found


# Loads per output that the opening comments promise, for L = 64: global, then shared.
PROMISED = {
    "1_naive": (2 * 64, 0),
    "2_shared_tile": (2 * 64 / 16, 2 * 64),
    "3_register_tile": (2 * 64 / 64, 2 * 64 / 4),
    "4_vectorised_loads": (2 * 64 / 128 / 4, 2 * 64 / 8 / 4),  # four elements a load
}


@pytest.mark.parametrize("kernel", PROMISED)
def test_loads_per_output_are_those_of_the_opening_comment(counts, kernel):
    outputs = 128 * 128
    assert counts[kernel].global_loads / outputs == PROMISED[kernel][0]
    assert counts[kernel].shared_loads / outputs == PROMISED[kernel][1]


def test_a_word_of_two_halves_is_one_load(counts):
    a, b = values((128, 64), "float16"), values((64, 128), "float16", 1)
    with mf.emulated_cuda(check=False, trace=True) as report:
        adder.adder_matmul(emulator.device, a, b, unwritten((128, 128), "float32"), "7_half2")
    halves, floats = report.counts["adder_conv"], counts["5_implicit_conv"]
    assert halves.global_loads == floats.global_loads / 2
    assert halves.shared_loads == floats.shared_loads / 2
    blocks, steps = halves.threads // 128, 32 // 16
    assert halves.barriers == blocks * (2 + steps)
    # Where a step is 16 deep, the stores of w take two banks' turns: 8 a thread and step.
    assert halves.bank_conflicts == blocks * 4 * 8 * steps


def test_the_implicit_tile_waits_once_a_step(counts):
    steps = 64 // 8
    blocks = counts["5_implicit_conv"].threads // 128
    assert counts["5_implicit_conv"].barriers == blocks * (2 + steps)
    assert counts["4_vectorised_loads"].barriers == 2 * steps


@pytest.mark.parametrize("kernel", FLOAT_KERNELS)
def test_no_rung_has_bank_conflicts(counts, kernel):
    assert counts[kernel].bank_conflicts == 0
