"""The compiled Winograd kernels called directly, at every instruction set this machine has."""

import os
import subprocess
import sys

import numpy as np
import pytest
from problems import sides, unaligned

from mulfree_cupy import formulas as spec

_cpu = pytest.importorskip("mulfree_cupy._cpu")

# N, C, H, W, K, padding
PROBLEMS = {
    "odd sizes": (2, 3, 7, 9, 5, (1, 1)),
    "one number": (1, 1, 1, 1, 1, (1, 1)),
    "one output": (1, 3, 3, 3, 2, (0, 0)),
    "K not a multiple of 4, wide": (2, 5, 33, 34, 9, (0, 2)),
    "full blocks over images": (16, 4, 8, 8, 4, (1, 1)),
    "narrow images": (40, 2, 3, 1, 3, (2, 3)),
    "rows longer than a block": (1, 2, 5, 150, 3, (1, 1)),
    "uneven padding": (2, 5, 7, 33, 9, ((0, 3), (2, 1))),
    "several chunks of channels": (1, 270, 6, 5, 6, (1, 1)),
    "several groups and blocks of filters": (2, 6, 9, 9, 330, (1, 1)),
}
ONE = (1, 1), (1, 1)
LAYOUTS = ["C", "channels last", "reversed", "every second", "unaligned", "broadcast"]
TOLERANCES = {(2, "f"): 3e-6, (4, "f"): 3e-5, (2, "d"): 1e-13, (4, "d"): 1e-13}


@pytest.fixture(params=_cpu.available_features())
def features(request):
    before = _cpu.features()
    _cpu.use_features(request.param)
    yield request.param
    _cpu.use_features(before)


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS.keys())
def problem(request):
    *sizes, padding = request.param
    return *sizes, sides(padding)


def lay_out(array, layout):
    if layout == "channels last":
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if layout == "reversed":
        return np.ascontiguousarray(array[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    if layout == "every second":
        return np.repeat(np.repeat(array, 2, axis=-1), 3, axis=0)[::3, ..., ::2]
    if layout == "unaligned":
        return unaligned(array)
    if layout == "broadcast":
        return np.broadcast_to(array[:1, :, :, :1], array.shape)
    return array


def matrices(m):
    BT, _, AT = spec.WINOGRAD[m]
    return BT.astype(float), AT.astype(float)


def draw(rng, m, problem, dtype, density=0.4):
    n, c, h, w, k, padding = problem
    x = (rng.integers(-32, 32, (n, c, h, w)) / 8).astype(
        dtype
    )  # whose transform is exact, zeros too
    u = rng.normal(size=(m + 2, m + 2, k, c)).astype(dtype)
    u[rng.random(u.shape) >= density] = 0
    return x, u, rng.normal(size=k).astype(dtype), padding


def csr(u, rows=1):
    """indptr, indices and values of u, `rows` filters sharing their places."""
    t, _, k, c = u.shape
    padded = np.zeros((t * t, -(-k // rows) * rows, c), u.dtype)
    padded[:, :k] = u.reshape(t * t, k, c)
    grouped = padded.reshape(-1, rows, c)
    row, column = np.nonzero(grouped.any(axis=1))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(grouped)))])
    return indptr.astype(np.int64), column.astype(np.int32), grouped[row, :, column]


def plan(form, u):
    t, _, k, c = u.shape
    if form == "dense":
        return _cpu.winograd_dense(u)
    if form == "blocks":
        return _cpu.winograd_blocks(*csr(u, 4), (t, k, c))
    indptr, indices, values = csr(u)
    return _cpu.winograd_sparse(indptr, indices, values[:, 0].copy(), (t, k, c))


def out_size(height, width, padding):
    return height + sum(padding[0]) - 2, width + sum(padding[1]) - 2


def run(plan, x, bias, padding, relu, matrices=None, **epilogue):
    n, _, h, w = x.shape
    out = np.full((n, plan.shape[1], *out_size(h, w, padding)), np.nan, x.dtype)
    _cpu.winograd_conv(x, plan, bias, out, padding, relu, matrices, **epilogue)
    return out


def assert_close(got, want, tolerance):
    assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("m, given", [(2, None), (4, None), (4, matrices(4))])
def test_forward_and_gradients(features, problem, m, given, dtype):
    rng = np.random.default_rng(m)
    tolerance = TOLERANCES[m, dtype]
    x, u, bias, padding = draw(rng, m, problem, dtype)
    plans = [plan(form, u) for form in ("dense", "sparse", "blocks")]
    for layout, relu in [(name, True) for name in LAYOUTS] + [("C", False)]:
        seen = lay_out(x, layout)
        want = spec.winograd_conv(seen, u, spec.WINOGRAD[m], bias, padding=padding, relu=relu)
        for p in plans:
            assert_close(run(p, seen, bias, padding, relu, given), want, tolerance)

        grad = lay_out(rng.normal(size=want.shape).astype(dtype), layout)
        want_x, want_u = spec.winograd_conv_backward(
            grad, seen, u, spec.WINOGRAD[m], padding=padding, relu=relu
        )
        grad_x, grad_u = np.full(x.shape, np.nan, dtype), np.full(u.shape, np.nan, dtype)
        _cpu.winograd_conv_grad_x(grad, seen, u, grad_x, padding, relu, given)
        _cpu.winograd_conv_grad_u(grad, seen, grad_u, padding, relu, given)
        assert_close(grad_x, want_x, tolerance)
        assert_close(grad_u, want_u, tolerance)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("m, given", [(2, None), (4, None), (4, matrices(4))])
@pytest.mark.parametrize("form", ["dense", "sparse", "blocks"])
def test_the_residual_and_the_relu_behind_it_are_exact(features, problem, m, given, dtype, form):
    rng = np.random.default_rng(m)
    x, u, bias, padding = draw(rng, m, problem, dtype)
    x[0, 0, 0, 0] = np.nan
    weights = plan(form, u)
    y = run(weights, x, bias, padding, True, given)
    residual = rng.normal(size=y.shape).astype(dtype)
    relu = lambda z: np.where(z < 0, 0, z).astype(dtype)  # noqa: E731
    for epilogue, want in [
        ({"residual": residual}, y + residual),
        ({"relu_of_out": True}, relu(y)),
        ({"residual": residual, "relu_of_out": True}, relu(y + residual)),
    ]:
        got = run(weights, x, bias, padding, True, given, **epilogue)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("m, given", [(2, None), (4, None), (4, matrices(4))])
def test_answers_do_not_depend_on_the_layout(features, problem, m, given):
    """Rows that are read in one piece and pixels that are gathered are the same numbers."""
    rng = np.random.default_rng(m)
    (x, u, bias, padding), answers = draw(rng, m, problem, "f"), set()
    x = rng.normal(size=x.shape).astype("f")
    n, _, h, w = x.shape
    shape = n, len(bias), *out_size(h, w, padding)
    grad = rng.normal(size=shape).astype("f")
    for layout in set(LAYOUTS) - {"broadcast"}:
        seen, flow = lay_out(x, layout), lay_out(grad, layout)
        y = run(plan("sparse", u), seen, bias, padding, True, given)
        grad_x, grad_u = np.empty_like(x), np.empty_like(u)
        _cpu.winograd_conv_grad_x(flow, seen, u, grad_x, padding, True, given)
        _cpu.winograd_conv_grad_u(flow, seen, grad_u, padding, True, given)
        answers.add((y.tobytes(), grad_x.tobytes(), grad_u.tobytes()))
    assert len(answers) == 1


@pytest.mark.parametrize("density", [0, 0.02, 1])
def test_empty_rows_and_full_ones(features, density):
    x, u, bias, padding = draw(np.random.default_rng(1), 2, (2, 140, 6, 6, 70, ONE), "f", density)
    want = spec.winograd_conv(x, u, spec.WINOGRAD[2], bias)
    for form in ("sparse", "blocks"):
        assert_close(run(plan(form, u), x, bias, padding, False), want, 3e-6)
    assert_close(run(plan("sparse", u), x, None, padding, False), want - bias[:, None, None], 3e-6)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("density", [0.02, 0.3, 1])
def test_all_forms_give_the_same_bits(features, problem, m, density):
    rng = np.random.default_rng(5)
    for dtype in ("f", "d"):
        x, u, bias, padding = draw(rng, m, problem, dtype, density)
        x = rng.normal(size=x.shape).astype(dtype)
        answers = [
            run(plan(form, u), x, bias, padding, True) for form in ("dense", "sparse", "blocks")
        ]
        for answer in answers[1:]:
            np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_costs_are_seconds_a_product(features, dtype):
    costs = np.array(_cpu.winograd_costs(dtype))
    assert costs.shape == (3,) and (costs > 0).all() and np.isfinite(costs).all()
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        _cpu.winograd_costs("int8")


def test_indices_in_any_order_duplicates_and_zeros():
    rng = np.random.default_rng(2)
    x, u, _, padding = draw(rng, 2, (1, 200, 4, 4, 6, ONE), "d")
    indptr, indices, values = csr(u)
    values = values[:, 0]
    rows = np.repeat(np.arange(16 * 6), np.diff(indptr))
    rows, indices = np.tile(rows, 3), np.tile(indices, 3)
    values = np.concatenate([values / 4, values * 0, values * 3 / 4])
    order = rng.permutation(len(rows))
    order = order[np.argsort(rows[order], kind="stable")]
    p = _cpu.winograd_sparse(3 * indptr, indices[order], values[order], (4, 6, 200))
    want = spec.winograd_conv(x, u, spec.WINOGRAD[2], relu=True)
    assert_close(run(p, x, None, padding, True), want, 1e-13)


def test_nan_reaches_its_tiles_and_no_other(features):
    x = np.ones((1, 1, 8, 8), np.float32)
    x[0, 0, 5, 5] = np.nan
    u = np.ones((4, 4, 1, 1), np.float32)
    nan = np.isnan(run(plan("sparse", u), x, None, ONE, True)[0, 0])
    assert nan.any() and not nan[:4].any() and not nan[:, :4].any()


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_plan_tells_what_it_is(form):
    p = plan(form, np.ones((6, 6, 3, 5)))
    assert (p.form, p.shape, p.dtype) == (form, (6, 3, 5), "float64")
    assert p.nbytes > 36 * 3 * 5 * 8


@pytest.mark.parametrize(
    "indptr, indices, message",
    [
        ([0, 1], [0], "do not match"),
        ([0] * 16 + [2], [0], "do not match"),
        ([0, 1] + [0] * 14 + [1], [0], "must not decrease"),
        ([0] * 16 + [1], [3], "within the channels"),
        ([0] * 16 + [1], [-1], "within the channels"),
    ],
)
def test_what_would_leave_memory_is_refused(indptr, indices, message):
    arrays = np.array(indptr, np.int64), np.array(indices, np.int32), np.ones(len(indices))
    with pytest.raises(ValueError, match=message):
        _cpu.winograd_sparse(*arrays, (4, 1, 3))


def test_arguments_that_do_not_match_are_refused():
    x, p = np.ones((1, 2, 4, 4)), plan("dense", np.ones((4, 4, 3, 2)))
    good = np.ones((1, 3, 4, 4))
    for out, padding, given in [
        (np.ones((1, 3, 5, 4)), ONE, None),
        (np.ones((1, 2, 4, 4)), ONE, None),
        (good, ((1, 2), (1, 1)), None),
        (good, ONE, matrices(4)),
    ]:
        with pytest.raises(ValueError, match=r"match|belong"):
            _cpu.winograd_conv(x, p, None, out, padding, False, given)
    with pytest.raises(TypeError):
        _cpu.winograd_conv(x.astype("f"), p, None, good, ONE, False, None)


def test_answers_do_not_depend_on_threads():
    script = (
        "import hashlib, numpy as np; from mulfree_cupy import _cpu;"
        "rng = np.random.default_rng(3);"
        "x, u, g = (rng.normal(size=s).astype('f') for s in ((3, 150, 19, 19), (4, 4, 130, 150),"
        "(3, 130, 19, 19)));"
        "y, dx, du = np.empty_like(g), np.empty_like(x), np.empty_like(u);"
        "_cpu.winograd_conv(x, _cpu.winograd_dense(u), None, y, ((1, 1), (1, 1)), True, None);"
        "_cpu.winograd_conv_grad_x(g, x, u, dx, ((1, 1), (1, 1)), True, None);"
        "_cpu.winograd_conv_grad_u(g, x, du, ((1, 1), (1, 1)), True, None);"
        "print(hashlib.sha256(y.tobytes() + dx.tobytes() + du.tobytes()).hexdigest())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for threads in ("1", "2", "7")
    }
    assert len(answers) == 1
