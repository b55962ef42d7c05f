"""The binary convolution, its surrogate gradient, and the low-bit adder that shares its kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, WAYS, lay_out, problems, run
from test_convolution import assert_close

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec

RNG = np.random.default_rng(16)
CHANNELS = [1, 3, 16, 31, 63, 64, 65, 130]
GEOMETRIES = [  # of the kernel, and how it slides
    ((1, 1), {}),
    ((1, 1), {"stride": 2, "padding": (0, 1)}),
    ((3, 3), {"padding": 1}),
    ((3, 3), {"stride": 2, "padding": 1}),
    ((3, 3), {"stride": (2, 1), "padding": 3, "dilation": (1, 2)}),
    ((5, 5), {"padding": 2}),
    ((2, 3), {"padding": (3, 0)}),
    ((3, 1), {"padding": (1, 3)}),
]
bits = pytest.mark.parametrize("bits", [1, 2, 3, 4])


def drawn(*shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


def codes(bits, *shape):
    """Also numbers beyond the largest that so many bits hold."""
    return RNG.integers(0, 2**bits + 2, shape).astype(np.uint8)


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems(), scale=st.booleans())
def test_binary_conv_is_its_formula(way, problem, scale):
    x, w, options = problem.x, problem.w, problem.options
    answer = run(way, mf.binary_conv, x, w, scale=scale, **options)
    assert answer.dtype == x.dtype
    expected = spec.binary_conv(x, w, scale=scale, **options)
    if scale:
        assert_allclose(answer, expected, rtol={"f4": 1e-6, "f8": 1e-14}[x.dtype.str[1:]])
    else:
        assert_array_equal(answer, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kernel, options", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_words_are_filled_whatever_the_channels(way, channels, kernel, options, dtype):
    x, w = drawn(2, channels, 6, 9, dtype=dtype), drawn(5, channels, *kernel, dtype=dtype)
    answer = run(way, mf.binary_conv, x, w, scale=False, **options)
    assert_array_equal(answer, spec.binary_conv(x, w, scale=False, **options))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [16, 40])
@pytest.mark.parametrize("groups", [2, 8])
def test_groups(way, channels, groups):
    x, w = drawn(2, channels, 7, 8), drawn(16, channels // groups, 3, 3)
    options = {"padding": 1, "groups": groups, "scale": False}
    answer = run(way, mf.binary_conv, x, w, **options)
    assert_array_equal(answer, spec.binary_conv(x, w, **options))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_x_and_w_in_any_memory_order(way, layout):
    x, w = lay_out(drawn(2, 33, 6, 40), layout), lay_out(drawn(9, 33, 3, 3), layout)
    for options in ({"padding": 1}, {"stride": 2, "padding": 2}):
        answer = run(way, mf.binary_conv, x, w, scale=False, **options)
        assert_array_equal(answer, spec.binary_conv(x, w, scale=False, **options))


SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, -5e-324])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_infinities_and_nan_have_signs(way, dtype):
    values = np.append(SPECIAL, [1e-45, -1e-45]).astype(dtype)
    x, w = RNG.choice(values, (2, 20, 5, 17)), RNG.choice(values, (6, 20, 3, 3))
    answer = run(way, mf.binary_conv, x, w, padding=1, scale=False)
    assert_array_equal(answer, spec.binary_conv(x, w, padding=1, scale=False))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("x, w", [((0, 3, 4, 4), (2, 3, 3, 3)), ((1, 0, 4, 4), (2, 0, 3, 3))])
def test_no_images_or_no_channels(way, x, w):
    answer = run(way, mf.binary_conv, np.ones(x, "f"), np.ones(w, "f"))
    assert_array_equal(answer, np.zeros((x[0], 2, 2, 2)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel, options", GEOMETRIES)
@pytest.mark.parametrize("layout", ["C", "F", "every second"])
@bits
def test_low_bit_adder_is_its_formula(way, kernel, options, layout, bits):
    for channels in (1, 3, 16, 33):
        x = lay_out(codes(bits, 2, channels, 6, 9), layout)
        w, bias = codes(bits, 5, channels, *kernel), RNG.integers(-99, 99, 5)
        bias = bias.astype(np.int32)
        answer = run(way, mf.adder_conv, x, w, bias, bits=bits, **options)
        assert answer.dtype == np.int32
        assert_array_equal(answer, spec.low_bit_adder_conv(x, w, bias, bits=bits, **options))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=20)
@given(problem=problems(dtypes=("uint8",)), bits=st.integers(1, 4), shift=st.integers(0, 7))
def test_low_bit_adder_of_any_problem(way, problem, bits, shift):
    x, w = problem.x >> shift, problem.w >> shift
    answer = run(way, mf.adder_conv, x, w, problem.bias, bits=bits, **problem.options)
    expected = spec.low_bit_adder_conv(x, w, problem.bias, bits=bits, **problem.options)
    assert_array_equal(answer, expected)


@bits
def test_low_bit_adder_of_numbers_that_fit_is_the_uint8_one(bits):
    x, w = (codes(bits, *s) % 2**bits for s in ((2, 20, 9, 9), (8, 20, 3, 3)))
    assert_array_equal(mf.adder_conv(x, w, padding=1, bits=bits), mf.adder_conv(x, w, padding=1))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_backward_is_the_straight_through_estimator(way, scale, problem):
    given = problem.grad(), problem.x, problem.w
    answer = run(way, mf.binary_conv_backward, *given, scale=scale, **problem.options)
    expected = spec.binary_conv_backward(*given, scale=scale, **problem.options)
    for ours, theirs in zip(answer, expected, strict=True):
        assert ours.dtype == problem.x.dtype
        assert_close(ours, theirs, problem.x.dtype)


def test_the_scale_is_differentiated_truly():
    """Where no sign changes, the answer's only slope by w is the scale's: finite differences."""
    x, w, step = drawn(2, 3, 5, 5, dtype="f8"), 3 + drawn(4, 3, 3, 3, dtype="f8"), 1e-6
    w = np.where(abs(w) < 1.5, 1.5, w)  # beyond 1 the estimator is 0
    grad = drawn(2, 4, 3, 3, dtype="f8")
    _, grad_w = mf.binary_conv_backward(grad, x, w)
    for place in [(0, 0, 0, 0), (3, 2, 1, 2)]:
        moved = [w.copy(), w.copy()]
        moved[0][place] -= step
        moved[1][place] += step
        low, high = ((mf.binary_conv(x, m) * grad).sum() for m in moved)
        assert_allclose(grad_w[place], (high - low) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("x, w", [((0, 3, 4, 4), (2, 3, 3, 3)), ((1, 0, 4, 4), (2, 0, 3, 3))])
def test_backward_of_no_images_or_no_channels(x, w):
    given = np.ones((x[0], 2, 2, 2)), np.ones(x), np.ones(w)
    grad_x, grad_w = mf.binary_conv_backward(*given)
    assert_array_equal(grad_x, np.zeros(x))
    assert_array_equal(grad_w, np.zeros(w))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pack_signs(way, channels, layout):
    x = lay_out(RNG.choice(np.append(SPECIAL, [1.0, -2.0]), (3, channels, 5, 7)), layout)
    for dtype in ("float32", "float64", "float16"):
        answer = run(way, mf.pack_signs, x.astype(dtype))
        assert answer.dtype == np.uint64
        assert_array_equal(answer, spec.pack_signs(x.astype(dtype)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (3, 70), (1, 65, 4)])
def test_pack_signs_of_other_shapes(way, shape):
    x = RNG.integers(-2, 2, shape)
    answer = run(way, mf.pack_signs, x)
    assert answer.shape == (shape[0], -(-shape[1] // 64), *shape[2:])
    assert_array_equal(answer, spec.pack_signs(x))


def test_a_word_holds_the_first_channel_in_its_least_bit():
    x = -np.ones((1, 65, 1, 1), np.float32)
    x[0, [0, 63, 64]] = 1
    assert_array_equal(mf.pack_signs(x).ravel(), [1 + 2**63, 1])
    assert mf.pack_signs(x)[:, :, 0, 0].tobytes()[0] == 1  # little-endian


X, W = np.ones((2, 4, 6, 5), np.float32), np.ones((6, 4, 3, 3), np.float32)
BYTES = X.astype(np.uint8), W.astype(np.uint8)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: mf.pack_signs(X[0, 0, 0]), ValueError, r"pack_signs: x must have shape \(N, C"),
        (lambda: mf.pack_signs(X + 1j), TypeError, "pack_signs: x must hold real numbers"),
        (lambda: mf.binary_conv(*BYTES), TypeError, "binary_conv: .*got x uint8, w uint8"),
        (
            lambda: mf.binary_conv(X, mf.pack(W, "conv")),
            ValueError,
            r"binary_conv: w was packed for op='conv', pack\(w, op='binary'\) is needed",
        ),
        (
            lambda: mf.binary_conv(X.astype(float), mf.pack(W, "binary")),
            TypeError,
            "binary_conv: w was packed as float32, and x makes it float64",
        ),
        (
            lambda: mf.binary_conv(X, W, scale=np.ones(4)),
            TypeError,
            "binary_conv: scale must be True .* or False, got ndarray",
        ),
        (lambda: mf.adder_conv(X, W, bits=2), TypeError, "adder_conv: x must be uint8 with bits=2"),
        (
            lambda: mf.adder_conv(BYTES[0], W, bits=2),
            TypeError,
            "adder_conv: w must be uint8 with bits=2, got float32; convert with",
        ),
        (lambda: mf.adder_conv(*BYTES, bits=5), ValueError, "adder_conv: bits must be at most 4"),
        (lambda: mf.adder_conv(*BYTES, bits=0), ValueError, "adder_conv: bits must be at least 1"),
        (lambda: mf.adder_conv(*BYTES, bits=2.0), TypeError, "adder_conv: bits must be an int"),
        (
            lambda: mf.adder_conv(BYTES[0], mf.pack(BYTES[1], "adder", bits=3), bits=2),
            ValueError,
            "adder_conv: w, of shape .* was packed for bits=3, got bits=2",
        ),
        (
            lambda: mf.adder_conv(BYTES[0], mf.pack(BYTES[1], "adder"), bits=2),
            ValueError,
            "adder_conv: w, of shape .* was packed for bits=None, got bits=2",
        ),
        (lambda: mf.pack(W, "adder", bits=2), TypeError, "pack: w must be uint8 with bits=2"),
        (lambda: mf.pack(W, "conv", bits=2), TypeError, "pack: bits is an option for op='adder'"),
        (lambda: mf.pack(W, "winograd", bits=2), TypeError, "pack: bits is an option for op='ad"),
        (lambda: mf.pack(BYTES[1], "binary"), TypeError, "pack: w must be of one of float32, f"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_without_filters_the_answer_is_empty():
    x, w = np.ones((2, 3, 4, 5), np.float32), np.ones((0, 3, 3, 3), np.float32)
    assert mf.binary_conv(x, w).shape == (2, 0, 2, 3)
    grad_x, grad_w = mf.binary_conv_backward(np.ones((2, 0, 2, 3), np.float32), x, w)
    assert not grad_x.any() and grad_w.shape == w.shape


def test_no_gradient_goes_through_where_the_sign_is_saturated():
    x, w = np.array([[[[3.0, -3.0, 1.0]]]]), np.ones((1, 1, 1, 1))
    grad_x, _ = mf.binary_conv_backward(np.array([[[[np.nan, np.inf, 1.0]]]]), x, w)
    assert_array_equal(grad_x.ravel(), [0, 0, 1])


def test_the_scale_of_large_weights_is_finite():
    w = np.full((1, 2, 1, 1), 2.5e38, np.float32)
    assert mf.binary_conv(np.ones((1, 2, 1, 1), np.float32), w, scale=False).item() == 2
    with np.errstate(over="raise"):
        assert mf.pack(w, "binary").scale == np.float32(2.5e38)
