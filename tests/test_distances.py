"""Distances of rows and of windows, by the kernels of every instruction set, NumPy's and CUDA's."""

import contextlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rehearsal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, namespace, on_cpu, run

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy import launch
from mulfree_cupy.launch import limits

kernels = launch.cpu_kernels()
FEATURES = getattr(kernels, "available_features", tuple)()
WAYS = [*FEATURES, "numpy", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
ways = pytest.mark.parametrize("way", WAYS)
DTYPES = ["float32", "float64", "uint8"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "int32": 0}


@contextlib.contextmanager
def features(name):
    before = kernels.features()
    kernels.use_features(name)
    try:
        yield
    finally:
        kernels.use_features(before)


def called(way, function, *arrays, **options):
    if way not in FEATURES:
        return run(way, function, *arrays, **options)
    with features(way):
        return run("cpu", function, *arrays, **options)


def numbers(rng, dtype, *shape):
    if dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.normal(size=shape).astype(dtype)


def drawn(dtype, *shape, seed=0):
    return numbers(np.random.default_rng(seed), dtype, *shape)


def assert_close(answer, expected):
    assert answer.shape == expected.shape
    tolerance = TOLERANCE[answer.dtype.name]
    assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)


def sizes(most):
    """Mostly small; or around the sizes of packed tiles and blocks."""
    return st.one_of(st.integers(0, 9), st.integers(10, most))


@st.composite
def rows(draw, most=60):
    """Two arrays of rows, some of the one rows of the other as well."""
    dtype = draw(st.sampled_from(DTYPES))
    m, p, length = draw(sizes(most)), draw(sizes(most)), draw(sizes(3 * most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    a, b = numbers(rng, dtype, m, length), numbers(rng, dtype, p, length)
    if m:
        copied = rng.random(p) < 0.3
        b[copied] = a[rng.integers(m, size=copied.sum())]
    return tuple(lay_out(array, draw(st.sampled_from(LAYOUTS))) for array in (a, b))


# ---- all distances -------------------------------------------------------------------------------


@ways
@settings(max_examples=30)
@given(given_rows=rows())
def test_pairwise_l1_is_the_formula(way, given_rows):
    answer = called(way, mf.pairwise_l1, *given_rows)
    assert_close(answer, spec.pairwise_l1(*given_rows))


@pytest.mark.parametrize("way", FEATURES)
@dtypes
@pytest.mark.parametrize(
    "shape", [(300, 400, 33), (253, 97, 161), (9, 1000, 500), (1, 500, 1300), (500, 3, 1281)]
)
def test_many_rows_and_long_ones(way, dtype, shape):
    m, p, length = shape
    a, b = drawn(dtype, m, length), drawn(dtype, p, length, seed=1)
    expected = spec.pairwise_l1(a, b)
    assert_close(called(way, mf.pairwise_l1, a, b), expected)
    assert_array_equal(
        called(way, mf.nearest_l1, a, b, k=min(3, p))[1],
        np.argsort(expected, axis=1, kind="stable")[:, :3],
    )


@dtypes
def test_scipy_and_scikit_learn_agree(dtype):
    distance = pytest.importorskip("scipy.spatial.distance")
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    a, b = drawn(dtype, 30, 20), drawn(dtype, 40, 20, seed=1)
    answer = mf.pairwise_l1(a, b)
    assert_close(answer, distance.cdist(a, b, "cityblock"))
    assert_close(answer, pairwise.manhattan_distances(a, b).astype(np.float64))


@pytest.mark.parametrize("way", FEATURES)
@given(given_rows=rows())
def test_a_distance_depends_on_its_two_rows_alone(way, given_rows):
    a, b = given_rows
    if min(len(a), len(b)) < 8:
        return
    answer = called(way, mf.pairwise_l1, a, b)
    assert_array_equal(called(way, mf.pairwise_l1, b, a).T, answer)
    assert_array_equal(called(way, mf.pairwise_l1, a[3:], b[1::2]), answer[3:, 1::2])
    itself = called(way, mf.pairwise_l1, a, a)
    assert_array_equal(np.diagonal(itself), 0)


@pytest.mark.parametrize("way", FEATURES)
def test_close_rows_far_from_zero_keep_their_digits(way):
    """Where the sum of maxima would cancel."""
    a = (1000 + drawn("float32", 60, 300)).astype(np.float32)
    b = (1000 + drawn("float32", 50, 300, seed=1)).astype(np.float32)
    assert_allclose(called(way, mf.pairwise_l1, a, b), spec.pairwise_l1(a, b), rtol=1e-5)


@ways
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_go_through(way, dtype):
    a, b = drawn(dtype, 20, 30), drawn(dtype, 25, 30, seed=1)
    a[3, 4], a[5, 6], b[7, 6], b[8, 0] = np.nan, np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = spec.pairwise_l1(a, b)
        assert_close(called(way, mf.pairwise_l1, a, b), expected)


@pytest.mark.parametrize("way", FEATURES)
def test_numbers_whose_sums_overflow(way):
    a = np.full((5, 10), 3e38, np.float32)
    b = np.full((6, 10), 3e38, np.float32)
    b[2] = -3e38
    answer = called(way, mf.pairwise_l1, a, b)
    assert np.isinf(answer[:, 2]).all()
    assert_array_equal(np.delete(answer, 2, axis=1), 0)


@ways
def test_the_longest_rows_of_bytes(way):
    """Sums of 65536 bytes and more, for which 16 and 24 bits are too few."""
    a, b = np.zeros((5, 70_001), np.uint8), np.full((6, 70_001), 255, np.uint8)
    answer = called(way, mf.pairwise_l1, a, b)
    assert answer.dtype == np.int32
    assert_array_equal(answer, 70_001 * 255)


@dtypes
def test_pairwise_l1_takes_out(dtype):
    a, b = drawn(dtype, 7, 5), drawn(dtype, 6, 5, seed=1)
    expected = mf.pairwise_l1(a, b)
    for out in np.empty_like(expected), np.empty_like(expected.T).T:
        assert mf.pairwise_l1(a, b, out=out) is out
        assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="^pairwise_l1: out must have shape .7, 6. and dtype"):
        mf.pairwise_l1(a, b, out=expected.T.copy())
    with pytest.raises(ValueError, match="^pairwise_l1: out must have shape .7, 6. and dtype"):
        mf.pairwise_l1(a, b, out=expected.astype(np.complex64))


def test_out_over_the_rows_is_refused():
    memory = np.ones(100)
    with pytest.raises(ValueError, match="^pairwise_l1: out, .* overlaps the memory of b"):
        mf.pairwise_l1(np.ones((5, 2)), memory[:10].reshape(5, 2), out=memory[5:30].reshape(5, 5))
    assert_array_equal(memory, 1)


@pytest.mark.parametrize("way", [*FEATURES[-1:], "emulated"])
def test_rows_in_blocks(way, monkeypatch):
    """Rows that do not lie in order are copied in parts; launches are cut to 32 bits."""
    monkeypatch.setattr("mulfree_cupy.ops.distances._COPIED", 500)
    monkeypatch.setattr(limits, "INT32", 1000)
    monkeypatch.setattr(limits, "WORKSPACE", 800)
    a, b = np.asfortranarray(drawn("float32", 30, 20)), drawn("float32", 70, 40)[:, ::2]
    assert_close(called(way, mf.pairwise_l1, a, b), spec.pairwise_l1(a, b))
    distances, indices = called(way, mf.nearest_l1, a, b, k=5)
    assert_close(distances, spec.nearest_l1(a, b, 5)[0])
    assert_array_equal(indices, spec.nearest_l1(a, b, 5)[1])


@pytest.mark.parametrize("way", FEATURES)
@dtypes
def test_the_number_of_threads_changes_no_bit(way, dtype):
    a, b = drawn(dtype, 70, 300), drawn(dtype, 900, 300, seed=1)
    before, answers = mf.get_num_threads(), []
    try:
        for threads in 1, 2, 5:
            mf.set_num_threads(threads)
            nearest = called(way, mf.nearest_l1, a, b, k=20)
            answers.append([called(way, mf.pairwise_l1, a, b), *nearest])
    finally:
        mf.set_num_threads(before)
    for other in answers[1:]:
        for array, expected in zip(other, answers[0], strict=True):
            assert_array_equal(array, expected)


# ---- the nearest ---------------------------------------------------------------------------------


@ways
@settings(max_examples=30)
@given(given_rows=rows(), data=st.data())
def test_nearest_l1_is_what_sorting_all_distances_gives(way, given_rows, data):
    """To the bit of `pairwise_l1`, and of equal distances the first."""
    queries, points = given_rows
    if not len(points):
        return
    k = data.draw(st.integers(1, len(points)))
    distances, indices = called(way, mf.nearest_l1, queries, points, k=k)
    every = called(way, mf.pairwise_l1, queries, points)
    order = np.argsort(every, axis=1, kind="stable")[:, :k]
    assert_array_equal(indices, order)
    assert_array_equal(distances, np.take_along_axis(every, order, axis=1))
    assert indices.dtype == np.int64 and distances.dtype == every.dtype


@pytest.mark.parametrize("way", [*FEATURES, "numpy", "emulated"])
def test_ties_go_to_the_smaller_index(way):
    queries, points = np.zeros((5, 3), np.uint8), np.zeros((600, 3), np.uint8)
    points[::2] = 1
    _, indices = called(way, mf.nearest_l1, queries, points, k=400)
    expected = [*range(1, 600, 2), *range(0, 200, 2)]
    assert_array_equal(indices, np.broadcast_to(expected, (5, 400)))


@pytest.mark.parametrize("way", FEATURES)
def test_nearest_of_one_query_among_many_points(way):
    """Points are shared out among the threads, and their lists put together."""
    query, points = drawn("uint8", 1, 3), drawn("uint8", 50_000, 3, seed=1)
    answer = called(way, mf.nearest_l1, query, points, k=100)
    expected = spec.nearest_l1(query, points, 100)
    for part, other in zip(answer, expected, strict=True):
        assert_array_equal(part, other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["queries", "points"])
def test_nearest_refuses_what_is_not_finite(name, value):
    given = {"queries": drawn("float32", 5, 3), "points": drawn("float32", 6, 3)}
    given[name][2, 1] = value
    with pytest.raises(ValueError, match=f"^nearest_l1: {name} must be finite, got NaN or inf"):
        mf.nearest_l1(**given, k=2)


def test_finite_numbers_whose_sum_is_not():
    points = np.full((4, 2), 3e38, np.float32)
    distances, indices = mf.nearest_l1(points[:1], points, 2)
    assert_array_equal((distances, indices), [[[0, 0]], [[0, 1]]])


def test_a_nan_on_a_device_is_infinitely_far(monkeypatch):
    """There arrays are not looked at, which emulated ones are."""
    monkeypatch.setattr("mulfree_cupy.ops.distances._check_finite", lambda *_: None)
    points = drawn("float32", 6, 3)
    points[2, 1] = np.nan
    distances, indices = run("emulated", mf.nearest_l1, points[:2], points, k=6)
    assert_array_equal(indices[:, -1], 2)
    assert np.isinf(distances[:, -1]).all()


@pytest.mark.parametrize(
    ("k", "error", "why"),
    [
        (7, ValueError, r"k must be at most the number of points, got k=7 and .*\(6, 3\)"),
        (0, ValueError, "k must be at least 1, got 0"),
        (1.5, TypeError, "k must be an int, got 1.5"),
    ],
)
def test_wrong_k(k, error, why):
    with pytest.raises(error, match=f"^nearest_l1: {why}"):
        mf.nearest_l1(drawn("float32", 5, 3), drawn("float32", 6, 3), k)


# ---- templates -----------------------------------------------------------------------------------


@st.composite
def matches(draw):
    dtype, colour = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    size = [draw(st.one_of(st.integers(1, 9), st.integers(10, 60))) for _ in range(2)]
    template = [draw(st.integers(1, n)) for n in size]
    if colour:
        size.append(draw(st.integers(1, 4)))
        template.append(draw(st.integers(1, size[2])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return tuple(
        lay_out(numbers(rng, dtype, *shape), draw(st.sampled_from(LAYOUTS)))
        for shape in (size, template)
    )


@ways
@settings(max_examples=30)
@given(match=matches())
def test_match_template_l1_is_the_formula(way, match):
    answer = called(way, mf.match_template_l1, *match)
    assert_close(answer, spec.match_template_l1(*match))


@pytest.mark.parametrize("way", FEATURES)
@dtypes
def test_large_images(way, dtype):
    image, template = drawn(dtype, 70, 600), drawn(dtype, 30, 45)
    assert_close(
        called(way, mf.match_template_l1, image, template), spec.match_template_l1(image, template)
    )


def test_a_template_is_found_where_scikit_image_finds_it():
    skimage = pytest.importorskip("skimage")
    image = skimage.data.camera()[::2, ::2]
    template = image[60:80, 100:130]
    answer = mf.match_template_l1(image, template)
    theirs = skimage.feature.match_template(image, template)
    assert answer.shape == theirs.shape and answer.min() == 0
    assert answer.argmin() == theirs.argmax() == np.ravel_multi_index((60, 100), answer.shape)
    colour = skimage.data.astronaut()[::4, ::4]
    expected = skimage.feature.match_template(colour, colour[5:9, 7:17]).shape
    assert mf.match_template_l1(colour, colour[5:9, 7:17]).shape == expected


def test_the_stereo_example_runs(tmp_path):
    for package in "skimage", "matplotlib":
        pytest.importorskip(package)
    root, picture = Path(__file__).parents[1], tmp_path / "disparity.png"
    done = subprocess.run(
        [sys.executable, root / "examples/stereo_disparity.py", "--picture", picture],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of the pixels") == 1 + ("not installed" not in done.stdout)
    assert "A patch has moved by 49 pixels as match_template_l1 sees it" in done.stdout
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("image", "template", "why"),
    [
        ((5, 5), (6, 1), r"no larger than the image, got template of shape \(6, 1\)"),
        ((5, 5), (0, 1), "must have at least one element"),
        ((5, 5), (2, 2, 1), r"template must have 2 dimensions \(H, W\)"),
        ((5, 5, 3), (2, 2), r"template must have 3 dimensions \(H, W, D\)"),
        ((5,), (2,), r"image must have 2 dimensions \(H, W\)"),
        ((2, 5, 5, 3), (2, 2), r"image must have 2 dimensions \(H, W\)"),
    ],
)
def test_templates_that_do_not_fit(image, template, why):
    with pytest.raises(ValueError, match=f"^match_template_l1: .*{why}"):
        mf.match_template_l1(np.ones(image), np.ones(template))


# ---- what all refuse -----------------------------------------------------------------------------

CALLS = {  # and the names of the two arrays
    "pairwise_l1": (mf.pairwise_l1, "a", "b"),
    "nearest_l1": (partial(mf.nearest_l1, k=1), "queries", "points"),
    "match_template_l1": (mf.match_template_l1, "image", "template"),
}
calls = pytest.mark.parametrize("name", CALLS)


@calls
def test_dtypes_that_are_not_served(name):
    function, first, second = CALLS[name]
    good = np.ones((3, 2), np.float32)
    for bad in "int64", "float16", "int8":
        with pytest.raises(TypeError, match=f"^{name}: the common dtype must be float32 or float6"):
            function(good.astype(bad), good.astype(bad))
    with pytest.raises(TypeError, match=f"^{name}: {second} must hold real numbers, got dtype obj"):
        function(good, good.astype(object))
    with pytest.raises(TypeError, match=f"^{name}: {first} must hold real numbers, got dtype comp"):
        function(good.astype(complex), good)
    with pytest.raises(TypeError, match=f"^{name}: {first} is a masked array; pass its .data or"):
        function(np.ma.masked_array(good), good)


@calls
def test_mixed_dtypes_are_promoted(name):
    function, *_ = CALLS[name]
    a, b = drawn("uint8", 3, 4), drawn("uint8", 3, 4, seed=1)
    for other, dtype in (("float32", "float32"), ("float64", "float64"), ("uint8", "int32")):
        answer = function(a, b.astype(other))
        distances = answer[0] if isinstance(answer, tuple) else answer
        assert distances.dtype == dtype


@pytest.mark.parametrize("name", ["pairwise_l1", "nearest_l1"])
def test_shapes_that_do_not_fit(name):
    function, first, second = CALLS[name]
    with pytest.raises(
        ValueError,
        match=rf"^{name}: the rows of {first} and {second} must have the same length, got {first} "
        rf"of shape \(3, 2\) and {second} of shape \(4, 3\)",
    ):
        function(np.ones((3, 2)), np.ones((4, 3)))
    with pytest.raises(ValueError, match=rf"^{name}: {first} must have 2 dimensions \(M, L\), got"):
        function(np.ones(3), np.ones((4, 3)))
    with pytest.raises(ValueError, match=rf"^{name}: {second} must have 2 dimensions \(P, L\), go"):
        function(np.ones((4, 3)), np.ones(3))


@calls
def test_sums_of_bytes_that_could_exceed_int32_are_refused(name):
    function, *_ = CALLS[name]
    long = np.broadcast_to(np.uint8(1), (1, 8_421_505))
    with pytest.raises(ValueError, match=f"^{name}: a sum of 8421505 differences of uint8 can exc"):
        function(long, long)


@pytest.mark.gpu
def test_answers_stay_on_the_gpu():
    cupy = namespace("gpu")
    points = cupy.asarray(drawn("float32", 100, 8))
    distances, indices = mf.nearest_l1(points, points, 3)
    assert isinstance(distances, cupy.ndarray) and isinstance(indices, cupy.ndarray)
    assert_array_equal(on_cpu(indices[:, 0]), np.arange(100))


@pytest.mark.skipif(rehearsal.missing() is not None, reason=str(rehearsal.missing()))
def test_nothing_waits_for_the_gpu():
    done = rehearsal.rehearse(
        sys.executable,
        "-c",
        """
import cupy, mulfree_cupy as mf
for dtype in "f", "B":
    x = cupy.ones((100, 9), dtype)
    mf.pairwise_l1(x, x[:50])
    mf.nearest_l1(x, x, 3)
    mf.match_template_l1(x, x[:5, :3])
""",
    )
    assert done.status == 0, done.output
    assert done.calls("launch", name="nearest") and not done.calls("streamSynchronize")
    assert not done.calls("memcpyAsync", direction="DtoH")


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_compiled_kernels_refuse_what_would_leave_memory(seed):
    rng = np.random.default_rng(seed)
    run_them = launch.cpu_kernels()
    if not FEATURES:
        return
    a, b = numbers(rng, "float32", 5, 4), numbers(rng, "float32", 6, 4)
    with pytest.raises(ValueError, match="out must have a row of b for every row of a"):
        run_them.pairwise_l1(a, b, np.empty((6, 5), np.float32))
    with pytest.raises(ValueError, match="must lie side by side"):
        run_them.pairwise_l1(a[:, ::2], b[:, ::2], np.empty((5, 6), np.float32))
    with pytest.raises(ValueError, match="as many answers as queries, and points"):
        run_them.nearest_l1(a, b, np.empty((5, 7), np.float32), np.empty((5, 7), np.int64))
    with pytest.raises(ValueError, match="a number for every place of the template"):
        run_them.match_template_l1(a[None], b[None, :2, :2], np.empty((5, 3), np.float32))
