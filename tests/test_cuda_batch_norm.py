"""The CUDA kernels of batch normalisation against the formulas: emulated, checked, and on a GPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, run

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy import launch, nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.launch import emulator, limits, select
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward

WAYS = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
ways = pytest.mark.parametrize("way", WAYS)
KERNELS = select.names("batch_norm")
kernels = pytest.mark.parametrize("kernel", KERNELS)
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def values(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(ours, theirs, rtol=1.0):
    """Within a few roundings of the largest number."""
    scale = max(1, np.abs(theirs).max(initial=0))
    assert_allclose(ours, theirs, atol=rtol * TOLERANCE[ours.dtype.name] * scale, rtol=0)


def trained(x, weight, bias, residual, running_mean, running_variance, **options):
    """What `batch_norm` returns and what it updates, in one tuple."""
    running = running_mean, running_variance
    return *batch_norm(x, weight, bias, residual, running=running, **options), *running


def assert_trained(way, x, residual, dtype=None, **options):
    channels = x.shape[1]
    weight, bias, running_mean, running_variance = values((4, channels), x.dtype, seed=1)
    running = (
        running_mean.astype(dtype or x.dtype),
        1 + running_variance.astype(dtype or x.dtype) ** 2,
    )
    momentum = 0.3
    given = x, weight, bias, residual, *(a.copy() for a in running)
    y, mean, variance, *moved = run(way, trained, *given, momentum=momentum, **options)
    options.pop("kernel", None)
    expected = *spec.moments(x), x.size / channels
    close(y, spec.batch_norm(x, weight, bias, 0 if residual is None else residual, **options))
    close(mean, expected[0])
    assert_allclose(variance, expected[1], rtol=TOLERANCE[x.dtype.name], atol=1e-30)
    unbiased = expected[1] * expected[2] / (expected[2] - 1)
    for ours, before, batch in zip(moved, running, (expected[0], unbiased), strict=True):
        narrow = min(ours.dtype, x.dtype, key=lambda dtype: dtype.itemsize)
        close(ours.astype(narrow), (1 - momentum) * before + momentum * batch)


SHAPES = {
    "a vector": (2, 3, 2, 2),
    "odd planes": (3, 5, 7, 7),
    "one pixel": (5, 3, 1, 1),
    "no planes": (7, 10),
    "one image": (1, 2, 3, 4),
    "many channels": (2, 300, 1, 2),
    "more than 256 threads hold": (17, 1, 24, 24),
    "odd, the same": (173, 1, 7, 7),
    "more than registers hold": (9, 2, 48, 48),
    "more, odd": (401, 1, 7, 7),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@ways
@shapes
@dtypes
@pytest.mark.parametrize("kernel", [None, *KERNELS[:2]])
def test_training_is_its_formula(way, shape, dtype, kernel):
    residual = values(shape, dtype, 2) if kernel != KERNELS[0] else None
    assert_trained(way, values(shape, dtype), residual, kernel=kernel, relu=kernel is None)


@st.composite
def problems(draw):
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    shape = draw(st.integers(2, 6)), draw(st.integers(1, 6)), *size[: draw(st.sampled_from([2, 0]))]
    dtype, seed = draw(st.sampled_from(["float32", "float64"])), draw(st.integers(0, 99))
    return tuple(
        lay_out(values(shape, dtype, seed + i), draw(st.sampled_from(LAYOUTS))) for i in (0, 1)
    )


@ways
@kernels
@settings(max_examples=25)
@given(arrays=problems(), relu=st.booleans(), added=st.booleans())
def test_training_in_any_layout(way, kernel, arrays, relu, added):
    x, residual = arrays
    assert_trained(way, x, residual if added else None, relu=relu, kernel=kernel)


@ways
@shapes
@dtypes
@pytest.mark.parametrize("relu", [False, True])
def test_given_statistics(way, shape, dtype, relu):
    x, residual, channels = values(shape, dtype), values(shape, dtype, 1), shape[1]
    weight, bias, mean = values((3, channels), dtype, 2)
    variance = values(channels, dtype, 3) ** 2

    def normalise(x, weight, bias, residual, mean, variance):
        return batch_norm(x, weight, bias, residual, mean=mean, variance=variance, relu=relu)

    for added in (residual, None):
        y, *used = run(way, normalise, x, weight, bias, added, mean, variance)
        statistics = dict(mean=mean, variance=variance, relu=relu)
        theirs = spec.batch_norm(x, weight, bias, 0 if added is None else added, **statistics)
        close(y, theirs)
        assert_array_equal(used, (mean, variance))


@pytest.mark.parametrize("way", ["cpu", "numpy", *WAYS])
def test_the_relu_stops_infinity_and_lets_nan_through(way):
    x, grad = np.zeros((2, 1, 1, 1, 35), np.float32)
    y = values(x.shape, seed=2)
    y[0, 0, 0, [0, 8, 34]], grad[0, 0, 0, [0, 8, 34]] = (-1, np.nan, 0), (np.inf, 5, -np.inf)
    one = np.ones(1, np.float32)

    def backward(*arrays):
        return batch_norm_backward(*arrays, relu=True, fixed=True, residual=True)

    _, _, grad_bias, flow = run(way, backward, grad, x, y, one, one * 0, one)
    assert_array_equal(flow.ravel(), 5.0 * (np.arange(35) == 8))
    assert_array_equal(grad_bias, 5)


@pytest.mark.parametrize("way", ["cpu", "numpy", *WAYS])
def test_channels_in_any_layout(way):
    """Weights and statistics that are every second number of some array, or backwards."""
    x, grad = values((2, 3, 4, 2, 5))
    channels = np.abs(values((4, 4), seed=1)) + 0.5

    def both(x, grad, weight, bias, mean, variance):
        y = batch_norm(x, weight, bias, mean=mean, variance=variance, relu=True)[0]
        given = dict(mean=mean, variance=variance, relu=True, fixed=True)
        return (
            batch_norm(x, weight, bias)[0],
            y,
            *batch_norm_backward(grad, x, y, weight, **given)[:3],
        )

    expected = run(way, both, x, grad, *channels)
    for spread in (np.repeat(channels, 2, axis=1)[:, ::2], channels[:, ::-1].copy()[:, ::-1]):
        for ours, theirs in zip(run(way, both, x, grad, *spread), expected, strict=True):
            assert_array_equal(ours, theirs)


def assert_backward(way, grad, x, y, relu, fixed, wanted=True):
    weight, mean = values((2, x.shape[1]), x.dtype, 5)
    variance = (0.5 + values(x.shape[1], x.dtype, 6)) ** 2 + x.dtype.type(0.1)

    def backward(*arrays):
        options = dict(relu=relu, fixed=fixed, residual=wanted)
        answer = batch_norm_backward(*arrays, **options)
        return answer if wanted else answer[:3]

    answer = run(way, backward, grad, x, y, weight, mean, variance)
    given = grad, x, y, weight, mean, variance
    expected = spec.batch_norm_backward(*given, relu=relu, fixed=fixed)
    count = x.size / x.shape[1]
    close(answer[0], expected[0], 4)
    for ours, theirs in zip(answer[1:3], expected[1:3], strict=True):
        close(ours, theirs, count**0.5)
    if wanted:
        assert_array_equal(answer[3], expected[3])


@ways
@shapes
@dtypes
@pytest.mark.parametrize("relu, fixed", [(True, False), (False, False), (True, True)])
def test_the_gradients_are_their_formulas(way, shape, dtype, relu, fixed):
    grad, x, y = values((3, *shape), dtype)
    assert_backward(way, grad, x, y, relu, fixed, wanted=relu or len(shape) == 2)


@ways
@settings(max_examples=25)
@given(arrays=problems(), relu=st.booleans(), fixed=st.booleans(), wanted=st.booleans())
def test_the_gradients_in_any_layout(way, arrays, relu, fixed, wanted):
    x, grad = arrays
    assert_backward(way, grad, x, values(x.shape, x.dtype, 7), relu, fixed, wanted)


@ways
@kernels
@pytest.mark.parametrize("shape", [(64, 3, 8, 8), (83, 2, 7, 7)])
def test_a_mean_of_ten_thousand_deviations(way, kernel, shape):
    """x has 10 bits behind the point; y and the variance are as exact as of any other channel."""
    x = values(shape) + np.float32(1e4)
    assert_trained(way, x, None, kernel=kernel)


def test_many_parts_of_large_mean_and_none_alike():
    """Whose means differ by far more than what is within them, and those of one value."""
    x = np.repeat(values((40, 2, 1, 1)) * 1000, 1024, axis=2).reshape(40, 2, 32, 32)
    x += values(x.shape, seed=1)
    assert_trained("emulated", x, None)
    x = np.full((33, 1, 32, 32), np.float32(0.1))
    with mf.emulated_cuda():
        y, mean, variance = batch_norm(x, np.ones(1, "f"), np.zeros(1, "f"))
    assert_array_equal(mean, np.float32(0.1))
    assert variance < 1e-15 and np.abs(y).max() < 1e-5


@ways
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_running_statistics_keep_their_own_type(way, dtype):
    x = values((4, 3, 5, 5), "float64" if dtype == "float32" else "float32")
    assert_trained(way, x, None, dtype=dtype)


@ways
@pytest.mark.parametrize("images", [3, 300])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 20])
def test_nan_and_infinity_go_where_the_formulas_send_them(way, images, value, where):
    x, grad = values((2, images, 2, 8, 8))
    x[-1, 1].flat[where] = value
    weight, bias = values((2, 2), seed=1)
    with np.errstate(invalid="ignore"):
        y, mean, variance = run(way, batch_norm, x, weight, bias, relu=True)
        assert_allclose(y, spec.batch_norm(x, weight, bias, relu=True), atol=1e-4)
        assert_allclose((mean, variance), spec.moments(x), atol=1e-4)
        if images == 3:
            return
        given = grad, x, y, weight, mean, variance
        answer = run(way, batch_norm_backward, *given, relu=True, residual=True)
        for ours, theirs in zip(answer, spec.batch_norm_backward(*given, relu=True), strict=True):
            assert_allclose(ours, theirs, atol=1e-2)
    assert_array_equal(np.isnan(y[:, 1]), True)
    assert_array_equal(np.isfinite(y[:, 0]), True)


@kernels
def test_the_answer_is_the_same_every_time(kernel):
    x, weight, bias = values((64, 2, 8, 8)), *values((2, 2))
    with mf.emulated_cuda():
        for ours, again in zip(
            *(batch_norm(x, weight, bias, kernel=kernel) for _ in (0, 1)), strict=True
        ):
            assert_array_equal(ours, again)


@pytest.mark.parametrize(
    "shape, forward, backward",
    [
        (
            (256, 16, 32, 32),
            ["2_moments 1024 x 256", "2_normalise 1024 x 256"],
            ["grad_sums 1024 x 256", "grad_x 1024 x 256"],
        ),
        ((256, 64, 8, 8), ["3_registers 64 x 512"], ["grad_registers 64 x 512"]),
        ((256, 10), ["3_registers 10 x 256"], ["grad_registers 10 x 256"]),
        (
            (256, 64, 7, 7),
            ["3_registers 64 x 512"],
            ["grad_sums 256 x 256", "grad_x 256 x 256"],
        ),
    ],
)
def test_launches_of_a_layer(shape, forward, backward, monkeypatch):
    """Two each way at most, and one to evaluate; enough blocks where a channel is long."""
    launches = []

    class Recorder(emulator.Device):
        def launch(self, path, entry, defines, grid, block, args):
            file = path.removeprefix("batch_norm/").removesuffix(".cu")
            launches.append(f"{file} {grid[0]} x {block[0]}")

    monkeypatch.setattr(launch, "device_for", lambda array: Recorder())
    layer = nn.BatchNorm(shape[1], relu=True)
    x = Tensor(np.zeros(shape, np.float32), requires_grad=True)
    before = layer.running_mean, layer.running_var
    y = layer(x, x)
    assert launches == forward
    with np.errstate(all="ignore"):  # nothing was launched: answers are what the memory held
        y.backward(x.data)
    assert launches == forward + backward
    layer.eval()(x, x)
    assert [line.split()[0] for line in launches[len(forward + backward) :]] == ["given"]
    assert before[0] is layer.running_mean and before[1] is layer.running_var


# Bytes of global memory an element of float32, with a residual and the ReLU.
BYTES = {
    "1_three_passes": 20,
    "2_parts": 4 + 12,
    "3_registers": 12,
    "given": 12,
    "grad_sums, grad_x": 12 + 20,
    "grad_registers": 24,
}


def counted(kernel, x, weight):
    if kernel in KERNELS:
        batch_norm(x, weight, weight, x, relu=True, kernel=kernel)
    elif kernel == "given":
        batch_norm(x, weight, weight, x, relu=True, mean=weight, variance=weight)
    else:
        batch_norm_backward(x, x, x, weight, weight, weight, relu=True, residual=True)


@pytest.mark.parametrize("kernel", BYTES)
def test_bytes_an_element(kernel):
    """And what is read and written by channel and by part: less than a tenth of it here."""
    small = kernel.endswith("registers")
    x, weight = values((16 if small else 64, 2, 32, 32)), np.ones(2, np.float32)
    with mf.emulated_cuda(check=False, trace=True) as report:
        counted(kernel, x, weight)
    counts = report.counts.values()
    moved = sum(c.global_bytes for c in counts) / x.size
    assert BYTES[kernel] <= moved < 1.1 * BYTES[kernel], moved
    assert sum(c.bank_conflicts for c in counts) == 0


def test_what_does_not_fit_is_an_error(monkeypatch):
    x, ones = values((2, 3, 4, 4)), np.ones(3, np.float32)
    other = dict(mean=ones, variance=ones)
    with pytest.raises(ValueError, match="kernel='2_parts' is a CUDA kernel and x a NumPy array"):
        batch_norm(x, ones, ones, kernel="2_parts")
    with mf.emulated_cuda():
        with pytest.raises(ValueError, match="no kernel named '4_magic'; there are 1_three_passes"):
            batch_norm(x, ones, ones, kernel="4_magic")
        with pytest.raises(ValueError, match="running and kernel are for the batch's own mean"):
            batch_norm(x, ones, ones, kernel="2_parts", **other)
        long = np.broadcast_to(x[:1, :, :1, :1], (1, 3, 129, 128))
        message = (
            "'3_registers' takes at most 16384 elements per channel, got 16512; 1_.*, 2_parts can"
        )
        with pytest.raises(ValueError, match=message):
            batch_norm(long, ones, ones, kernel="3_registers")
        monkeypatch.setattr(limits, "INT32", 31)
        for function in (batch_norm, lambda *a: batch_norm(*a, **other)):
            with pytest.raises(ValueError, match=r"batch_norm: N\*H\*W must be at most 31, got 32"):
                function(x, ones, ones)
        with pytest.raises(ValueError, match=r"batch_norm_backward: N\*H\*W must be at most 31"):
            batch_norm_backward(x, x, x, ones, ones, ones)


@pytest.mark.parametrize("way", ["cpu", *WAYS])
def test_running_statistics_that_cannot_be(way):
    x, ones = values((2, 3)), np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"running variance must have shape \(3,\).*got \(2,\)"):
        run(way, trained, x, ones, ones, None, ones, ones[:2])
    with pytest.raises(TypeError, match="two arrays of float32 or two of float64, got float16 and"):
        run(way, trained, x, ones, ones, None, ones.astype("f2"), ones)
    with pytest.raises(ValueError, match="one value per channel has no variance, x of shape"):
        run(way, trained, x[:1], ones, ones, None, ones, ones)


def test_running_statistics_of_any_stride_are_updated_in_place():
    x, ones, running = values((4, 3, 2, 2)), np.ones(3, np.float32), np.ones((3, 2), np.float32)
    with mf.emulated_cuda():
        _, mean, _ = batch_norm(x, ones, ones, running=(running[:, 0], running[:, 1]), momentum=1)
    assert_array_equal(running[:, 0], mean)


def test_no_elements_need_no_kernel():
    x, ones = np.zeros((0, 3, 2, 2), np.float32), np.ones(3, np.float32)
    with mf.emulated_cuda():
        y, *_ = batch_norm(x, ones, ones, mean=ones, variance=ones)
        gradients = batch_norm_backward(x, x, x, ones, ones, ones, fixed=True)
        with pytest.raises(ValueError, match="has no statistics"):
            batch_norm(x, ones, ones)
    assert y.shape == x.shape
    assert_array_equal(gradients[1:3], np.zeros((2, 3)))


@ways
def test_arrays_that_are_not_aligned_take_the_narrow_loads(way):
    x = np.zeros(1 + 2 * 3 * 16, np.float32)[1:].reshape(2, 3, 4, 4)
    x[...] = values(x.shape)
    assert_trained(way, x, None)
    assert_backward(way, x, x, x, True, False)
