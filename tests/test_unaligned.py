"""Arrays whose elements lie at no multiple of their size, in every operation and place."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import WAYS, entered, namespace, on_cpu, on_gpu, unaligned

import mulfree_cupy as mf
from mulfree_cupy.arrays import aligned, is_aligned
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward
from mulfree_cupy.ops.cross_entropy import cross_entropy

RNG = np.random.default_rng(1)
TABLE = np.array([(0, 1), (-1, 0), (0, 0), (1, -1)])
OPTIONS = dict(stride=2, padding=1)


def drawn(*shape):
    return RNG.normal(size=shape)


X, W, GRAD, BIAS, SMALL = (
    drawn(2, 4, 6, 5), drawn(6, 4, 3, 3), drawn(2, 6, 3, 3), drawn(6), drawn(6, 4),
)  # fmt: skip
CALLS = {  # the function, its arrays, whether it takes out=
    "conv": (lambda x, w, b, **o: mf.conv(x, w, b, **OPTIONS, **o), (X, W, BIAS), True),
    "conv_backward": (lambda *a: mf.conv_backward(*a, **OPTIONS), (GRAD, X, W), False),
    "im2col": (lambda x: mf.im2col(x, 3, **OPTIONS), (X,), False),
    "col2im": (
        lambda cols: mf.col2im(cols, X.shape, 3, **OPTIONS), (drawn(2, 36, 9),), False
    ),
    "adder_conv": (lambda x, w, b, **o: mf.adder_conv(x, w, b, **OPTIONS, **o), (X, W, BIAS), True),
    "adder_conv_backward": (lambda *a: mf.adder_conv_backward(*a, **OPTIONS), (GRAD, X, W), False),
    "binary_conv": (lambda x, w, **o: mf.binary_conv(x, w, **OPTIONS, **o), (X, W), True),
    "binary_conv_backward": (
        lambda *a: mf.binary_conv_backward(*a, **OPTIONS), (GRAD, X, W), False
    ),
    "pack_signs": (mf.pack_signs, (X,), False),
    "adder_matmul": (mf.adder_matmul, (SMALL, SMALL.T.copy()), True),
    "adaptive_rate": (mf.adaptive_rate, (W,), False),
    "shift": (mf.shift, (X, TABLE), True),
    "shift_backward": (
        lambda grad, shifts: mf.shift_backward(grad, shifts, X.shape, stride=2),
        (drawn(2, 4, 3, 3), TABLE),
        False,
    ),
    "shift_conv": (mf.shift_conv, (X, SMALL, TABLE), True),
    "shift_conv_backward": (mf.shift_conv_backward, (drawn(2, 6, 6, 5), X, SMALL, TABLE), False),
    "shift_adder_conv": (mf.shift_adder_conv, (X, SMALL, TABLE), True),
    "shift_adder_conv_backward": (
        mf.shift_adder_conv_backward, (drawn(2, 6, 6, 5), X, SMALL, TABLE), False
    ),
    "winograd_conv": (
        lambda x, w, b, **o: mf.winograd_conv(x, mf.WinogradWeights.from_spatial(w), b, **o),
        (X, W, BIAS),
        True,
    ),
    "winograd_conv_backward": (
        lambda grad, x, w: mf.winograd_conv_backward(
            grad, x, mf.WinogradWeights.from_spatial(w), padding=1
        ),
        (drawn(2, 6, 6, 5), X, W),
        False,
    ),
    "batch_norm": (batch_norm, (X, drawn(4), drawn(4)), False),
    "batch_norm_backward": (
        batch_norm_backward, (X, X, X, drawn(4), drawn(4), drawn(4) ** 2), False
    ),
    "cross_entropy": (cross_entropy, (SMALL, np.array([0, 1, 2, 3, 0, 1])), False),
}  # fmt: skip


def answers(answer):
    if isinstance(answer, tuple):
        return [on_cpu(a) for a in answer if getattr(a, "ndim", 0)]
    return [on_cpu(answer)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CALLS)
def test_unaligned_arrays_give_the_same_bits(way, name, dtype):
    function, given, takes_out = CALLS[name]
    given = [a.astype(dtype) if a.dtype.kind == "f" else a for a in given]
    unlucky = [unaligned(a) for a in given]
    assert not any(map(is_aligned, unlucky))
    if way == "gpu":
        namespace(way)
        given, unlucky = ([on_gpu(a) for a in some] for some in (given, unlucky))
    with entered(way):
        want = answers(function(*given))
        for got, exact in zip(answers(function(*unlucky)), want, strict=True):
            assert_array_equal(got, exact, strict=True)
        if takes_out:
            out = unaligned(np.zeros_like(want[0]))
            out = on_gpu(out) if way == "gpu" else out
            assert function(*given, out=out) is out
            assert_array_equal(on_cpu(out), want[0])


@pytest.mark.parametrize("way", WAYS)
def test_running_statistics_are_followed_where_they_lie(way):
    namespace(way)
    x, ones = drawn(3, 4, 2, 2), np.ones(4)
    mean = x.mean(axis=(0, 2, 3))
    running = [np.zeros(4), np.ones(4)]
    unlucky = [unaligned(a) for a in running]
    if way == "gpu":
        x, ones = on_gpu(x), on_gpu(ones)
        running, unlucky = ([on_gpu(a) for a in some] for some in (running, unlucky))
    with entered(way):
        for moved in (running, unlucky):
            batch_norm(x, ones, ones, running=moved)
    for got, exact in zip(unlucky, running, strict=True):
        assert_array_equal(on_cpu(got), on_cpu(exact))
    assert_allclose(on_cpu(unlucky[0]), 0.1 * mean)


def test_an_element_of_16_bytes_lies_at_a_multiple_of_16():
    memory = np.zeros(6 * 16, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :][:80]
    assert is_aligned(memory.view(np.complex128))
    late = memory[8:72].view(np.complex128)
    assert late.flags.aligned and not is_aligned(late)
    assert is_aligned(aligned(late)) and aligned(memory) is memory


@pytest.mark.parametrize("way", WAYS)
def test_complex_numbers_at_odd_multiples_of_8(way):
    namespace(way)
    x = drawn(2, 4, 6, 5).astype(np.complex128)
    memory = np.zeros(x.nbytes + 16, np.uint8)
    late = memory[(8 - memory.ctypes.data) % 16 :][: x.nbytes].view(x.dtype).reshape(x.shape)
    late[...] = x
    late = on_gpu(late) if way == "gpu" else late
    with entered(way):
        assert_array_equal(on_cpu(mf.shift(late, TABLE)), mf.shift(x, TABLE))
