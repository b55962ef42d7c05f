import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import WAYS, lay_out, problems, run
from test_convolution import assert_close

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.ops.adder import adder_conv_sign_backward

RTOL = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-12}


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_adder_conv_is_its_formula(way, problem):
    x, w = problem.x, problem.w
    answer = run(way, mf.adder_conv, x, w, **problem.options)
    assert answer.dtype == x.dtype
    assert_allclose(answer, spec.adder_conv(x, w, **problem.options), rtol=RTOL[x.dtype])


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=20)
@given(problem=problems())
def test_bias_is_added(way, problem):
    x, w, bias = problem.x, problem.w, problem.bias
    answer = run(way, mf.adder_conv, x, w, bias, **problem.options)
    assert_close(answer, spec.adder_conv(x, w, bias, **problem.options), x.dtype)


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems(dtypes=("uint8", "int8", "int16")))
def test_integers_are_exact(way, problem):
    x, w, bias = problem.x, problem.w, problem.bias
    answer = run(way, mf.adder_conv, x, w, bias, **problem.options)
    assert answer.dtype == np.int32
    assert_array_equal(answer, spec.adder_conv(x, w, bias, **problem.options))


GPU_WAYS = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


def assert_within_the_bound_of_halves(answer, x, w, bias=None, **options):
    """16 roundings to 11 bits of what is added up, and those of float32."""
    expected, distance = spec.adder_conv(x, w, bias, **options), -spec.adder_conv(x, w, **options)
    largest = distance if bias is None else distance + abs(bias.astype(float))[:, None, None]
    rounded = 16 * 2.0**-11 * (1 + 16 * 2.0**-11) * distance
    assert answer.dtype == np.float32
    allowed = rounded + (w[0].size / 32 + 4) * 2.0**-24 * largest + 1e-300
    with np.errstate(all="ignore"):  # in rehearsal an answer is what the memory held
        off = (answer - expected) / allowed
    assert_allclose(off, np.zeros(expected.shape), rtol=0, atol=1)


@pytest.mark.parametrize("way", GPU_WAYS)
@given(
    problem=problems(dtypes=("float16",), most=9), scale=st.sampled_from([2**-20, 2**-12, 1, 500])
)
def test_halves_are_within_their_bound(way, problem, scale):
    x, w = ((a * np.float16(scale)).astype(np.float16) for a in (problem.x, problem.w))
    options = problem.options
    answer = run(way, mf.adder_conv, x, w, problem.bias, kernel="7_half2", **options)
    assert_within_the_bound_of_halves(answer, x, w, problem.bias, **options)


@pytest.mark.parametrize("way", GPU_WAYS)
@pytest.mark.parametrize("offset", [0, 100])
def test_long_sums_of_halves_are_within_their_bound(way, offset):
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(1, 512, 3, 3)) + offset).astype(np.float16)
    w = (rng.normal(size=(35, 512, 3, 3)) + offset).astype(np.float16)
    answer = run(way, mf.adder_conv, x, w, padding=1, kernel="7_half2")
    assert_within_the_bound_of_halves(answer, x, w, padding=1)
    # Roundings to nearest go both ways.
    assert_allclose(answer, spec.adder_conv(x, w, padding=1), rtol=1e-3)


@pytest.mark.parametrize("way", GPU_WAYS)
def test_a_matrix_product_of_halves(way):
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(70, 37)).astype(np.float16), rng.normal(size=(37, 41)).astype("f2")
    answer = run(way, mf.adder_matmul, a, b, kernel="7_half2")
    assert_within_the_bound_of_halves(answer[None, :, None], b[None, :, None], a[..., None, None])


@pytest.mark.parametrize("way", GPU_WAYS)
@pytest.mark.parametrize("x, w", [((0, 3, 4, 4), (2, 3, 3, 3)), ((1, 0, 4, 4), (2, 0, 3, 3))])
def test_no_halves(way, x, w):
    bias = np.array([1, 2], np.float16)
    x, w = np.ones(x, np.float16), np.ones(w, np.float16)
    answer = run(way, mf.adder_conv, x, w, bias, kernel="7_half2")
    assert answer.dtype == np.float32
    expected = bias[:, None, None] + np.zeros(answer.shape)
    assert_array_equal(answer, spec.adder_conv(x, w, bias) if w.size else expected)


@pytest.mark.parametrize("way", GPU_WAYS)
@pytest.mark.parametrize(
    "taps, x, w, answer",
    [
        (1, 40000, -20000, -60000),
        (1, 65504, -65504, -np.inf),  # one difference
        (32, 4000, 0, -128000),  # sums of 16, two lanes
        (32, 4200, 0, -np.inf),
        (4608, 2000, -2000, -4608 * 4000),  # the largest numbers that never exceed
        (1, np.inf, 0, -np.inf),
        (1, np.inf, np.inf, np.nan),
        (3, np.nan, 1, np.nan),
    ],
)
def test_what_exceeds_half_precision_is_infinite(way, taps, x, w, answer):
    x, w = np.full((1, taps, 1, 2), x, np.float16), np.full((5, taps, 1, 1), w, np.float16)
    found = run(way, mf.adder_conv, x, w, kernel="7_half2")
    assert_allclose(found, np.full_like(found, answer), rtol=2**-7)


@pytest.mark.parametrize(
    "dtypes, kernel, error, message",
    [
        (("f2", "f2", "f2"), None, TypeError, "common dtype must be float32 or float64, got x fl"),
        (("f2", "f2", "f2"), "1_naive", TypeError, "common dtype must be .*, got x float16"),
        (("f2", "u1", "f2"), "7_half2", TypeError, "common dtype must be .*x float16, w uint8"),
        (("f4", "f2", "f4"), "7_half2", ValueError, "kernel '7_half2' does not take float32"),
        (("f4", "f4", "f4"), "7_half2", ValueError, "kernel '7_half2' does not take float32"),
        (("u1", "u1", "i4"), "7_half2", ValueError, "kernel '7_half2' does not take uint8; 6_u"),
        (("f2", "f2", "f8"), "7_half2", TypeError, "bias .* fits float32 when x is .*got float64"),
        (("f2", "f2", "i4"), "7_half2", TypeError, "bias .* fits float32 when x is .*got int32"),
    ],
)
def test_halves_are_taken_by_the_kernel_for_them_alone(dtypes, kernel, error, message):
    shapes = (1, 3, 4, 4), (2, 3, 3, 3), 2
    x, w, bias = (np.zeros(s, dtype) for s, dtype in zip(shapes, dtypes, strict=True))
    with mf.emulated_cuda(), pytest.raises(error, match=f"adder_conv: .*{message}"):
        mf.adder_conv(x, w, bias, kernel=kernel)


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_backward_is_the_published_surrogate(way, problem):
    grad = problem.grad()
    answer = run(way, mf.adder_conv_backward, grad, problem.x, problem.w, **problem.options)
    expected = spec.adder_conv_backward(grad, problem.x, problem.w, **problem.options)
    for ours, theirs in zip(answer, expected, strict=True):
        assert_close(ours, theirs, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 70)),
    dtype=st.sampled_from(["float32", "float64", "uint8"]),
    layouts=st.tuples(st.sampled_from(["C", "F", "every second"]), st.sampled_from(["C", "F"])),
)
def test_adder_matmul_is_its_formula(way, sizes, dtype, layouts):
    m, length, p = sizes
    rng = np.random.default_rng(sum(sizes))
    a, b = (rng.integers(0, 256, s).astype(dtype) for s in ((m, length), (length, p)))
    a, b = lay_out(a, layouts[0]), lay_out(b, layouts[1])
    assert_array_equal(run(way, mf.adder_matmul, a, b), spec.adder_matmul(a, b))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("taps", [(1, 1), (1, 3), (20, 3), (64, 3)])
def test_a_shared_offset_costs_no_accuracy(way, spread, taps):
    channels, size = taps
    rng = np.random.default_rng(5)
    x = (1000 * spread + rng.normal(size=(1, channels, 9, 7)) * spread).astype(np.float32)
    w = (1000 * spread + rng.normal(size=(5, channels, size, size)) * spread).astype(np.float32)
    expected = spec.adder_conv(x, w, padding=1)
    assert_allclose(run(way, mf.adder_conv, x, w, padding=1), expected, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_shared_offset_costs_the_gradients_no_accuracy(way):
    rng = np.random.default_rng(5)
    x = (1000 + rng.normal(size=(2, 8, 9, 7))).astype(np.float32)
    w = (1000 + rng.normal(size=(5, 8, 3, 3))).astype(np.float32)
    grad = rng.normal(size=(2, 5, 7, 5)).astype(np.float32)
    answer = run(way, mf.adder_conv_backward, grad, x, w)
    for ours, theirs in zip(answer, spec.adder_conv_backward(grad, x, w), strict=True):
        assert_close(ours, theirs, np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_many_taps_stay_accurate(way):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(1, 512, 3, 3)).astype(np.float32)
    w = rng.normal(size=(3, 512, 3, 3)).astype(np.float32)
    expected = spec.adder_conv(x, w, padding=1)
    assert_allclose(run(way, mf.adder_conv, x, w, padding=1), expected, rtol=2e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("place", ["x", "w"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@np.errstate(invalid="ignore")  # inf - inf in the spec's own grad_w
def test_nan_and_inf_go_through(way, dtype, place, value):
    rng = np.random.default_rng(8)
    x, w = rng.normal(size=(2, 3, 8, 8)), rng.normal(size=(4, 3, 3, 3))
    grad = rng.normal(size=(2, 4, 6, 6))
    (x if place == "x" else w)[1, 2, 1, 1] = value
    grad, x, w = (a.astype(dtype) for a in (grad, x, w))
    assert_allclose(run(way, mf.adder_conv, x, w), spec.adder_conv(x, w), rtol=1e-5)
    grad_x, _ = run(way, mf.adder_conv_backward, grad, x, w)
    expected = spec.adder_conv_backward(grad, x, w)[0]
    assert_close(grad_x, expected, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_zero_padding_counts(way):
    x, w = np.full((1, 1, 1, 1), 2.0), np.arange(9.0).reshape(1, 1, 3, 3)
    assert_array_equal(run(way, mf.adder_conv, x, w, padding=1), -(36 - 4 + 2))


def test_out_receives_the_answer():
    x, w = np.ones((1, 2, 4, 4)), np.zeros((3, 2, 3, 3))
    for out in (np.empty((1, 3, 2, 2)), np.empty((1, 3, 2, 4))[..., ::2]):
        assert mf.adder_conv(x, w, out=out) is out
        assert_array_equal(out, -18)
    product = np.empty((2, 5)).T
    assert mf.adder_matmul(np.ones((5, 3)), np.zeros((3, 2)), out=product) is product
    assert_array_equal(product, -3)


@pytest.mark.parametrize("sizes", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_adder_matmul_of_nothing(sizes):
    m, length, p = sizes
    assert_array_equal(
        mf.adder_matmul(np.ones((m, length)), np.ones((length, p))), np.zeros((m, p))
    )


@pytest.mark.parametrize("way", ["cpu", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
@settings(max_examples=20)
@given(problem=problems())
def test_the_sign_gradient_is_its_formula(way, problem):
    grad, x, w = problem.grad(), problem.x, problem.w
    answer = run(way, adder_conv_sign_backward, grad, x, w, **problem.options)
    expected = spec.adder_conv_sign_backward(grad, x, w, **problem.options)
    for ours, theirs in zip(answer, expected, strict=True):
        assert_close(ours, theirs, x.dtype)


@settings(max_examples=20)
@given(problem=problems(dtypes=("float64",)))
def test_the_sign_gradient_is_the_derivative(problem):
    """Within the length of a step that crosses no x = w the adder convolution is linear in w."""
    grad, x, w, options = problem.grad(), problem.x, problem.w, problem.options
    grad_x, slope = adder_conv_sign_backward(grad, x, w, **options)
    assert_array_equal(grad_x, mf.adder_conv_backward(grad, x, w, **options)[0])
    direction = np.random.default_rng(1).choice([-1e-9, 1e-9], size=w.shape)
    change = spec.adder_conv(x, w + direction, **options) - spec.adder_conv(x, w, **options)
    assert_allclose((slope * direction).sum(), (grad * change).sum(), rtol=1e-4, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e30]))
def test_adaptive_rate_is_its_formula(seed, scale):
    grad = scale * np.random.default_rng(seed).normal(size=(4, 3, 3, 3))
    assert_allclose(mf.adaptive_rate(grad), spec.adaptive_rate(grad))
    single = mf.adaptive_rate(grad.astype(np.float32), eta=0.5)
    assert single.dtype == np.float32
    assert_allclose(np.sqrt(np.mean(np.square(single, dtype=float))), 0.5, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_adaptive_rate_hides_no_fault(value):
    assert np.isnan(mf.adaptive_rate(np.array([value, 1.0]))).any()


def test_adaptive_rate_leaves_zeros():
    assert_array_equal(mf.adaptive_rate(np.zeros((2, 3))), np.zeros((2, 3)))
    assert mf.adaptive_rate(np.zeros((0, 3))).shape == (0, 3)
