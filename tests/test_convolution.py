import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal
from problems import WAYS, problems, run

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.ops import convolution

TOLERANCE = {np.dtype("float32"): 3e-5, np.dtype("float64"): 1e-12}


def assert_close(answer, expected, dtype, term=1):
    """Close relative to the largest entry, at least the largest term: sums of products cancel."""
    assert answer.dtype == dtype
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=term)
    assert_allclose(answer, expected, rtol=0, atol=TOLERANCE[np.dtype(dtype)] * scale)


def without_groups(options):
    return {name: value for name, value in options.items() if name != "groups"}


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_conv_is_its_formula(way, problem):
    x, w, bias = problem.x, problem.w, problem.bias
    answer = run(way, mf.conv, x, w, bias, **problem.options)
    assert_close(answer, spec.conv(x, w, bias, **problem.options), x.dtype)


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_conv_backward_is_its_formula(way, problem):
    grad = problem.grad()
    grad_x, grad_w = run(way, mf.conv_backward, grad, problem.x, problem.w, **problem.options)
    expected = spec.conv_backward(grad, problem.x, problem.w, **problem.options)
    assert_close(grad_x, expected[0], problem.x.dtype)
    assert_close(grad_w, expected[1], problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems(dtypes=("float32", "float64", "uint8")))
def test_im2col_moves_every_window(way, problem):
    options = without_groups(problem.options)
    cols = run(way, mf.im2col, problem.x, kernel_size=problem.w.shape[2:], **options)
    assert cols.dtype == problem.x.dtype
    assert_array_equal(cols, spec.im2col(problem.x, problem.w.shape[2:], **options))


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_col2im_is_the_adjoint_of_im2col(way, problem):
    options = without_groups(problem.options)
    kernel = problem.w.shape[2:]
    shape = spec.im2col(problem.x, kernel, **options).shape
    cols = np.random.default_rng(3).normal(size=shape).astype(problem.x.dtype)
    image = run(way, mf.col2im, cols, x_shape=problem.x.shape, kernel_size=kernel, **options)
    assert_close(image, spec.col2im(cols, problem.x.shape, kernel, **options), problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["bool", "int16", "float16", "int64"])
def test_im2col_takes_any_real_dtype(way, dtype):
    x = np.random.default_rng(0).integers(0, 2, (2, 3, 5, 4)).astype(dtype)
    cols = run(way, mf.im2col, x, kernel_size=(2, 3), padding=1)
    assert cols.dtype == x.dtype
    assert_array_equal(cols, spec.im2col(x, (2, 3), padding=1))


def test_conv_agrees_with_scipy():
    from scipy.signal import correlate2d

    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(1, 1, 9, 7)), rng.normal(size=(1, 1, 3, 2))
    assert_allclose(mf.conv(x, w)[0, 0], correlate2d(x[0, 0], w[0, 0], mode="valid"))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=5)
@given(problem=problems())
def test_an_empty_batch_gives_an_empty_answer(way, problem):
    empty = problem.x[:0]
    answer = run(way, mf.conv, empty, problem.w, problem.bias, **problem.options)
    assert answer.shape[0] == 0
    grad_x, grad_w = run(way, mf.conv_backward, answer, empty, problem.w, **problem.options)
    assert grad_x.shape == empty.shape
    assert_array_equal(grad_w, np.zeros(problem.w.shape))


@pytest.mark.parametrize("way", WAYS)
def test_no_channels_leave_the_bias(way):
    bias = np.array([1.0, -2.0])
    answer = run(way, mf.conv, np.ones((1, 0, 3, 3)), np.ones((2, 0, 2, 2)), bias)
    assert_array_equal(answer, np.broadcast_to(bias[:, None, None], (1, 2, 2, 2)))


@pytest.mark.parametrize("way", ["cpu", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (33, 20, 10), (300, 7, 3), (5, 0, 2), (0, 3, 2)])
def test_matmul_and_its_gradients(way, dtype, sizes):
    rows, length, columns = sizes
    rng = np.random.default_rng(2)
    a, w, grad = (
        rng.normal(size=shape).astype(dtype)
        for shape in ((rows, length), (columns, length), (rows, columns))
    )
    assert_close(run(way, convolution.matmul, a, w.T), a.astype(float) @ w.T, dtype)
    grad_a, grad_b = run(way, convolution.matmul_backward, grad, a, w.T)
    assert_close(grad_a, grad.astype(float) @ w, dtype)
    assert_close(grad_b, a.T.astype(float) @ grad, dtype)


@pytest.mark.parametrize("way", ["cpu", "emulated"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stack", [((2, 3), (2, 3)), ((2, 1), (3,)), ((0,), (1,))])
def test_matmul_of_stacks(way, dtype, stack):
    rng = np.random.default_rng(3)
    a, b = (
        rng.normal(size=(*s, *m)).astype(dtype)
        for s, m in zip(stack, ((40, 5), (5, 6)), strict=True)
    )
    for rows in 40, 2:
        answer = run(way, convolution.matmul, a[..., :rows, :], b)
        assert_close(answer, a[..., :rows, :].astype(float) @ b.astype(float), dtype)
    grad = rng.normal(size=answer.shape).astype(dtype)
    grad_a, grad_b = run(way, convolution.matmul_backward, grad, a[..., :2, :], b)
    assert_close(grad_a, grad.astype(float) @ b.swapaxes(-1, -2), dtype)
    assert_close(grad_b, a[..., :2, :].swapaxes(-1, -2).astype(float) @ grad, dtype)


@pytest.mark.parametrize("rows", [5, 50])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_matmul_lets_what_is_not_finite_through(rows, value):
    a, b = np.ones((rows, 40), "f"), np.ones((30, 40), "f").T
    a[1, 2], b[3, 4] = value, -value
    with np.errstate(invalid="ignore"):
        assert_array_equal(convolution.matmul(a, b), a.astype(float) @ b.astype(float))
        grad = np.ones((rows, 30), "f")
        grad_a, grad_b = convolution.matmul_backward(grad, a, b)
        assert_array_equal(grad_a, grad.astype(float) @ b.T.astype(float))
        assert_array_equal(grad_b, a.T.astype(float) @ grad.astype(float))


@pytest.mark.parametrize("rows", [5, 50])
def test_matmul_of_any_layout_gives_the_same_bits(rows):
    rng = np.random.default_rng(4)
    a, b, grad = (rng.normal(size=s).astype("f") for s in ((rows, 70), (70, 20), (rows, 20)))
    answers = convolution.matmul(a, b), *convolution.matmul_backward(grad, a, b)
    for order in (
        np.asfortranarray,
        lambda m: m[::-1].copy()[::-1],
        lambda m: m.repeat(2, 1)[:, ::2],
    ):
        a, b, grad = map(order, (a, b, grad))
        for same, want in zip(
            (convolution.matmul(a, b), *convolution.matmul_backward(grad, a, b)),
            answers,
            strict=True,
        ):
            assert same.tobytes() == want.tobytes()


@pytest.mark.parametrize("way", ["cpu", "emulated"])
def test_matmul_of_what_is_no_float_is_the_arrays_own(way):
    a, b = np.arange(12).reshape(3, 4), np.arange(8).reshape(4, 2)
    for dtype in np.int64, np.float16:
        answer = run(way, convolution.matmul, a.astype(dtype), b.astype(dtype))
        assert answer.dtype == dtype
        assert_array_equal(answer, a @ b)
    mixed = run(way, convolution.matmul, a, b.astype("f"))
    assert mixed.dtype == np.float64
    assert_array_equal(mixed, a @ b)
    with pytest.raises(ValueError, match="matmul"):
        run(way, convolution.matmul, a, b[:3])


@pytest.mark.parametrize("kernel", ["1_im2col", "2_implicit_conv"])
def test_conv_by_either_kernel(kernel):
    x, w = np.ones((1, 2, 3, 3)), np.ones((1, 2, 3, 3))
    with mf.emulated_cuda():
        assert mf.conv(x, w, kernel=kernel).item() == 18


def test_a_kernel_that_is_none_is_an_error():
    x, w = np.ones((1, 2, 3, 3)), np.ones((1, 2, 3, 3))
    with mf.emulated_cuda(), pytest.raises(ValueError, match="conv: no kernel named '3_fast'"):
        mf.conv(x, w, kernel="3_fast")
    with pytest.raises(ValueError, match="conv: kernel='1_im2col' is a CUDA kernel and x a NumPy"):
        mf.conv(x, w, kernel="1_im2col")
