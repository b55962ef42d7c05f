"""NaN and infinity go where the formulas send them, and nowhere else, whichever way is taken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import WAYS, problems, run, shift_problems

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.ops.adder import adder_conv_sign_backward

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the specs
EXAMPLES = {"emulated": 15}


def with_odd_values(data, *arrays):
    """Copies with a few numbers in each that are not finite, or zero."""
    odd = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0])
    for array in arrays:
        array = np.array(array)
        for value in data.draw(st.lists(odd, max_size=3)):
            array.flat[data.draw(st.integers(0, array.size - 1))] = value
        yield array


def check(way, function, expected, *arrays, **options):
    answers, wanted = run(way, function, *arrays, **options), expected(*arrays, **options)
    if not isinstance(answers, tuple):
        answers, wanted = [answers], [wanted]
    for answer, want in zip(answers, wanted, strict=True):
        tolerance = 2e-4 if answer.dtype == np.float32 else 1e-9
        assert_allclose(answer, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["conv", "adder_conv"])
def test_convolutions(way, name):
    @settings(max_examples=EXAMPLES.get(way, 60))
    @given(problem=problems(most=4), data=st.data())
    def holds(problem, data):
        x, w, grad = with_odd_values(data, problem.x, problem.w, problem.grad())
        options = problem.options
        check(way, getattr(mf, name), getattr(spec, name), x, w, problem.bias, **options)
        backward = f"{name}_backward"
        check(way, getattr(mf, backward), getattr(spec, backward), grad, x, w, **options)
        if name == "adder_conv":
            sign_backward = adder_conv_sign_backward, spec.adder_conv_sign_backward
            check(way, *sign_backward, grad, x, w, **options)

    holds()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["shift_conv", "shift_adder_conv"])
def test_shifted_convolutions(way, name):
    @settings(max_examples=EXAMPLES.get(way, 60))
    @given(problem=shift_problems(), data=st.data())
    def holds(problem, data):
        x, w, grad = with_odd_values(data, problem.x, problem.w, problem.grad(len(problem.w)))
        shifts, stride = problem.shifts, problem.stride
        forward = getattr(mf, name), getattr(spec, name)
        check(way, *forward, x, w, shifts, problem.bias, stride=stride)
        backward = getattr(mf, f"{name}_backward"), getattr(spec, f"{name}_backward")
        check(way, *backward, grad, x, w, shifts, stride=stride)

    holds()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_term_that_is_absent_adds_nothing(way, dtype):
    """Also where padding would give 0 times NaN: a tap outside grad, a pixel outside all
    windows."""
    grad_x = lambda name, *arrays, **options: run(  # noqa: E731
        way, getattr(mf, f"{name}_backward"), *(np.array(a, dtype) for a in arrays), **options
    )[0].ravel()
    one, nan, inf = [[[[1]]]], np.nan, np.inf
    assert_array_equal(
        grad_x("adder_conv", one, [[[[0, nan, 0]]]], [[[[1, 0]]]], dilation=2), [1, 0, 0]
    )
    assert_array_equal(
        grad_x("adder_conv", [[[[1, 1]]]], [[[[inf, 0, 0]]]], [[[[0, inf]]]]), [-1, 1, 1]
    )
    assert_array_equal(
        grad_x("adder_conv", [[[[1, 1]]]], [[[[0, 0, nan]]]], one, stride=2), [1, 0, nan]
    )
    assert_array_equal(grad_x("adder_conv", one, [[[[0, nan]]]], one, stride=2), [1, 0])
    for value in (nan, inf):
        pixels, w = [[[[0, 0, 0]]]], [[[[1, value]]]]
        assert_array_equal(grad_x("conv", [[[[1, 0]]]], pixels, w), [1, value, nan])
        assert_array_equal(grad_x("conv", one, pixels, w, stride=2), [1, value, 0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_winograd_keeps_them_in_their_tiles(way, m, relu, value):
    """Other tiles, filters and channels stay what they were, bit for bit, forwards and back."""
    rng, row, column = np.random.default_rng(1), 6, 9
    shapes = (2, 3, 11, 10), (2, 5, 11, 10), (5, 3, 3, 3)
    x, grad, w = (rng.normal(size=shape).astype("f") for shape in shapes)
    weights = mf.WinogradWeights.from_spatial(w, m=m).prune(0.5)

    def all_three(x, grad):
        y = run(way, mf.winograd_conv, x, weights, relu=relu)
        return y, *run(way, mf.winograd_conv_backward, grad, x, weights, relu=relu)

    y, grad_x, grad_u = all_three(x, grad)

    odd = x.copy()
    odd[1, 2, row, column] = value
    odd_y, _, odd_grad_u = all_three(odd, grad)
    elsewhere = np.ones(y.shape, bool)  # a tile of m x m pixels sees one more on each side
    for i, j in np.ndindex(row + 2, column + 2):
        if -1 <= row - m * i <= m and -1 <= column - m * j <= m:
            elsewhere[1, :, m * i : m * i + m, m * j : m * j + m] = False
    assert_array_equal(odd_y[elsewhere], y[elsewhere])
    assert_array_equal(odd_grad_u[..., :2], grad_u[..., :2])

    odd = grad.copy()
    odd[1, 4, row, column] = value
    _, odd_grad_x, odd_grad_u = all_three(x, odd)
    elsewhere = np.ones(x.shape, bool)
    top, left = row // m * m - 1, column // m * m - 1
    elsewhere[1, :, top : top + m + 2, left : left + m + 2] = False
    assert_array_equal(odd_grad_x[elsewhere], grad_x[elsewhere])
    assert_array_equal(odd_grad_u[:, :, :4], grad_u[:, :, :4])
    assert_array_equal(odd_grad_u[~weights.mask], 0)
