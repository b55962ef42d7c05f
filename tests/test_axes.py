"""Convolutions along one axis and along three, and of complex numbers."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, WAYS, Problem, lay_out, run

import mulfree_cupy as mf
from mulfree_cupy import autograd, geometry
from mulfree_cupy import formulas as spec
from mulfree_cupy.ops import adder, spatial

FORWARD = {
    "conv": (mf.conv, spec.conv, (1, 3)),
    "adder_conv": (mf.adder_conv, spec.adder_conv, (1, 3)),
    "binary_conv": (lambda x, w, bias, **options: mf.binary_conv(x, w, **options),
                    lambda x, w, bias, **options: spec.binary_conv(x, w, **options), (1,)),
}  # fmt: skip
BACKWARD = {
    "conv": (mf.conv_backward, spec.conv_backward, (1, 3)),
    "adder_conv": (mf.adder_conv_backward, spec.adder_conv_backward, (1, 3)),
    "sign": (adder.adder_conv_sign_backward, spec.adder_conv_sign_backward, (1, 3)),
    "binary_conv": (mf.binary_conv_backward, spec.binary_conv_backward, (1,)),
}
TOLERANCE = {"f": 3e-5, "d": 1e-12, "F": 3e-5, "D": 1e-12}


@st.composite
def problems(draw, axes=(1, 3), dtypes="fd"):
    """Of any padding, stride, dilation, groups and layout."""
    count = draw(st.sampled_from(axes))
    each = lambda one: draw(st.tuples(*count * [one]))  # noqa: E731
    kernel, dilation = each(st.integers(1, 3)), each(st.integers(1, 2))
    end = st.integers(0, 2)
    padding = draw(st.sampled_from([1, "same", "valid", each(end), each(st.tuples(end, end))]))
    stride = 1 if padding == "same" else draw(st.sampled_from([1, 2, each(st.integers(1, 3))]))
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [n + draw(st.integers(0, 4 if count == 3 else 20)) for n in least]
    groups, channels, filters = (draw(st.integers(1, most)) for most in (2, 3, 4))
    rng, dtype = np.random.default_rng(draw(st.integers(0, 99))), draw(st.sampled_from(dtypes))

    def values(*shape):
        real = rng.normal(size=(2, *shape))
        return (real[0] + 1j * real[1] if dtype in "FD" else real[0]).astype(dtype)

    def laid_out(array):
        layout = draw(st.sampled_from(["C", "F", "reversed", "unaligned"]))
        return lay_out(array, layout)

    return Problem(
        x=laid_out(values(draw(st.integers(1, 3)), groups * channels, *size)),
        w=laid_out(values(groups * filters, channels, *kernel)),
        bias=values(groups * filters) if draw(st.booleans()) else None,
        options=dict(stride=stride, padding=padding, dilation=dilation, groups=groups),
    )


def assert_close(answer, expected, dtype):
    assert answer.dtype == dtype
    atol = TOLERANCE[dtype.char] * np.abs(expected).max(initial=1)
    assert_allclose(answer, expected, rtol=0, atol=atol)


def in_parts(drawing):
    """One for all of a volume, or one an output."""
    room = drawing.draw(st.sampled_from([1, 1 << 20]))
    return mock.patch.object(spatial, "_room", lambda x: room)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORWARD)
@settings(max_examples=15)
@given(drawing=st.data())
def test_forward(way, name, drawing):
    function, formula, axes = FORWARD[name]
    problem = drawing.draw(problems(axes))
    arguments = problem.x, problem.w, problem.bias
    with in_parts(drawing):
        answer = run(way, function, *arguments, **problem.options)
    assert_close(answer, formula(*arguments, **problem.options), problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BACKWARD)
@settings(max_examples=15)
@given(drawing=st.data())
def test_backward(way, name, drawing):
    function, formula, axes = BACKWARD[name]
    problem = drawing.draw(problems(axes))
    arguments = problem.grad(), problem.x, problem.w
    with in_parts(drawing):
        answers = run(way, function, *arguments, **problem.options)
    for answer, expected in zip(answers, formula(*arguments, **problem.options), strict=True):
        assert_close(answer, expected, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15)
@given(problem=problems((1, 2, 3), "FD"))
def test_complex_numbers(way, problem):
    arguments = problem.x, problem.w, problem.bias
    answer = run(way, mf.conv, *arguments, **problem.options)
    assert_close(answer, spec.conv(*arguments, **problem.options), problem.x.dtype)

    rng = np.random.default_rng(7)
    grad = rng.normal(size=answer.shape) + 1j * rng.normal(size=answer.shape)
    arguments = grad.astype(problem.x.dtype), problem.x, problem.w
    answers = run(way, mf.conv_backward, *arguments, **problem.options)
    for got, exact in zip(answers, spec.conv_backward(*arguments, **problem.options), strict=True):
        assert_close(got, exact, problem.x.dtype)


def test_rows_are_correlated_as_scipy_does():
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=50), rng.normal(size=8)
    for size in 8, 7:
        w = w[:size]
        same = ((size // 2, (size - 1) // 2),)
        for mode, padding in {"valid": "valid", "full": size - 1, "same": same}.items():
            answer = mf.conv(x[None, None], w[None, None], padding=padding)[0, 0]
            assert_allclose(answer, signal.correlate(x, w, mode))
            answer = mf.conv(x[None, None], w[None, None, ::-1], padding=padding)[0, 0]
            assert_allclose(answer, signal.convolve(x, w, mode))


def test_complex_rows_are_not_conjugated_as_scipys_are():
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 2)).view(complex)[:, 0], rng.normal(size=(8, 2)).view(complex)[:, 0]
    assert_allclose(
        mf.conv(x[None, None], w[None, None])[0, 0], signal.correlate(x, w.conj(), "valid")
    )
    flipped = np.ascontiguousarray(w[::-1])
    assert_allclose(mf.conv(x[None, None], flipped[None, None])[0, 0], np.convolve(x, w, "valid"))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 5)])
def test_images_are_correlated_as_scipy_does(shape):
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(12, 13)), rng.normal(size=shape)
    answer = mf.conv(x[None, None], w[None, None], padding="same")[0, 0]
    assert_allclose(answer, signal.correlate2d(x, w, "same"), atol=1e-12)
    larger_first = tuple((size // 2, (size - 1) // 2) for size in shape)
    answer = mf.conv(x[None, None], w[None, None, ::-1, ::-1], padding=larger_first)[0, 0]
    assert_allclose(answer, signal.convolve2d(x, w, "same"), atol=1e-12)


def test_volumes_are_correlated_as_scipy_does():
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(9, 8, 7)), rng.normal(size=(3, 4, 2))
    padding = tuple((size // 2, (size - 1) // 2) for size in w.shape)
    answer = mf.conv(x[None, None], w[None, None], padding=padding)[0, 0]
    assert_allclose(answer, ndimage.correlate(x, w, mode="constant"))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pytorch_agrees(axes, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, w, bias, grad = (
        (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
        if dtype == np.complex64
        else rng.normal(size=shape).astype(dtype)
        for shape in [(2, 4, *(9, 8, 7)[:axes]), (6, 2, *(3, 2, 3)[:axes]), (6,), ()]
    )
    options = dict(stride=2, padding=1, groups=2)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w)]
    function = getattr(torch.nn.functional, f"conv{axes}d")
    y = function(*tensors, torch.from_numpy(bias), **options)
    assert_allclose(mf.conv(x, w, bias, **options), y.detach().numpy(), rtol=1e-4, atol=1e-4)
    grad = rng.normal(size=y.shape).astype(dtype)
    if dtype == np.complex64:
        grad += 1j * rng.normal(size=y.shape).astype("f")
    y.backward(torch.from_numpy(grad))
    for answer, tensor in zip(mf.conv_backward(grad, x, w, **options), tensors, strict=True):
        assert_allclose(answer, tensor.grad.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["f", "F"])
@pytest.mark.parametrize("size, kernel", [((9,), (3,)), ((5, 6), (3, 2)), ((4, 5, 6), (3, 2, 3))])
def test_out_is_filled_where_it_lies(way, size, kernel, dtype):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(2, 3, *s)).astype(dtype) for s in (size, kernel))
    expected = spec.conv(x, w)
    for layout in set(LAYOUTS) - {"broadcast"}:
        out = lay_out(np.zeros(expected.shape, dtype), layout)

        def filled(x, w, out):
            assert mf.conv(x, w, out=out) is out
            return out

        assert_allclose(run(way, filled, x, w, out), expected, rtol=1e-4, atol=1e-4)


def test_a_row_is_no_copy():
    x = np.ones((2, 3, 9))
    assert np.shares_memory(spatial.as_rows(x), x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", [(3,), (2, 3, 2)])
@pytest.mark.parametrize("op", ["conv", "adder"])
def test_packed_weights_give_the_same_bits(way, kernel, op):
    rng, function = np.random.default_rng(0), mf.conv if op == "conv" else mf.adder_conv
    x, w = rng.normal(size=(2, 4, *(6,) * len(kernel))), rng.normal(size=(6, 2, *kernel))
    answer = run(way, lambda x, w: function(x, mf.pack(w, op=op, groups=2), groups=2), x, w)
    assert_array_equal(answer, run(way, function, x, w, groups=2))


@pytest.mark.parametrize("kernel", [(3,), (2, 3, 2)])
def test_bytes_are_exact(kernel):
    rng = np.random.default_rng(0)
    shapes = (2, 4, *(6,) * len(kernel)), (6, 4, *kernel)
    x, w = (rng.integers(0, 256, shape, np.uint8) for shape in shapes)
    answer = mf.adder_conv(x, w, padding=1)
    assert answer.dtype == np.int32
    assert_array_equal(answer, spec.adder_conv(x, w, padding=1))


@pytest.mark.parametrize("kernel", [(3,), (2, 3, 2)])
def test_gradients_on_the_tape(kernel):
    rng = np.random.default_rng(0)
    shapes = (2, 3, *(5,) * len(kernel)), (4, 3, *kernel), (4,)
    arrays = [rng.normal(size=shape) for shape in shapes]
    autograd.check_gradients(lambda *t: autograd.apply("conv", *t, padding="same"), *arrays)


@pytest.mark.parametrize("kernel", [(3,), (2, 3, 2)])
@pytest.mark.parametrize("x_shape, channels", [((0, 3), 3), ((2, 0), 0)])
def test_of_nothing(kernel, x_shape, channels):
    x, w = np.ones((*x_shape, *(5,) * len(kernel))), np.ones((4, channels, *kernel))
    answer = mf.conv(x, w, np.arange(4.0))
    assert (
        answer.shape
        == spec.conv(np.ones((x_shape[0], 1, *x.shape[2:])), np.ones((4, 1, *kernel))).shape
    )
    assert_array_equal(
        answer, np.broadcast_to(np.arange(4.0).reshape(4, *(1,) * len(kernel)), answer.shape)
    )
    grad_x, grad_w = mf.conv_backward(answer, x, w)
    assert grad_x.shape == x.shape and grad_w.shape == w.shape and not grad_w.any()


def test_the_parts_of_a_volume_are_bounded():
    g = geometry.convolution("conv", (2, 8, 64, 100, 100), (16, 8, 3, 3, 3), padding=1)
    parts = list(spatial._parts(g, 4, 8 << 20))
    assert len(parts) > 20
    for part in parts:
        sizes = np.prod(part.geometry.x_shape), np.prod(part.geometry.out_shape)
        assert 4 * sum(sizes) <= 8 << 20


@pytest.mark.parametrize("function", [mf.im2col, mf.shift], ids=["im2col", "shift"])
def test_what_takes_images_alone_says_so(function):
    with pytest.raises(
        ValueError, match=r"x must have 4 dimensions \(N, C, H, W\), got shape \(1, 2, 9\)"
    ):
        function(np.ones((1, 2, 9)), 3)


def test_wrong_numbers_of_axes():
    x, w = np.ones((2, 3, 4, 5, 6)), np.ones((6, 3, 2, 2, 2))
    with pytest.raises(
        ValueError, match=r"binary_conv: x must have dimensions \(N, C, L\) or \(N, C, H, W\)"
    ):
        mf.binary_conv(x, w)
    with pytest.raises(ValueError, match=r"conv: w must have 5 dimensions .* beside x of shape"):
        mf.conv(x, w[0])
    with pytest.raises(
        TypeError, match=r"conv: stride must be an int or a triple of ints, got \(1, 2\)"
    ):
        mf.conv(x, w, stride=(1, 2))
    with pytest.raises(
        TypeError, match="conv: padding must be an int, a triple of ints, a pair .* 3 axes"
    ):
        mf.conv(x, w, padding=((1, 2), (1, 2)))
    with pytest.raises(
        TypeError, match=r"conv: padding must be an int, a tuple of one, .* got \(1, 2\)"
    ):
        mf.conv(x[:, :, 0, 0], w[:, :, 0, 0], padding=(1, 2))
    with pytest.raises(ValueError, match="conv: x must have L >= 1, got shape"):
        mf.conv(x[:, :, 0, 0, :0], w[:, :, 0, 0])
    with pytest.raises(
        ValueError, match="conv: x must have D >= 1 and H >= 1 and W >= 1, got shape"
    ):
        mf.conv(x[:, :, :0], w)
