"""What the kernels do to an answer before they store it, beside a spec in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import mulfree_cupy as mf

_cpu = pytest.importorskip("mulfree_cupy._cpu")
INFINITY = float("inf")


def spec(answer, scale, offset, residual, residual_scale, low, high):
    z = answer.astype(np.float64)
    z = z * (1 if scale is None else scale.astype(np.float64)[:, None, None])
    z = z + (0 if offset is None else offset.astype(np.float64)[:, None, None])
    z = z + (0 if residual is None else residual_scale * residual.astype(np.float64))
    return np.clip(z, low, high)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["conv", "conv double", "adder_conv", "uint8", "uint8 to 8", "narrow"]),
    filters=st.integers(1, 20),
    channels=st.integers(1, 20),
    image=st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 33)),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 2)]),
    stride=st.integers(1, 2),
    given_=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 99),
)
def test_epilogue(kind, filters, channels, image, kernel, stride, given_, seed):
    rng = np.random.default_rng(seed)
    bytes_in, bytes_out = kind.startswith("uint8"), kind in ("uint8 to 8", "narrow")
    operand = np.dtype("uint8" if bytes_in else "float64" if "double" in kind else "float32")
    number = np.dtype("float64" if "double" in kind else "float32")
    name = "conv" if kind.startswith("conv") else "adder_conv"

    def draw(*shape):
        return (rng.uniform(0, 255, shape) if bytes_in else rng.normal(size=shape)).astype(operand)

    x, w = draw(image[0], channels, *image[1:]), draw(filters, channels, *kernel)
    padding = tuple(k // 2 for k in kernel)
    options = (stride, stride), padding, (1, 1), 1
    bias = rng.integers(-9, 9, filters).astype("int32" if bytes_in else operand)
    answer = getattr(mf, name)(x, w, bias, stride=stride, padding=padding)
    spread = np.abs(answer).max() + 1
    scale = (rng.uniform(0.5, 2, filters) * 100 / spread).astype(number) if given_[0] else None
    offset = rng.uniform(0, 200, filters).astype(number) if given_[1] else None
    out = np.empty(answer.shape, "uint8" if bytes_out else number)
    residual = None
    if given_[2]:
        residual = rng.uniform(0, 255, out.shape).astype(out.dtype)
    low, high = (0, 255) if bytes_out else (0, 90) if given_[3] else (-INFINITY, INFINITY)
    packed = getattr(_cpu, f"pack_{name}")(w, 1)
    arguments = scale, offset, residual, 0.5, low, high
    getattr(_cpu, f"{name}_fused")(x, packed, bias, out, *options, *arguments)
    expected = spec(answer, *arguments)
    if bytes_out:
        assert np.abs(out - expected).max() <= 0.5 + 1e-3
    else:
        assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max() + 1e-6)


def call(**changed):
    x, w = np.ones((1, 2, 4, 4), "f"), np.ones((3, 2, 3, 3), "f")
    given = dict(
        x=x, w=_cpu.pack_conv(w, 1), bias=None, out=np.empty((1, 3, 4, 4), "f"), stride=(1, 1),
        padding=(1, 1), dilation=(1, 1), groups=1, scale=np.ones(3, "f"), offset=None,
        residual=None, residual_scale=1.0, low=0.0, high=6.0,
    )  # fmt: skip
    given |= changed
    _cpu.conv_fused(**given)
    return given["out"]


def test_clips():
    assert call(low=1, high=2).max() == 2


def test_a_nan_stays():
    x = np.full((1, 2, 4, 4), np.nan, "f")
    assert np.isnan(call(x=x)).all()


def test_to_bytes_a_nan_is_the_least():
    x, out = np.full((1, 2, 4, 4), np.nan, "f"), np.empty((1, 3, 4, 4), "u1")
    assert (call(x=x, out=out, low=17, high=99) == 17).all()


def test_to_bytes_halves_go_to_the_even_number():
    values = [0.0, 0.49999997, 0.5, 1.5, 2.5, 254.5, 300]
    x, out = np.array(values, "f").reshape(1, 1, 1, 7), np.empty((1, 1, 1, 7), "u1")
    w = _cpu.pack_conv(np.ones((1, 1, 1, 1), "f"), 1)
    call(x=x, w=w, out=out, padding=(0, 0), scale=None, low=0, high=255)
    assert out.ravel().tolist() == [0, 0, 0, 2, 2, 254, 255]


@pytest.mark.parametrize(
    "changed",
    [
        {"low": 3, "high": 2},
        {"scale": np.ones(2, "f")},
        {"offset": np.ones(4, "f")},
        {"residual": np.ones((1, 3, 4, 3), "f")},
        {"out": np.empty((1, 3, 4, 4), "u1"), "low": -1},
        {"out": np.empty((1, 3, 4, 4), "u1"), "high": 256},
        {"w": _cpu.pack_adder_conv(np.ones((3, 2, 3, 3), "f"), 1)},
        {"groups": 2},
        {"out": np.empty((1, 3, 4, 5), "f")},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changed):
    with pytest.raises(ValueError):
        call(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"residual": np.ones((1, 3, 4, 4), "d")},
        {"residual": np.ones((1, 3, 4, 4), "u1")},
        {"out": np.empty((1, 3, 4, 4), "i4")},
        {"scale": np.ones(3, "d")},
    ],
    ids=str,
)
def test_other_dtypes_are_refused(changed):
    with pytest.raises(TypeError):
        call(**changed)
