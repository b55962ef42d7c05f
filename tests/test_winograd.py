from dataclasses import dataclass

import numpy as np
import pytest
import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, run

import mulfree_cupy as mf

WAYS = ["cpu", "numpy"]
TRANSFORMS = [(2, "lavin"), (4, "lavin"), (4, "barabasz")]
KERNELS = ["scipy", "dense", "sparse", "blocks"]
# Largest error over the root mean square of the answer, against float64.
TOLERANCE = {(2, "float32"): 1e-5, (4, "float32"): 1e-4, (2, "float64"): 1e-9, (4, "float64"): 1e-9}


def assert_close(answer, expected, m, dtype):
    assert answer.dtype == dtype
    scale = np.sqrt(np.mean(np.square(expected))) if expected.size else 1
    tolerance = TOLERANCE[m, np.dtype(dtype).name]
    assert_allclose(answer, expected, rtol=tolerance, atol=tolerance * max(scale, 1))


@dataclass
class Problem:
    x: np.ndarray
    w: np.ndarray  # spatial
    u: np.ndarray
    bias: np.ndarray | None
    m: int
    points: str
    options: dict

    @property
    def weights(self):
        return mf.WinogradWeights.from_dense(self.u, points=self.points)

    @property
    def matrices(self):
        return mf.winograd_matrices(self.m, points=self.points)

    def grad(self):
        shape = spec.conv(self.x, self.w, padding=self.options["padding"]).shape
        return np.random.default_rng(7).normal(size=shape).astype(self.x.dtype)


@st.composite
def problems(draw, relu=(False, True)):
    """A layer of awkward sizes; none or all of its weights are pruned, or whole rows, positions."""
    m, points = draw(st.sampled_from(TRANSFORMS))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = [max(1, 3 - 2 * p) + draw(st.integers(0, 11)) for p in padding]
    batch, channels, filters = (draw(st.integers(1, most)) for most in (3, 7, 9))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.normal(size=(filters, channels, 3, 3))
    G = mf.winograd_matrices(m, points=points)[1]
    u = np.einsum("ia,kcab,jb->ijkc", G, w, G)
    u[rng.random(u.shape) >= draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))] = 0
    u[:, :, rng.random(filters) < draw(st.sampled_from([0.0, 0.3]))] = 0
    u[rng.random(u.shape[:2]) < draw(st.sampled_from([0.0, 0.3]))] = 0
    x = rng.normal(size=(batch, channels, *size)).astype(dtype)
    return Problem(
        x=lay_out(x, draw(st.sampled_from(LAYOUTS))),
        w=w.astype(dtype),
        u=lay_out(u.astype(dtype), draw(st.sampled_from(["C", "F", "reversed"]))),
        bias=rng.normal(size=filters).astype(dtype) if draw(st.booleans()) else None,
        m=m,
        points=points,
        options=dict(padding=padding, relu=draw(st.sampled_from(relu))),
    )


@pytest.mark.parametrize("m", [2, 4])
def test_matrices_have_lavins_signs(m):
    for ours, theirs in zip(mf.winograd_matrices(m), spec.WINOGRAD[m], strict=True):
        assert_allclose(ours, theirs, rtol=1e-15)


@pytest.mark.parametrize(("m", "points"), TRANSFORMS)
def test_matrices_compute_a_convolution(m, points):
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=(m + 2, m + 2)), rng.normal(size=(3, 3))
    BT, G, AT = mf.winograd_matrices(m, points=points)
    answer = AT @ ((G @ g @ G.T) * (BT @ d @ BT.T)) @ AT.T
    assert_allclose(answer, spec.conv(d[None, None], g[None, None])[0, 0], rtol=1e-10, atol=1e-12)


def test_matrices_are_the_callers_own():
    mf.winograd_matrices(2)[0][...] = 7
    assert_array_equal(mf.winograd_matrices(2)[0], spec.WINOGRAD[2][0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", KERNELS)
@given(problem=problems())
def test_winograd_conv_is_its_formula(way, kernel, problem):
    answer = run(
        way, mf.winograd_conv, problem.x, problem.weights, problem.bias,
        kernel=kernel, **problem.options,
    )  # fmt: skip
    expected = spec.winograd_conv(
        problem.x, problem.u, problem.matrices, problem.bias, **problem.options
    )
    assert_close(answer, expected, problem.m, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30)
@given(problem=problems(relu=(False,)))
def test_without_relu_it_is_the_convolution(way, problem):
    weights = mf.WinogradWeights.from_spatial(problem.w, problem.m, points=problem.points)
    answer = run(way, mf.winograd_conv, problem.x, weights, **problem.options)
    expected = spec.conv(problem.x, problem.w, padding=problem.options["padding"])
    assert_close(answer, expected, problem.m, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@given(problem=problems())
def test_backward_is_its_formula(way, problem):
    grad, weights = problem.grad(), problem.weights
    grad_x, grad_u = run(
        way, mf.winograd_conv_backward, grad, problem.x, weights, **problem.options
    )
    expected_x, expected_u = spec.winograd_conv_backward(
        grad, problem.x, problem.u, problem.matrices, **problem.options
    )
    assert_close(grad_x, expected_x, problem.m, problem.x.dtype)
    assert_close(grad_u, expected_u * weights.mask, problem.m, problem.x.dtype)


@settings(max_examples=20)
@given(problem=problems())
def test_the_spec_gradients_are_derivatives(problem):
    """Along a short line both the layer in u, always, and in x, off the kinks, are linear."""
    grad, x, u = problem.grad(), problem.x.astype(float), problem.u.astype(float)
    grad_x, grad_u = spec.winograd_conv_backward(grad, x, u, problem.matrices, **problem.options)
    rng = np.random.default_rng(1)
    dx, du = 1e-7 * rng.normal(size=x.shape), 1e-7 * rng.normal(size=u.shape)

    def loss(x, u):
        return (spec.winograd_conv(x, u, problem.matrices, **problem.options) * grad).sum()

    scale = 1e-7 * np.sqrt(x.size * u.size) * 100
    assert_allclose(loss(x + dx, u) - loss(x - dx, u), 2 * (grad_x * dx).sum(), atol=1e-4 * scale)
    assert_allclose(loss(x, u + du) - loss(x, u - du), 2 * (grad_u * du).sum(), atol=1e-4 * scale)
