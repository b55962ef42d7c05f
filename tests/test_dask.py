"""`mulfree_cupy.compat.dask`: answers of the functions themselves, block by block."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import inference, models
from mulfree_cupy.nn.description import network_of

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")
compat = pytest.importorskip("mulfree_cupy.compat.dask")

RNG = np.random.default_rng(18)
SHIFTS = np.array([[0, 1], [1, 0], [-1, 2], [0, 0]])
X = RNG.normal(size=(5, 4, 11, 9)).astype("f")
# The weights and options of each operation.
CALLS = {
    "adder_conv": dict(w=RNG.normal(size=(6, 2, 3, 3)).astype("f"), padding=1, groups=2),
    "binary_conv": dict(w=RNG.normal(size=(6, 2, 3, 3)).astype("f"), padding=1, groups=2),
    "conv": dict(w=RNG.normal(size=(6, 2, 3, 3)).astype("f"), padding=1, groups=2, stride=2),
    "shift": dict(shifts=SHIFTS, stride=2),
    "shift_adder_conv": dict(w=RNG.normal(size=(6, 4)).astype("f"), shifts=SHIFTS),
    "shift_conv": dict(w=RNG.normal(size=(6, 4)).astype("f"), shifts=SHIFTS),
    "winograd_conv": dict(weights=mf.WinogradWeights.from_spatial(RNG.normal(size=(3, 4, 3, 3)))),
}


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def assert_same(got, want):
    """The same bits, but for the float32 adder: its sums go by what is computed beside them."""
    assert got.shape == want.shape and got.dtype == want.dtype
    computed = got.compute()
    if "adder" in got.name and want.dtype == np.float32:
        assert_allclose(computed, want, rtol=4e-6)
    else:
        assert_array_equal(computed, want, strict=True)


def test_every_operation_is_there():
    assert set(compat.__all__) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("chunks", [(5, 4, 11, 9), (2, 4, 11, 9), (3, 3, 4, 5), 1])
def test_answers_are_the_functions_own(name, chunks):
    want = getattr(mf, name)(X, **CALLS[name])
    got = getattr(compat, name)(da.from_array(X, chunks=chunks), **CALLS[name])
    assert got.numblocks[0] == len(da.core.normalize_chunks(chunks, X.shape)[0])
    assert got.numblocks[1] == 1
    assert_same(got, want)


def test_planes_are_cut_where_they_were():
    x = da.from_array(X, chunks=(5, 4, (4, 7), (3, 6)))
    got = compat.conv(x, CALLS["conv"]["w"], padding=1, groups=2)
    assert got.chunks == ((5,), (6,), (4, 7), (3, 6))
    got = compat.shift(x, SHIFTS)
    assert got.chunks == ((5,), (4,), (11,), (9,))


@st.composite
def windows(draw):
    size = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, dilation, groups = draw(pairs), draw(pairs), draw(st.integers(1, 2))
    each = st.integers(0, 3)
    padding = draw(st.one_of(each, st.tuples(each, each), st.tuples(*[st.tuples(each, each)] * 2)))
    if stride == (1, 1):
        padding = draw(st.sampled_from([padding, "same"]))
    chunks = draw(st.tuples(*(st.integers(1, n) for n in (2, 2 * groups, *size))))
    name = draw(st.sampled_from(["adder_conv", "binary_conv", "conv"]))
    dtype = draw(st.sampled_from(["f", "d"] + ["B"] * (name == "adder_conv")))
    options = dict(stride=stride, dilation=dilation, padding=padding, groups=groups)
    return name, size, kernel, chunks, dtype, options


@given(windows(), st.integers(0, 2**32 - 1))
def test_any_window_of_any_blocks(problem, seed):
    name, size, kernel, chunks, dtype, options = problem
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2, 2 * options["groups"], *size)) * 50 + 100).astype(dtype)
    w = (rng.normal(size=(options["groups"], 2, *kernel)) * 50 + 100).astype(dtype)
    lazy = da.from_array(x, chunks=chunks)
    try:
        want = getattr(mf, name)(x, w, **options)
    except ValueError:  # the kernel is larger than the image
        with pytest.raises(ValueError, match=f"{name}: the kernel"):
            getattr(compat, name)(lazy, w, **options)
        return
    assert_same(getattr(compat, name)(lazy, w, **options), want)


def test_lines_and_volumes():
    for shape, chunks in (((2, 3, 40), (1, 3, 7)), ((2, 3, 9, 8, 7), (1, 3, 4, 3, 5))):
        x, w = RNG.normal(size=shape), RNG.normal(size=(4, 3, *(3,) * (len(shape) - 2)))
        got = compat.conv(da.from_array(x, chunks=chunks), w, padding="same")
        assert got.numblocks[2] > 1
        assert_same(got, mf.conv(x, w, padding="same"))


def test_weights_may_be_packed_and_images_in_memory():
    call = CALLS["conv"]
    options = {name: call[name] for name in ("padding", "stride")}
    packed = mf.pack(call["w"], op="conv", groups=2)
    got = compat.conv(X, packed, groups=2, **options)
    assert isinstance(got, da.Array)
    assert_same(got, mf.conv(X, **call))


def test_an_unknown_number_of_images():
    x = da.from_array(X, chunks=(2, 4, 6, 9))
    some, chosen = x[x[:, 0, 0, 0] > 0], X[X[:, 0, 0, 0] > 0]
    for name in ("conv", "winograd_conv"):
        got = getattr(compat, name)(some, **CALLS[name])
        assert_array_equal(got.compute(), getattr(mf, name)(chosen, **CALLS[name]))
    with pytest.raises(ValueError, match=r"conv: only the number of images .*compute_chunk_sizes"):
        compat.conv(x[:, :, x[0, 0, :, 0] > 0], np.ones((1, 4, 1, 1)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: compat.conv(x, X, dilation=2),
            ValueError,
            r"conv: .*kernel .* x has shape \(5, 4, 11, 9\)",
        ),
        (
            lambda x: compat.conv(x, x),
            TypeError,
            r"conv: w is lazy, and only x may be; pass its \.compute\(\)",
        ),
        (lambda x: compat.conv(x, X[:, :, :3, :3], x), TypeError, "conv: bias is lazy, and only x"),
        (lambda x: compat.conv(x[0, 0], X), ValueError, r"conv: x must .*\(11, 9\)"),
        (lambda x: compat.conv(x, X, kernel="1_im2col"), TypeError, r"conv\(\) .*'kernel'"),
        (lambda x: compat.conv(x.astype(object), X), TypeError, "conv: x must hold real numbers"),
        (lambda x: compat.conv(x.astype("f2"), X.astype("f2")), TypeError, "conv: .* x float16"),
        (lambda x: compat.shift(x, SHIFTS[1:]), ValueError, "shift: shifts must have shape"),
        (lambda x: compat.winograd_conv(x, X), TypeError, "winograd_conv: weights must be"),
    ],
)
def test_errors_come_before_anything_is_computed(call, error, message):
    def never(block):
        raise AssertionError("computed")

    with pytest.raises(error, match=message):
        call(da.from_array(X, chunks=2).map_blocks(never, dtype=X.dtype, meta=X[:0]))


@pytest.mark.parametrize("name", CALLS)
def test_a_masked_array_is_refused_at_the_call(name):
    x = da.ma.masked_greater(da.from_array(X, chunks=2), 0)
    for masked in (x, np.ma.masked_greater(X, 0)):
        with pytest.raises(TypeError, match=rf"{name}: x is a masked array; .*da\.ma\.filled"):
            getattr(compat, name)(masked, **CALLS[name])
    with pytest.raises(TypeError, match="shift: x, a dask.array.* is lazy"):
        mf.shift(x, SHIFTS)


def test_images_are_predicted_block_by_block():
    network = network_of(models.build("adder-lenet", size=8), 1, 8)
    predictor = inference.Predictor(network)
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), np.uint8)
    blocks = da.from_array(images, chunks=(20, 1, 8, 8))
    logits = blocks.map_blocks(
        predictor, chunks=(blocks.chunks[0], (10,)), drop_axis=(2, 3), dtype="f4", meta=X[:0, 0, 0]
    )
    for scheduler in ("synchronous", "threads"):
        assert_allclose(logits.compute(scheduler=scheduler), predictor(images), rtol=1e-5)


THREADS = """
import os, threading, dask, dask.array as da, numpy as np, mulfree_cupy as mf
from mulfree_cupy.compat import dask as compat

def threads():
    return len(os.listdir("/proc/self/task"))

{setting}
before, most = threads(), [0]
x = da.ones((8, 16, 40, 40), dtype="f", chunks=(1, 16, 40, 40))

def counted(block):
    most[0] = max(most[0], threads())
    return block

y = compat.adder_conv(x, np.ones((16, 16, 3, 3), "f")).map_blocks(counted, dtype="f")
y.compute(scheduler="threads", num_workers=3)
print(most[0] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
@pytest.mark.parametrize(("setting", "most"), [("mf.set_num_threads(1)", 3), ("", 3 + 3)])
def test_the_scheduler_s_threads_are_not_multiplied(setting, most):
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(setting=setting)],
        env={**os.environ, "MULFREE_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= most


MEMORY = """
import resource, sys
import dask.array as da, numpy as np, mulfree_cupy as mf
from mulfree_cupy.compat import dask as compat

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

x = da.ones((48, 8, 400, 400), dtype="f", chunks=(1, 8, 200, 200))  # of 234 MiB, as the answer
w = np.ones((8, 8, 3, 3), "f")
compat.conv(x[:1], w).sum().compute(num_workers=2)
before = peak()
total = compat.conv(x, w, padding=1).sum(dtype="d").compute(num_workers=2)
print(peak() - before, total == 48 * 8 * 8 * (3 * 400 - 2) ** 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_more_than_memory_would_hold():
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown, right = done.stdout.split()
    assert float(grown) < 60 and right == "True"
