"""``out=`` of every operation: it receives the answer, in any layout, and spoils no input."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from problems import namespace, on_cpu

import mulfree_cupy as mf

ways = pytest.mark.parametrize("way", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
SHIFTS = [(0, 1), (-1, 0), (0, 0), (1, -1)]
CALLS = {  # of x (2, 4, 6, 5) and w (K, 4, 3, 3)
    "conv": lambda x, w, **out: mf.conv(x, w, padding=1, **out),
    "adder_conv": lambda x, w, **out: mf.adder_conv(x, w, padding=1, **out),
    "binary_conv": lambda x, w, **out: mf.binary_conv(x, w, padding=1, **out),
    "adder_matmul": lambda x, w, **out: mf.adder_matmul(x[0, 0, :, :4], w[:, :, 0, 0].T, **out),
    "shift": lambda x, w, **out: mf.shift(x, SHIFTS, **out),
    "shift_conv": lambda x, w, **out: mf.shift_conv(x, w[:, :, 1, 1], SHIFTS, **out),
    "shift_adder_conv": lambda x, w, **out: mf.shift_adder_conv(x, w[:, :, 1, 1], SHIFTS, **out),
    "winograd_conv": lambda x, w, **out: mf.winograd_conv(
        x, mf.WinogradWeights.from_spatial(w), **out
    ),
}
calls = pytest.mark.parametrize("name", CALLS)


def drawn(xp, *shape):
    return xp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def layouts(xp, shape):
    """Unwritten arrays of a shape whose elements lie in different orders and at different steps."""
    nan = lambda *shape: xp.full(shape, np.nan, np.float32)  # noqa: E731
    yield nan(*shape)
    yield nan(*shape[::-1]).T
    yield nan(*shape[:-1], 2 * shape[-1])[..., ::2]
    yield nan(*shape)[::-1]
    yield nan(int(np.prod(shape)) + 1)[1:].reshape(shape)


@ways
@calls
def test_out_receives_the_answer(way, name):
    xp = namespace(way)
    x, w = drawn(xp, 2, 4, 6, 5), drawn(xp, 6, 4, 3, 3)
    expected = CALLS[name](x, w)
    for out in layouts(xp, expected.shape):
        assert CALLS[name](x, w, out=out) is out
        assert_array_equal(on_cpu(out), on_cpu(expected))


@ways
@calls
def test_out_over_an_input_is_refused(way, name):
    xp = namespace(way)
    w, memory = drawn(xp, 6, 4, 3, 3), xp.ones(1000, np.float32)
    x = memory[:240].reshape(2, 4, 6, 5)
    shape = CALLS[name](x, w).shape
    out = memory[10:][: int(np.prod(shape))].reshape(shape)
    with pytest.raises(ValueError, match=f"^{name}: out, of shape .* overlaps the memory of"):
        CALLS[name](x, w, out=out)
    assert_array_equal(on_cpu(memory), 1)


@ways
@calls
def test_out_between_the_columns_of_an_input_is_no_overlap(way, name):
    xp = namespace(way)
    memory = xp.ones((2, 4, 6, 10), np.float32)
    x, out = memory[..., ::2], memory[..., 1::2]
    CALLS[name](x, drawn(xp, 4, 4, 3, 3), out=out[0, 0, :, :4] if name == "adder_matmul" else out)
    assert_array_equal(on_cpu(x), 1)


@ways
@calls
def test_out_whose_elements_share_memory_is_refused(way, name):
    xp = namespace(way)
    x, w = drawn(xp, 2, 4, 6, 5), drawn(xp, 6, 4, 3, 3)
    out = xp.lib.stride_tricks.as_strided(
        xp.ones(1000, np.float32), (shape := CALLS[name](x, w).shape), (4,) * len(shape)
    )
    with pytest.raises(ValueError, match=rf"^{name}: elements of out share memory"):
        CALLS[name](x, w, out=out)
    assert_array_equal(on_cpu(out), 1)
