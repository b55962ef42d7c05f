from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, paddings, run, sides

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy import launch
from mulfree_cupy.ops.winograd import convolution
from mulfree_cupy.ops.winograd.convolution import KERNELS, fastest

WAYS = ["cpu", "numpy"]
TRANSFORMS = [(2, "lavin"), (4, "lavin"), (4, "barabasz")]
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
def problems(draw, relu=(False, True), transforms=TRANSFORMS):
    """A layer of awkward sizes; none or all of its weights are pruned, or whole rows, positions."""
    m, points = draw(st.sampled_from(transforms))
    padding = draw(paddings())
    size = [max(1, 3 - sum(p)) + draw(st.integers(0, 11)) for p in sides(padding)]
    batch, channels, filters = (draw(st.integers(1, most)) for most in (3, 7, 9))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.normal(size=(filters, channels, 3, 3))
    G = mf.winograd_matrices(m, points=points)[1]
    u = np.einsum("ia,kcab,jb->ijkc", G, w, G)
    u[rng.random(u.shape) >= draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))] = 0
    u[:, :, rng.random(filters) < draw(st.sampled_from([0.0, 0.3]))] = 0
    u[rng.random(u.shape[:2]) < draw(st.sampled_from([0.0, 0.3]))] = 0
    # In sixteenths: float32 transforms it exactly, so that all agree on which V are above 0.
    x = np.round(rng.normal(size=(batch, channels, *size)) * 16).astype(dtype) / 16
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
    rng = np.random.default_rng(1)
    x = x + 0.01 * rng.normal(size=x.shape)  # off the kinks
    grad_x, grad_u = spec.winograd_conv_backward(grad, x, u, problem.matrices, **problem.options)
    dx, du = 1e-7 * rng.normal(size=x.shape), 1e-7 * rng.normal(size=u.shape)

    def loss(x, u):
        return (spec.winograd_conv(x, u, problem.matrices, **problem.options) * grad).sum()

    scale = 1e-7 * np.sqrt(x.size * u.size) * 100
    assert_allclose(loss(x + dx, u) - loss(x - dx, u), 2 * (grad_x * dx).sum(), atol=1e-4 * scale)
    assert_allclose(loss(x, u + du) - loss(x, u - du), 2 * (grad_u * du).sum(), atol=1e-4 * scale)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_stay_within_the_table(m, dtype):
    """At the size of a real layer, relative to the size of the answer."""
    rng = np.random.default_rng(2)
    x = np.maximum(rng.normal(size=(1, 64, 14, 14)), 0).astype(dtype)
    w = (rng.normal(size=(64, 64, 3, 3)) * (2 / 9 / 64) ** 0.5).astype(dtype)
    answer = mf.winograd_conv(x, mf.WinogradWeights.from_spatial(w, m))
    assert_close(answer, spec.conv(x, w, padding=1), m, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_bands_of_tiles_meet(way, monkeypatch):
    """As many bands as images, or as rows of tiles, give the answer of one."""
    rng = np.random.default_rng(3)
    x, weights = rng.normal(size=(3, 4, 9, 11)), mf.WinogradWeights.from_dense(
        rng.normal(size=(4, 4, 5, 4))
    )  # fmt: skip
    y = run(way, mf.winograd_conv, x, weights, relu=True)
    gradients = run(way, mf.winograd_conv_backward, y, x, weights, relu=True)
    for workspace in (1, 40_000, 100_000):
        monkeypatch.setattr("mulfree_cupy.launch.numpy_winograd._WORKSPACE", workspace)
        assert_allclose(run(way, mf.winograd_conv, x, weights, relu=True), y, atol=1e-9)
        again = run(way, mf.winograd_conv_backward, y, x, weights, relu=True)
        for ours, theirs in zip(again, gradients, strict=True):
            assert_allclose(ours, theirs, atol=1e-9)


def test_the_relu_layer_depends_on_where_tiles_begin():
    """A shift of x by one tile moves the answer along; a shift by a pixel gives another."""
    rng = np.random.default_rng(4)
    x, weights = np.zeros((1, 3, 16, 16)), mf.WinogradWeights.from_dense(
        rng.normal(size=(4, 4, 2, 3))
    )  # fmt: skip
    x[:, :, 4:9, 4:9] = rng.normal(size=(1, 3, 5, 5))
    y = mf.winograd_conv(x, weights, relu=True)
    by_two = mf.winograd_conv(np.roll(x, 2, axis=3), weights, relu=True)
    by_one = mf.winograd_conv(np.roll(x, 1, axis=3), weights, relu=True)
    assert_allclose(by_two, np.roll(y, 2, axis=3), atol=1e-12)
    assert np.abs(by_one - np.roll(y, 1, axis=3)).max() > 0.1


def test_the_kernel_with_the_least_to_do_is_chosen(monkeypatch):
    costs = {"dense": 1.0, "sparse": 1.65, "blocks": 1.08}
    monkeypatch.setattr(convolution, "_costs", lambda features, dtype: costs)
    u, rng = np.ones((4, 4, 62, 60)), np.random.default_rng(5)
    shared = np.repeat(rng.random((4, 4, 16, 60)) < 0.4, 4, axis=2)[:, :, :62]
    for mask, kernel in [
        (u, "dense"),
        (rng.random(u.shape) < 0.7, "dense"),
        (rng.random(u.shape) < 0.5, "sparse"),
        (shared, "blocks"),
        (np.zeros(u.shape), "sparse"),
    ]:
        assert fastest(mf.WinogradWeights.from_dense(u, mask)) == kernel


def test_weights_are_counted_once():
    weights = mf.WinogradWeights.from_spatial(np.ones((3, 2, 3, 3), np.float32)).prune(0.3)
    chosen = fastest(weights)
    weights.mask = weights.block_mask = None
    assert fastest(weights) == chosen


def test_costs_are_measured_once_a_process(monkeypatch):
    kernels = launch.cpu_kernels()
    costs = convolution._costs(kernels.features(), "float32")
    monkeypatch.setattr(kernels, "winograd_costs", lambda dtype: 1 / 0)
    assert convolution._costs(kernels.features(), "float32") is costs
    assert set(costs) < set(KERNELS)


@given(problem=problems())
def test_all_compiled_forms_give_the_same_bits(problem):
    """So a choice among them, by costs that were measured, shows in no answer."""
    answers = [
        mf.winograd_conv(problem.x, problem.weights, problem.bias, kernel=kernel, **problem.options)
        for kernel in ("dense", "sparse", "blocks", None)
    ]
    for answer in answers[1:]:
        assert_array_equal(answer, answers[0])


def test_out_receives_the_answer():
    weights = mf.WinogradWeights.from_spatial(np.ones((3, 2, 3, 3)))
    for out in (np.empty((1, 3, 2, 2)), np.empty((1, 3, 2, 4))[..., ::2]):
        assert mf.winograd_conv(np.ones((1, 2, 4, 4)), weights, padding=0, out=out) is out
        assert_array_equal(out, 18)


def test_an_empty_batch_gives_an_empty_answer():
    weights = mf.WinogradWeights.from_spatial(np.ones((3, 2, 3, 3), np.float32))
    y = mf.winograd_conv(np.ones((0, 2, 4, 4), np.float32), weights)
    assert y.shape == (0, 3, 4, 4) and y.dtype == np.float32
    grad_x, grad_u = mf.winograd_conv_backward(y, np.ones((0, 2, 4, 4), np.float32), weights)
    assert grad_x.shape == (0, 2, 4, 4) and not grad_u.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_within_its_tiles(value):
    x, weights = np.ones((1, 2, 8, 8)), mf.WinogradWeights.from_spatial(np.ones((3, 2, 3, 3)))
    x[0, 1, 0, 0] = value
    y = mf.winograd_conv(x, weights)
    assert not np.isfinite(y[..., :2, :2]).all() and np.isfinite(y[..., 4:, 4:]).all()


X = np.ones((2, 4, 6, 5), np.float32)
WEIGHTS = mf.WinogradWeights.from_spatial(np.ones((6, 4, 3, 3), np.float32))
CALLS = {
    "winograd_conv": lambda x=X, weights=WEIGHTS, **options: mf.winograd_conv(
        x, weights, **options
    ),
    "winograd_conv_backward": lambda x=X, weights=WEIGHTS, **options: mf.winograd_conv_backward(
        np.ones((2, 6, 6, 5), np.float32), x, weights, **options
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(x=X[0]), ValueError, r"x must have 4 dimensions .*\(4, 6, 5\)"),
        (dict(x=X[:, :3]), ValueError, r"the 4 channels of weights, got 3.*\(2, 3, 6, 5\)"),
        (dict(weights=WEIGHTS.dense), TypeError, "weights must be WinogradWeights, .*got ndarray"),
        (dict(x=None), TypeError, "x is no array, got a NoneType"),
        (dict(padding=-1), ValueError, "padding must be at least 0"),
        (dict(padding=1.0), TypeError, "padding must be an int, a pair of ints, .*, got 1.0"),
        (dict(x=X[:, :, :2], padding=0), ValueError, r"larger than the padded image.*\(2, 4, 2, 5"),
        (dict(x=X[..., :0]), ValueError, "x must have H >= 1 and W >= 1"),
        (dict(x=np.ma.masked_equal(X, 0)), TypeError, "x is a masked array"),
    ],
)
def test_bad_arguments(name, options, error, message):
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        CALLS[name](**options)


def test_bad_arguments_of_one_direction():
    with pytest.raises(ValueError, match=r"winograd_conv: bias must have shape \(6,\).*\(5,\)"):
        CALLS["winograd_conv"](bias=np.ones(5))
    with pytest.raises(ValueError, match="winograd_conv: no kernel named 'x'; there are dense, sp"):
        CALLS["winograd_conv"](kernel="x")
    with pytest.raises(ValueError, match=r"winograd_conv_backward: grad must have shape .*6, 4, 3"):
        CALLS["winograd_conv_backward"](padding=0)
    for out, message in [
        (np.zeros((2, 6, 6, 4), np.float32), "out must have shape"),
        (np.zeros((2, 6, 6, 5)), "out must have .* dtype float32"),
        (np.zeros((2, 6, 6, 5)).tolist(), "out must be an array"),
    ]:
        with pytest.raises((ValueError, TypeError), match=f"winograd_conv: {message}"):
            CALLS["winograd_conv"](out=out)
    memory = np.ones(600, np.float32)
    x, out = memory[:240].reshape(2, 4, 6, 5), memory[200:560].reshape(2, 6, 6, 5)
    with pytest.raises(ValueError, match=r"winograd_conv: out, .* overlaps the memory of x"):
        CALLS["winograd_conv"](x=x, out=out)
    assert (memory == 1).all()
