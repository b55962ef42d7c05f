import numpy as np
import pytest
import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import WAYS, lay_out, problems, run
from test_convolution import assert_close

import mulfree_cupy as mf
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
@given(problem=problems(dtypes=("uint8",)))
def test_uint8_is_exact(way, problem):
    x, w, bias = problem.x, problem.w, problem.bias
    answer = run(way, mf.adder_conv, x, w, bias, **problem.options)
    assert answer.dtype == np.int32
    assert_array_equal(answer, spec.adder_conv(x, w, bias, **problem.options))


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
