"""Weights in the Winograd domain: pruning, sparse matrices, files, initial variances."""

import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.ops.winograd import importance, initial_variance, precondition, prune_spatial

TRANSFORMS = [(2, "lavin"), (4, "lavin"), (4, "barabasz")]
RNG = np.random.default_rng(0)
W = RNG.normal(size=(5, 7, 3, 3))
U = RNG.normal(size=(4, 4, 5, 7))
Weights = mf.WinogradWeights


def assert_same(a, b):
    assert (a.m, a.points, a.dtype) == (b.m, b.points, b.dtype)
    assert_array_equal(a.dense, b.dense)
    assert_array_equal(a.mask, b.mask)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_from_spatial_is_its_formula(m, dtype):
    weights = Weights.from_spatial(W.astype(dtype), m, allow_float16=True)
    G = spec.WINOGRAD[m][1]
    assert weights.dtype == dtype and weights.shape == (m + 2, m + 2, 5, 7)
    expected = G @ W.astype(dtype).astype(float) @ G.T
    atol = 10 * np.finfo(dtype).eps
    assert_allclose(weights.dense.transpose(2, 3, 0, 1), expected, rtol=0, atol=atol)


@given(
    density=st.floats(0, 1),
    score=st.sampled_from(["magnitude", "importance"]),
    levels=st.sampled_from([1, 3, 10**6]),
    seed=st.integers(0, 99),
)
def test_pruning_keeps_exactly_the_highest(density, score, levels, seed):
    u = np.random.default_rng(seed).integers(1, levels + 1, size=(4, 4, 3, 5)) / 7
    pruned = Weights.from_dense(u).prune(density, score)
    count = max(1, round(density * u.size))
    assert pruned.nnz == count and pruned.density == count / u.size
    scores = u * importance(2)[:, :, None, None] if score == "importance" else u
    first = np.argsort(-scores.ravel(), kind="stable")[:count]
    assert_array_equal(np.flatnonzero(pruned.mask), np.sort(first))
    assert_array_equal(pruned.dense, np.where(pruned.mask, u, 0))


@given(density=st.floats(0, 1), filters=st.integers(1, 9), block=st.integers(1, 5))
def test_a_block_of_filters_keeps_or_loses_an_entry(density, filters, block):
    u = np.random.default_rng(filters).normal(size=(4, 4, filters, 3))
    pruned = Weights.from_dense(u).prune(density, block=block)
    starts = range(0, filters, block)
    sums = np.stack([abs(u[:, :, k : k + block]).sum(axis=2) for k in starts], axis=2)
    kept = np.stack([pruned.mask[:, :, k : k + block].any(axis=2) for k in starts], axis=2)
    assert kept.sum() == max(1, round(density * sums.size))
    assert sums[kept].min() >= sums[~kept].max(initial=0)
    assert_array_equal(pruned.mask, np.repeat(kept, block, axis=2)[:, :, :filters])
    assert_array_equal(pruned.prune(1, block=block).mask, pruned.mask)


def test_pruning_again_is_a_subset_and_never_restores():
    half = Weights.from_dense(U).prune(0.5)
    assert_same(half.prune(0.9), half)
    assert_same(half.prune(0.2), Weights.from_dense(U).prune(0.2))


def test_a_kept_weight_may_be_zero():
    """In training a mask says what is pruned, and a weight that passes zero is not."""
    weights = Weights.from_dense(np.zeros((4, 4, 2, 2)), np.ones((4, 4, 2, 2)))
    assert weights.density == 1 and weights.matrices[3].nnz == 4
    assert weights.prune(0.5).nnz == 32


def test_the_weights_are_the_objects_own():
    u = U.copy()
    weights = Weights.from_dense(u)
    u[...] = 0
    assert_array_equal(weights.dense, U)
    matrix = weights.matrices[3]
    for array in (weights.dense, weights.mask, matrix.data, matrix.indices, matrix.indptr):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_importance_is_the_noise_gain():
    gain = [[2, 8**0.5, 8**0.5, 2], [8**0.5, 4, 4, 8**0.5]]
    assert_allclose(importance(2), [*gain, *gain[::-1]])


@pytest.mark.parametrize("points", ["lavin", "barabasz"])
@given(seed=st.integers(0, 99), density=st.sampled_from([0.0, 0.2, 1.0]))
def test_sparse_matrices_go_out_and_in(points, seed, density):
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(6, 6, 4, 3)) * (rng.random((6, 6, 4, 3)) < density)
    weights = Weights.from_dense(u, points=points)
    assert_array_equal([m.toarray() for m in weights.matrices], u.reshape(36, 4, 3))
    assert all(isinstance(m, sparse.csr_array) for m in weights.matrices)
    assert_same(Weights.from_sparse(weights.matrices, u.shape, points=points), weights)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array])
def test_any_sparse_format_is_taken(kind):
    matrices = [kind(u) for u in U.reshape(16, 5, 7)]
    assert_same(Weights.from_sparse(matrices, U.shape), Weights.from_dense(U))


def test_sparse_matrices_are_brought_into_order():
    """Unsorted, with a duplicate, a stored zero, and two entries that cancel."""
    data = np.array([5.0, 1.0, 2.0, 0.0, 3.0, -3.0])
    indices, indptr = np.array([2, 0, 0, 1, 2, 2]), np.array([0, 4, 6])
    messy = sparse.csr_array((data, indices, indptr), shape=(2, 3))
    weights = Weights.from_sparse([messy] * 16, (4, 4, 2, 3))
    assert_array_equal(weights.dense[0, 0], [[3, 0, 5], [0, 0, 0]])
    assert weights.nnz == 32 and not weights.matrices[0].indices[2:].size
    assert messy.nnz == 6  # the caller's is unchanged


def test_files_hold_everything_and_scipy_reads_them(tmp_path):
    for m, points in TRANSFORMS:
        weights = Weights.from_spatial(W.astype(np.float32), m, points=points).prune(0.3)
        weights.save(tmp_path / "layer.npz")
        assert_same(Weights.load(tmp_path / "layer.npz"), weights)
        stacked = sparse.load_npz(tmp_path / "layer.npz")
        assert_array_equal(stacked.toarray(), weights.dense.reshape(-1, 7))


@pytest.mark.parametrize("name", ["layer", "layer.npz", "layer.v2"])
def test_a_file_has_the_name_that_it_was_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = Weights.from_dense(U).prune(0.5)
    weights.save(name)
    assert os.listdir() == [name]
    assert_same(Weights.load(name), weights)


@pytest.mark.parametrize("content", ["picture", "pickled", "other zip"])
def test_nobody_is_told_to_unpickle(content, tmp_path):
    path = tmp_path / "other.npz"
    if content == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif content == "pickled":
        np.savez(path, winograd_shape=np.array([{}], dtype=object))
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("winograd_shape", "4, 4, 1, 1")
    with pytest.raises(ValueError, match="other.npz is not a WinogradWeights file") as caught:
        Weights.load(path)
    assert "pickle" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "other.npz"
    message = "WinogradWeights.load: .*other.npz is not a WinogradWeights file, or is damaged"
    Weights.from_dense(U).prune(0.5).save(path)
    whole, saved = path.read_bytes(), dict(np.load(path))
    for content in (b"", b"text", whole[:-100], np.zeros(3).tobytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Weights.load(path)
    for changed in (
        {"winograd_shape": [4, 4, 7, 7]},
        {"winograd_points": "x"},
        {"indices": saved["indices"] - 1},
        {"indices": saved["indices"] + 1},
        {"indptr": saved["indptr"][:-1]},
        {"data": saved["data"].astype(complex)},
    ):
        np.savez(path, **{**saved, **changed})
        with pytest.raises(ValueError, match=message):
            Weights.load(path)
    np.savez(path, data=W)
    with pytest.raises(ValueError, match=f"{message}.*winograd_shape"):
        Weights.load(path)
    with pytest.raises(FileNotFoundError):
        Weights.load(tmp_path / "none.npz")


def test_copies_drop_the_packed_forms():
    weights = Weights.from_dense(U).prune(0.5)
    mf.winograd_conv(np.ones((1, 7, 4, 4)), weights)
    assert_same(pickle.loads(pickle.dumps(weights)), weights)


@pytest.mark.parametrize("shape", [(4, 4, 0, 3), (4, 4, 3, 0), (6, 6, 0, 0)])
def test_weights_of_nothing(shape):
    weights = Weights.from_dense(np.zeros(shape))
    assert weights.density == 0 and weights.prune(0.5).nnz == 0
    assert [m.shape for m in weights.matrices] == [shape[2:]] * shape[0] ** 2
    x = np.ones((2, shape[3], 5, 5))
    y = mf.winograd_conv(x, weights, np.full(shape[2], 3.0))
    assert_array_equal(y, np.full((2, shape[2], 5, 5), 3.0))
    grad_x, grad_u = mf.winograd_conv_backward(y, x, weights)
    assert not grad_x.any() and grad_x.shape == x.shape and grad_u.shape == shape


@pytest.mark.parametrize(("m", "points"), TRANSFORMS)
@pytest.mark.parametrize("relu", [False, True])
def test_the_initial_variance_keeps_the_scale(m, points, relu):
    channels, filters = 64, 64
    rng = np.random.default_rng(1)
    variance = initial_variance(channels, m, relu=relu, points=points)
    u = rng.normal(size=(m + 2, m + 2, filters, channels)) * variance[:, :, None, None] ** 0.5
    x = rng.normal(size=(4, channels, 16, 16))
    if not relu:  # U = G g G^T of He's g; entries of one kernel are not independent
        u = Weights.from_spatial(
            rng.normal(size=(filters, channels, 3, 3)) * (2 / 9 / channels) ** 0.5, m, points=points
        ).dense
        assert_allclose(u.var(axis=(2, 3)), variance, rtol=0.15)
    y = mf.winograd_conv(
        x if relu else np.maximum(x, 0), Weights.from_dense(u, points=points), relu=relu, padding=0
    )
    # The outputs that whole tiles give.
    y = y[:, :, : 12 // m * m, : 12 // m * m]
    assert_allclose(np.mean(y**2), 1, rtol=0.15)


def test_the_published_initial_variance_of_the_relu_layer():
    assert_allclose(initial_variance(10, relu=True), np.full((4, 4), 1 / 180))


@pytest.mark.parametrize(("m", "points"), TRANSFORMS)
def test_a_preconditioned_step_is_a_step_of_the_spatial_kernel(m, points):
    x, grad = RNG.normal(size=(2, 7, 6, 5)), RNG.normal(size=(2, 5, 6, 5))
    weights = Weights.from_spatial(W, m, points=points)
    _, grad_w = mf.conv_backward(grad, x, W, padding=1)
    _, grad_u = mf.winograd_conv_backward(grad, x, weights)
    stepped = Weights.from_spatial(W - 0.1 * grad_w, m, points=points)
    ours = weights.dense - 0.1 * precondition(grad_u, points=points)
    assert_allclose(ours, stepped.dense, atol=1e-10)


def test_spatial_pruning_keeps_exactly_the_largest():
    w = np.array([[1.0, -3.0, 3.0], [-1.0, 0.5, np.inf]], np.float32)
    assert_array_equal(prune_spatial(w, 0.5), np.float32([[0, -3, 3], [0, 0, np.inf]]))
    assert np.count_nonzero(prune_spatial(w, 0.0)) == 1
    assert prune_spatial(w, 1).dtype == np.float32


BAD = [
    (lambda: mf.winograd_matrices(3), ValueError, "winograd_matrices: no transform for m=3 .*m=2"),
    (lambda: mf.winograd_matrices(2, points="barabasz"), ValueError, "points='barabasz'; there"),
    (lambda: mf.winograd_matrices(2, points=[0, 1]), ValueError, r"points=\[0, 1\]; there are m=2"),
    (lambda: mf.winograd_matrices(2.0), TypeError, "winograd_matrices: m must be an int, got 2.0"),
    (lambda: importance(5), ValueError, "importance: no transform for m=5"),
    (lambda: initial_variance(1.5), TypeError, "initial_variance: channels must be an int, got 1"),
    (lambda: initial_variance(1, 3), ValueError, "initial_variance: no transform for m=3"),
    (lambda: initial_variance(0), ValueError, "initial_variance: channels must be at least 1"),
    (lambda: Weights.from_spatial(W[0]), ValueError, r"from_spatial: w must have 4 dim.*\(7, 3, 3"),
    (lambda: Weights.from_spatial(U), ValueError, r"w must have shape \(4, 4, 3, 3\)"),
    (lambda: Weights.from_spatial(W, 6), ValueError, "from_spatial: no transform for m=6"),
    (lambda: Weights.from_spatial(W.astype(int)), TypeError, "from_spatial: .*got w int64"),
    (lambda: Weights.from_spatial(W.astype("f2"), 4), ValueError, r"float16 .*\(6, 6, 5, 7\)"),
    (lambda: Weights.from_spatial(W, 4).astype(np.float16), ValueError, "astype: .* float16"),
    (lambda: Weights.from_dense(W), ValueError, r"from_dense: u must have .*t = 4 or 6, got \(5,"),
    (lambda: Weights.from_dense(U[0]), ValueError, "from_dense: u must have 4 dimensions"),
    (lambda: Weights.from_dense(U, points="x"), ValueError, "from_dense: no transform for .*'x'"),
    (lambda: Weights.from_dense(U, U[0]), ValueError, r"mask must have shape \(4, 4, 5, 7\)"),
    (lambda: Weights.from_dense(None), TypeError, "from_dense: u is no array, got a NoneType"),
    (lambda: Weights.from_sparse(None, U.shape), TypeError, "matrices must be a seq.*got NoneType"),
    (lambda: Weights.from_sparse([], (0, 0, 3, 3)), ValueError, r"shape must be \(t, t, K, C\) wi"),
    (lambda: Weights.from_sparse([], (4, 4)), ValueError, r"shape must have .* \(t, t, K, C\)"),
    (lambda: Weights.from_sparse([U[0, 0]] * 16, U.shape), TypeError, r"matrices\[0\] must be a S"),
    (
        lambda: Weights.from_sparse([sparse.eye_array(3, dtype=int)] * 16, (4, 4, 3, 3)),
        TypeError,
        r"matrices\[0\] must be float32 or float64, got dtype int64 and shape \(3, 3\)",
    ),
    (
        lambda: Weights.from_sparse([sparse.eye_array(3)] * 15, (4, 4, 3, 3)),
        ValueError,
        r"from_sparse: shape \(4, 4, 3, 3\) needs 16 matrices, got 15",
    ),
    (
        lambda: Weights.from_sparse([sparse.eye_array(3)] * 16, (4, 4, 3, 4)),
        ValueError,
        r"from_sparse: matrices\[0\] must have shape \(3, 4\) .*got \(3, 3\)",
    ),
    (lambda: Weights.from_dense(U).prune(1.1), ValueError, "density must be from 0 to 1, got 1.1"),
    (lambda: Weights.from_dense(U).prune(np.nan), ValueError, "must be from 0 to 1, got nan"),
    (lambda: Weights.from_dense(U).prune("all"), TypeError, "prune: density must be a number"),
    (lambda: Weights.from_dense(U).prune(0.5, "size"), ValueError, "score must be 'magnitude' or"),
    (lambda: Weights.from_dense(U).prune(0.5, block=0), ValueError, "block must be at least"),
    (lambda: Weights.from_dense(U).prune(0.5, block=2.5), TypeError, "block must be an int"),
    (lambda: Weights.from_dense(U * np.nan).prune(0.5), ValueError, r"\(4, 4, 5, 7\) hold NaN"),
    (lambda: prune_spatial(W, -1), ValueError, "prune_spatial: density must be from 0 to 1"),
    (lambda: prune_spatial(W.astype(int), 1), TypeError, "prune_spatial: .*got w int64"),
    (lambda: precondition(np.ones((5, 5, 1, 1))), ValueError, "precondition: no transform for m=3"),
    (lambda: precondition(W), ValueError, r"precondition: grad_u must have shape \(5, 5, 3, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_float16_is_admitted_where_it_is_exact_enough_or_wanted():
    half = W.astype(np.float16)
    assert Weights.from_spatial(half).dtype == Weights.from_spatial(half.astype(">f2")).dtype
    assert Weights.from_spatial(half).dtype == np.float16
    weights = Weights.from_spatial(half, 4, allow_float16=True)
    assert weights.prune(0.5).dtype == np.float16  # the wish stays with the weights
    with pytest.raises(TypeError, match=r"winograd_conv: .*got x float16, weights float16"):
        mf.winograd_conv(np.ones((1, 7, 4, 4), np.float16), weights)
    assert mf.winograd_conv(np.ones((1, 7, 4, 4), np.float32), weights).dtype == np.float32


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    weights = Weights.from_dense(np.ones((4, 4, 2, 2), np.float32))
    monkeypatch.setitem(sys.modules, "scipy", None)
    image = np.ones((1, 2, 4, 4), np.float32)
    for needs_it in (
        lambda: weights.matrices,
        lambda: Weights.from_sparse([], (4, 4, 2, 2)),
        lambda: mf.winograd_conv(image, weights, kernel="scipy"),
    ):
        with pytest.raises(ImportError, match=r"SciPy's; pip install 'mulfree_cupy\[train\]'"):
            needs_it()
