"""Results are bit-identical for any memory layout and fusion."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal
from problems import LAYOUTS, lay_out, problems, run, shift_problems

import mulfree_cupy as mf
from mulfree_cupy.ops.adder import adder_conv_sign_backward
from mulfree_cupy.ops.winograd import precondition

ways = pytest.mark.parametrize("way", ["cpu", "numpy"])


def channels_last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def layouts(array):
    """The same numbers in some orders of memory."""
    for layout in LAYOUTS[:4] if array.ndim > 1 else ["C", "every second"]:
        yield lay_out(array, layout)
    if array.ndim == 4:
        yield channels_last(array)


def as_tuple(answer):
    return answer if isinstance(answer, tuple) else (answer,)


def assert_same_bits(way, function, *arrays, **options):
    expected = run(way, function, *map(np.ascontiguousarray, arrays), **options)
    for i, array in enumerate(arrays):
        for laid_out in layouts(np.ascontiguousarray(array)):
            answer = run(way, function, *arrays[:i], laid_out, *arrays[i + 1 :], **options)
            for ours, theirs in zip(*map(as_tuple, (answer, expected)), strict=True):
                assert_array_equal(ours, theirs)


def values(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


BOTH = {
    "conv": (mf.conv, mf.conv_backward),
    "adder_conv": (mf.adder_conv, mf.adder_conv_backward),
    "binary_conv": (mf.binary_conv, mf.binary_conv_backward),
    "by the sign": (mf.adder_conv, adder_conv_sign_backward),
}
both = pytest.mark.parametrize(("forward", "backward"), BOTH.values(), ids=BOTH.keys())
SIZES = {  # x, and w: sums in several blocks, of lines and of pixels one after another
    "1x1": ((1, 169, 6, 8), (5, 169, 1, 1)),
    "lines": ((2, 70, 32, 32), (7, 70, 3, 3)),
    "many packed tiles": ((3, 40, 33, 48), (3, 40, 1, 1)),
}
sizes = pytest.mark.parametrize(("x_shape", "w_shape"), SIZES.values(), ids=SIZES.keys())
floats = pytest.mark.parametrize("dtype", ["float32", "float64"])


@sizes
@floats
@both
def test_many_terms(x_shape, w_shape, dtype, forward, backward):
    x, w, padding = values(x_shape, dtype), values(w_shape, dtype, 1), w_shape[2] // 2
    assert_same_bits("cpu", forward, x, w, padding=padding)
    grad = values(forward(x, w, padding=padding).shape, dtype, 2)
    if backward is not adder_conv_sign_backward or x.size < 10_000:
        assert_same_bits("cpu", backward, grad, x, w, padding=padding)


@ways
@both
@settings(max_examples=20)
@given(problem=problems(most=4))
def test_convolutions(way, forward, backward, problem):
    p = problem
    biased = p.bias is not None and forward is not mf.binary_conv
    arrays = [p.x, p.w, p.bias] if biased else [p.x, p.w]
    assert_same_bits(way, forward, *arrays, **p.options)
    assert_same_bits(way, backward, p.grad(), p.x, p.w, **p.options)


SHIFTED = {
    "shift_conv": (mf.shift_conv, mf.conv, mf.shift_conv_backward),
    "shift_adder_conv": (mf.shift_adder_conv, mf.adder_conv, mf.shift_adder_conv_backward),
}


def assert_fused(way, x, w, shifts, fused, convolution, backward, **options):
    """In every layout what `shift` and then a 1x1 convolution give."""

    def in_two_steps(x, w):
        return convolution(mf.shift(x, shifts, **options), w[:, :, None, None])

    in_one = lambda x, w: fused(x, w, shifts, **options)  # noqa: E731
    expected = run(way, in_two_steps, x, w)
    assert_array_equal(run(way, in_one, x, w), expected)
    assert_same_bits(way, in_one, x, w)
    back = lambda grad, x, w: backward(grad, x, w, shifts, **options)  # noqa: E731
    assert_same_bits(way, back, values(expected.shape, x.dtype, 3), x, w)


@pytest.mark.parametrize("functions", SHIFTED.values(), ids=SHIFTED.keys())
@pytest.mark.parametrize("plane", [(6, 8), (32, 32)])
@floats
def test_fused_shifts_of_many_channels(functions, plane, dtype):
    x, w = values((2, 169, *plane), dtype), values((9, 169), dtype, 1)
    assert_fused("cpu", x, w, mf.modulo_shifts(169), *functions)


@ways
@pytest.mark.parametrize("functions", SHIFTED.values(), ids=SHIFTED.keys())
@settings(max_examples=20)
@given(problem=shift_problems())
def test_fused_shifts(way, functions, problem):
    assert_fused(way, problem.x, problem.w, problem.shifts, *functions, stride=problem.stride)


@ways
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.2])
def test_winograd(way, m, relu, density):
    x, grad = values((2, 9, 11, 16), "float32"), values((2, 5, 11, 16), "float32", 1)
    weights = mf.WinogradWeights.from_spatial(values((5, 9, 3, 3), "float32", 2), m=m)
    weights, options = weights.prune(density), dict(padding=1, relu=relu)
    assert_same_bits(
        way, lambda x, bias: mf.winograd_conv(x, weights, bias, **options), x, x[0, :5, 0, 0]
    )
    backward = lambda grad, x: mf.winograd_conv_backward(grad, x, weights, **options)  # noqa: E731
    assert_same_bits(way, backward, grad, x)


@pytest.mark.parametrize("shape", [(40, 64, 3, 3), (300, 7)])
@floats
def test_the_adaptive_rate(shape, dtype):
    assert_same_bits("cpu", mf.adaptive_rate, values(shape, dtype))


@pytest.mark.parametrize("m", [2, 4])
@floats
def test_weights_of_winograd(dtype, m):
    def spatial(w):
        return mf.WinogradWeights.from_spatial(w, m).dense

    for shape in ((7, 5, 3, 3), (64, 64, 3, 3), (33, 128, 3, 3)):
        assert_same_bits("cpu", spatial, values(shape, dtype))
        t = m + 2
        assert_same_bits("cpu", precondition, values((t, t, *shape[:2]), dtype))


def test_the_adaptive_rate_with_any_number_of_blas_threads():
    code = (
        "import numpy as np, mulfree_cupy as mf;"
        "g = np.random.default_rng(0).normal(size=(64, 64, 3, 3));"
        "print(mf.adaptive_rate(g).ravel()[0].hex())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        ).stdout
        for threads in "12"
    }
    assert len(answers) == 1
