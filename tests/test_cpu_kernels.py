"""The compiled kernels called directly, at every instruction set this machine has."""

import os
import subprocess
import sys

import numpy as np
import pytest
from problems import sides, unaligned

from mulfree_cupy import formulas as spec

_cpu = pytest.importorskip("mulfree_cupy._cpu")

# N, C, H, W, K, kernel, stride, padding, dilation, groups
PROBLEMS = {
    "odd sizes": (2, 3, 7, 9, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "groups, stride 2": (2, 4, 8, 8, 10, (3, 3), (2, 2), (1, 1), (1, 1), 2),
    "depthwise, stride (2, 1)": (1, 6, 11, 5, 6, (3, 3), (2, 1), (1, 0), (1, 2), 6),
    "even kernel, dilation": (3, 2, 9, 12, 3, (2, 4), (1, 2), (0, 1), (2, 1), 1),
    "one number": (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "kernel of the size of x": (35, 4, 5, 3, 21, (5, 3), (1, 1), (0, 0), (1, 1), 1),
    "kernel of the size of x, groups, stride": (3, 6, 2, 3, 8, (2, 3), (2, 3), (0, 0), (1, 1), 2),
    "1x1 planes": (5, 40, 1, 1, 33, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "kernel of the padded size": (2, 3, 5, 6, 4, (7, 8), (1, 1), (1, 1), (1, 1), 1),
    "1x1, stride 2": (2, 16, 8, 8, 24, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "several blocks of taps": (2, 70, 6, 7, 9, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "several chunks of filters": (1, 3, 17, 19, 300, (3, 3), (3, 2), (2, 2), (2, 3), 1),
    "large kernel, large stride": (1, 2, 20, 21, 3, (9, 7), (2, 3), (4, 3), (1, 2), 1),
    "lines": (3, 16, 32, 32, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "lines, dilation, blocks": (2, 40, 5, 64, 9, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "shared rows, one a packed tile": (1, 2, 4, 224, 3, (3, 5), (1, 1), (1, 2), (1, 1), 1),
    "lines, depthwise": (2, 8, 30, 64, 8, (3, 3), (2, 2), (1, 1), (1, 1), 8),
    "stride larger than the kernel": (2, 5, 16, 15, 6, (2, 2), (3, 4), (0, 0), (1, 1), 1),
    "many phases": (1, 9, 20, 23, 4, (6, 7), (6, 7), (1, 2), (1, 1), 1),
    "phases of several chunks of channels": (2, 70, 6, 7, 9, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "1x1, stride 2, padding": (2, 9, 9, 71, 3, (1, 1), (2, 2), (2, 1), (1, 1), 1),
    "no tap meets x": (2, 3, 1, 1, 4, (1, 1), (2, 2), (1, 1), (1, 1), 1),
    "uneven padding": (2, 5, 9, 40, 6, (3, 4), (1, 1), ((0, 3), (2, 1)), (1, 1), 1),
    "uneven padding, stride": (2, 4, 9, 40, 6, (3, 4), (2, 3), ((5, 0), (1, 4)), (2, 1), 2),
    "padding at one end alone": (2, 70, 1, 17, 9, (5, 3), (1, 1), ((0, 4), (2, 0)), (1, 1), 1),
    "stride and dilation share a factor": (1, 4, 13, 14, 5, (3, 3), (2, 4), (2, 2), (2, 2), 1),
}
POINT = (1, 1), ((0, 0), (0, 0)), (1, 1), 1  # stride, padding, dilation, groups
LAYOUTS = ["C", "F", "reversed", "every second", "unaligned", "broadcast"]


@pytest.fixture(params=_cpu.available_features())
def features(request):
    before = _cpu.features()
    _cpu.use_features(request.param)
    yield request.param
    _cpu.use_features(before)


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS.keys())
def problem(request):
    n, c, h, w, k, kernel, stride, padding, dilation, groups = request.param
    return (n, c, h, w), (k, c // groups, *kernel), (stride, sides(padding), dilation, groups)


def options(geometry):
    return dict(zip(("stride", "padding", "dilation", "groups"), geometry, strict=True))


def lay_out(array, layout):
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]
    if layout == "every second":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "unaligned":
        return unaligned(array)
    if layout == "broadcast":
        return np.broadcast_to(array[:1, :, :, :1], array.shape)
    return array


def fresh(shape, dtype):
    """An output whose untouched elements would show."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -77777, dtype)


def assert_close(got, want, tolerance):
    assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


def forward(name, x, w, bias, geometry):
    like = getattr(spec, name)(x, w, **options(geometry))
    out = fresh(like.shape, np.int32 if x.dtype == np.uint8 else x.dtype)
    getattr(_cpu, name)(x, w, bias, out, *geometry)
    return out


def backward(name, grad, x, w, geometry):
    grad_x, grad_w = fresh(x.shape, x.dtype), fresh(w.shape, w.dtype)
    if name == "conv":
        _cpu.conv_grad_x(grad, w, grad_x, *geometry)
        _cpu.conv_grad_w(grad, x, grad_w, *geometry)
    else:
        _cpu.adder_conv_grad_x(grad, x, w, grad_x, *geometry)
        _cpu.adder_conv_grad_w(grad, x, w, grad_w, *geometry)
    return grad_x, grad_w


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 3e-6), (np.float64, 2e-13)])
@pytest.mark.parametrize("name", ["conv", "adder_conv"])
def test_float_kernels(features, problem, name, dtype, tolerance):
    x_shape, w_shape, geometry = problem
    rng = np.random.default_rng(1)
    w = rng.normal(size=w_shape).astype(dtype)
    bias = rng.normal(size=w_shape[0]).astype(dtype)
    for layout in LAYOUTS:
        x = lay_out(rng.normal(size=x_shape).astype(dtype), layout)
        want = getattr(spec, name)(x, w, bias, **options(geometry))
        assert_close(forward(name, x, w, bias, geometry), want, tolerance)

        grad = lay_out(rng.normal(size=want.shape).astype(dtype), layout)
        want = getattr(spec, name + "_backward")(grad, x, w, **options(geometry))
        for got, exact in zip(backward(name, grad, x, w, geometry), want, strict=True):
            assert_close(got, exact, tolerance)


def test_uint8_is_exact(features, problem):
    x_shape, w_shape, geometry = problem
    rng = np.random.default_rng(2)
    w = rng.integers(0, 256, w_shape, np.uint8)
    bias = rng.integers(-(2**20), 2**20, w_shape[0], np.int32)
    for layout in LAYOUTS:
        x = lay_out(rng.integers(0, 256, x_shape, np.uint8), layout)
        want = spec.adder_conv(x, w, bias, **options(geometry))
        np.testing.assert_array_equal(forward("adder_conv", x, w, bias, geometry), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signs_are_exact(features, problem, dtype):
    x_shape, w_shape, geometry = problem
    rng = np.random.default_rng(2)
    w, scale = rng.normal(size=w_shape).astype(dtype), rng.normal(size=w_shape[0]).astype(dtype)
    for layout in LAYOUTS:
        x = lay_out(rng.normal(size=x_shape).astype(dtype), layout)
        want = spec.binary_conv(x, w, scale=False, **options(geometry)).astype(dtype)
        for factor in (None, scale):
            out = fresh(want.shape, dtype)
            _cpu.binary_conv(x, w, factor, out, *geometry)
            by = 1 if factor is None else factor[:, None, None]
            np.testing.assert_array_equal(out, want * by)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_are_exact(features, problem, bits):
    x_shape, w_shape, geometry = problem
    rng = np.random.default_rng(2)
    w = rng.integers(0, 2**bits + 2, w_shape).astype(np.uint8)
    bias = rng.integers(-(2**20), 2**20, w_shape[0], np.int32)
    for layout in LAYOUTS:
        x = lay_out(rng.integers(0, 2**bits + 2, x_shape).astype(np.uint8), layout)
        want = spec.low_bit_adder_conv(x, w, bias, bits=bits, **options(geometry))
        out = fresh(want.shape, np.int32)
        getattr(_cpu, f"adder_conv_{bits}bit")(x, w, bias, out, *geometry)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("taps", [1, 31, 32, 200])
def test_codes_at_their_farthest(features, taps):
    """Every bit differs: the most that a byte counts before it is added up."""
    x, w = np.full((1, 64, 1, taps), 255, np.uint8), np.zeros((3, 64, 1, taps), np.uint8)
    for bits in (1, 2, 3, 4):
        out = fresh((1, 3, 1, 1), np.int32)
        geometry = POINT
        getattr(_cpu, f"adder_conv_{bits}bit")(x, w, None, out, *geometry)
        assert (out == -64 * taps * (2**bits - 1)).all()


@pytest.mark.parametrize("times", [1, 8, 127, 600])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_pair_of_codes(features, bits, times):
    """All numbers of four bits, in pixels and in filters, added up many times."""
    numbers = np.arange(16) >> bits * np.arange(4 // bits)[:, None] & 2**bits - 1
    x = np.tile(numbers, (times, 1)).astype(np.uint8)[None, :, None, :]
    w = np.tile(numbers.T, times).astype(np.uint8, order="C")[:, :, None, None]
    geometry = POINT
    distances = abs(numbers[:, None, :] - numbers[:, :, None]).sum(axis=0) * times
    out = fresh((1, 16, 1, 16), np.int32)
    getattr(_cpu, f"adder_conv_{bits}bit")(x, w, None, out, *geometry)
    np.testing.assert_array_equal(out[0, :, 0], -distances)
    if bits == 1:
        for dtype in (np.float32, np.float64):
            signs = fresh(out.shape, dtype)
            _cpu.binary_conv(x - dtype(0.5), w - dtype(0.5), None, signs, *geometry)
            np.testing.assert_array_equal(signs[0, :, 0], 4 * times - 2 * distances)


@pytest.mark.parametrize("low, high", [(0, 0), (255, 255), (0, 255)])
def test_uint8_extremes(features, low, high):
    x = np.full((1, 4096, 2, 2), low, np.uint8)
    w = np.full((3, 4096, 1, 1), high, np.uint8)
    y = forward("adder_conv", x, w, None, POINT)
    assert (y == -4096 * (high - low)).all()


# The fast form of |x - w| cancels here, and must notice: errors are relative to each result.
@pytest.mark.parametrize(
    "taps", [(1, (1, 1)), (2, (1, 1)), (1, (3, 3)), (7, (1, 1)), (300, (3, 3))]
)
@pytest.mark.parametrize("offset", [0, 1, 1000, -1000])
def test_accuracy_with_a_shared_offset(features, taps, offset):
    channels, kernel = taps
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(2, channels, 9, 11)) + offset).astype(np.float32)
    w = (rng.normal(size=(17, channels, *kernel)) + offset).astype(np.float32)
    geometry = POINT
    want = spec.adder_conv(x, w, **options(geometry))
    np.testing.assert_allclose(forward("adder_conv", x, w, None, geometry), want, rtol=2e-6)

    grad = rng.normal(size=want.shape).astype(np.float32)
    want = spec.adder_conv_backward(grad, x, w, **options(geometry))
    for got, exact in zip(backward("adder_conv", grad, x, w, geometry), want, strict=True):
        assert_close(got, exact, 3e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 10, 1e20])
def test_accuracy_at_any_scale(features, scale):
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(2, 9, 8, 16)) * scale).astype(np.float32)
    w = (rng.normal(size=(5, 9, 3, 3)) * scale).astype(np.float32)
    geometry = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    want = spec.adder_conv(x, w, **options(geometry))
    np.testing.assert_allclose(forward("adder_conv", x, w, None, geometry), want, rtol=2e-6)
    grad = rng.normal(size=want.shape).astype(np.float32)
    want = spec.adder_conv_backward(grad, x, w, **options(geometry))
    for got, exact in zip(backward("adder_conv", grad, x, w, geometry), want, strict=True):
        # Where the slope is tiny, its error is that of a number near 1 on the cheap way.
        floor = 1e-6 * np.abs(grad).sum(axis=(0, 2, 3)).max() if got.shape == x.shape else 0
        assert np.abs(got - exact).max() <= 3e-6 * np.abs(exact).max() + floor


@pytest.mark.parametrize("where", ["x", "w", "grad"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity(features, dtype, where, value):
    rng = np.random.default_rng(5)
    arrays = {
        "x": rng.normal(size=(2, 6, 6, 16)).astype(dtype),
        "w": rng.normal(size=(9, 6, 3, 3)).astype(dtype),
        "grad": rng.normal(size=(2, 9, 6, 16)).astype(dtype),
    }
    arrays[where][1, 2, 1, 2] = value
    x, w, grad = arrays["x"], arrays["w"], arrays["grad"]
    geometry = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    for name in ("conv", "adder_conv"):
        want = getattr(spec, name)(x, w, **options(geometry))
        got = forward(name, x, w, None, geometry)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        want = getattr(spec, name + "_backward")(grad, x, w, **options(geometry))
        for got, exact in zip(backward(name, grad, x, w, geometry), want, strict=True):
            np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


THREADS = """
import os, sys, hashlib
import numpy as np
from mulfree_cupy import _cpu
digest = hashlib.sha256()
rng = np.random.default_rng(6)
for n, c, h, w, k, s in ((4, 16, 32, 32, 40, 1), (3, 70, 14, 15, 70, 2), (1, 300, 2, 3, 520, 1)):
    x = rng.normal(size=(n, c, h, w)).astype("f")
    x[0, 0] += 1000  # some tiles take the accurate way
    weight = rng.normal(size=(k, c, 3, 3)).astype("f")
    y = np.empty((n, k, (h - 1) // s + 1, (w - 1) // s + 1), "f")
    g = ((s, s), ((1, 1), (1, 1)), (1, 1), 1)
    grad_x, grad_w = np.empty_like(x), np.empty_like(weight)
    for call in (
        lambda: _cpu.conv(x, weight, None, y, *g), lambda: _cpu.adder_conv(x, weight, None, y, *g),
        lambda: _cpu.adder_conv_grad_x(y, x, weight, grad_x, *g),
        lambda: _cpu.adder_conv_grad_w(y, x, weight, grad_w, *g),
    ):
        call()
        for a in (y, grad_x, grad_w):
            digest.update(a.tobytes() if a is y else b"")
    digest.update(grad_x.tobytes() + grad_w.tobytes())
print(digest.hexdigest())
"""


def test_answers_do_not_depend_on_the_number_of_threads(features):
    def run(threads):
        return subprocess.run(
            [sys.executable, "-c", THREADS],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MULFREE_CPU_FEATURES": features},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert run("1") == run("2") == run("5")


def test_wrong_features_in_the_environment_are_named():
    done = subprocess.run(
        [sys.executable, "-c", "import mulfree_cupy._cpu"],
        env={**os.environ, "MULFREE_CPU_FEATURES": "sse9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode and "'sse9' are not available; this machine has baseline" in done.stderr
    with pytest.raises(ValueError, match="'sse9' are not available"):
        _cpu.use_features("sse9")


def test_shapes_that_do_not_match_are_refused():
    x, w = np.zeros((1, 2, 4, 4), "f"), np.zeros((3, 2, 3, 3), "f")
    with pytest.raises(ValueError, match="do not match"):
        _cpu.adder_conv(x, w, None, np.zeros((1, 4, 2, 2), "f"), *POINT)
    with pytest.raises(ValueError, match="C-contiguous"):
        _cpu.adder_conv(x, w, None, np.zeros((2, 2, 3, 1), "f").T, *POINT)


MEMORY = """
import resource, sys
import numpy as np
from mulfree_cupy import _cpu
n, c, h, k = 1, 4096, 6, 1024
x, w = np.ones((n, c, h, h), "f"), np.ones((k, c, 3, 3), "f")
y, grad_x, grad_w = np.zeros((n, k, h, h), "f"), np.zeros_like(x), np.zeros_like(w)
g = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
grad_x += 1; grad_w += 1; y += 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_cpu.adder_conv(x, w, None, y, *g)
_cpu.adder_conv_grad_x(y, x, w, grad_x, *g)
_cpu.adder_conv_grad_w(y, x, w, grad_w, *g)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB is Linux's")
@pytest.mark.parametrize("threads", ["4", "100"])
def test_workspace_is_bounded(threads):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    assert int(done.stdout) < 64 * 1024  # KiB; the packed weights alone would be 144 MiB


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64, np.complex128])
def test_im2col_moves_any_dtype(problem, dtype):
    x_shape, w_shape, (stride, padding, dilation, _) = problem
    x = np.random.default_rng(8).integers(0, 99, x_shape).astype(dtype)
    want = spec.im2col(x.real, w_shape[2:], stride=stride, padding=padding, dilation=dilation)
    for layout in LAYOUTS[:5]:
        cols = np.empty(want.shape, dtype)
        _cpu.im2col(lay_out(x, layout), cols, w_shape[2:], stride, padding, dilation)
        np.testing.assert_array_equal(cols, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_col2im(problem, dtype):
    x_shape, w_shape, (stride, padding, dilation, _) = problem
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    shape = spec.im2col(np.zeros(x_shape), w_shape[2:], **geometry).shape
    cols = np.random.default_rng(9).integers(-99, 99, shape).astype(dtype)
    want = spec.col2im(cols, x_shape, w_shape[2:], **geometry)
    for laid_out in (cols, cols.swapaxes(1, 2).copy().swapaxes(1, 2), unaligned(cols)):
        x = fresh(x_shape, dtype)
        _cpu.col2im(laid_out, x, w_shape[2:], stride, padding, dilation)
        np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pixels", [1, 5, 16, 49])
@pytest.mark.parametrize("out", ["x", "residual"])
def test_batch_norm_in_place(features, dtype, pixels, out):
    rng = np.random.default_rng(pixels)
    x, residual = rng.normal(size=(2, 3, 4, pixels)).astype(dtype)
    x[0, 0, 0] = np.nan
    channels = rng.normal(size=(3, 4)).astype(dtype)
    want = _cpu.batch_norm(x, *channels, residual, True)
    assert (want[0, 1:] >= 0).all() and np.isnan(want[0, 0, 0])
    given = {"x": x, "residual": residual}
    answer = _cpu.batch_norm(x, *channels, residual, True, out=given[out])
    assert answer is given[out]
    np.testing.assert_array_equal(answer, want)


@pytest.mark.parametrize(
    "operation", ["fma", "max_add", "sub_abs_add", "u8_max_dot", "popcount", "popcount_2_bits"]
)
def test_peak(features, operation):
    assert _cpu.peak(operation, 0.001) > 1e6
    with pytest.raises(ValueError, match="operation must be"):
        _cpu.peak("divide", 0.001)
