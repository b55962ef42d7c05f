"""The kernels' epilogues, compared with a float64 spec."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import mulfree_cupy as mf
from mulfree_cupy.ops.batch_norm import batch_norm

_cpu = pytest.importorskip("mulfree_cupy._cpu")
INFINITY = float("inf")
FLOATS = np.float32, np.float64


def spec(answer, scale, origin, offset, residual, residual_scale, low, high):
    z = answer.astype(np.float64)
    z = z - (0 if origin is None else origin.astype(np.float64)[:, None, None])
    z = z * (1 if scale is None else scale.astype(np.float64)[:, None, None])
    z = z + (0 if offset is None else offset.astype(np.float64)[:, None, None])
    z = z + (0 if residual is None else residual_scale * residual.astype(np.float64))
    return np.clip(z, low, high)


@pytest.fixture(params=_cpu.available_features(), scope="module", autouse=True)
def _features(request):
    before = _cpu.features()
    _cpu.use_features(request.param)
    yield
    _cpu.use_features(before)


@st.composite
def convolutions(draw):
    """(the plain answer, fused(out, **epilogue), a generator of random numbers)."""
    operation, dtype = draw(
        st.sampled_from(
            [(op, dtype) for op in ("conv", "adder_conv", "binary_conv") for dtype in FLOATS]
            + [("adder_conv", dtype) for dtype in (np.uint8, np.int8, np.int16)]
            + [("adder_conv_3bit", np.uint8)]
        )
    )
    shifted = dtype in FLOATS and operation != "binary_conv" and draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stride = draw(st.integers(1, 2))
    groups = 1 if shifted else draw(st.integers(1, 2))
    channels, filters = draw(st.integers(1, 20)), groups * draw(st.integers(1, 20))
    size = draw(st.sampled_from([(1, 1), (1, 7), (5, 33), (7, 7), (8, 8), (2, 64)]))
    kernel = (1, 1) if shifted else draw(st.sampled_from([(1, 1), (3, 3), (1, 2), size]))

    def values(*shape):
        if np.dtype(dtype).kind == "f":
            return rng.normal(size=shape).astype(dtype)
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    x = values(draw(st.integers(1, 3)), groups * channels, *size)
    if dtype in FLOATS and draw(st.booleans()):
        x.flat[rng.integers(x.size)] = np.nan
    w = values(filters, channels, *kernel)
    number = dtype if dtype in FLOATS else np.int32
    bias = rng.normal(size=filters).astype(number) if draw(st.booleans()) else None
    packed = getattr(_cpu, f"pack_{operation}")(w, groups)
    if shifted:
        table = rng.integers(-2, 2, (channels, 2), endpoint=True)
        name, w = f"shift_{operation}", w.reshape(filters, channels)
        answer = getattr(mf, name)(x, w, table, bias=bias, stride=stride)
        given = table, bias
        options = {"stride": (stride, stride)}
    else:
        name, padding = operation, tuple((k // 2, k // 3) if k < 4 else (0, 0) for k in kernel)
        window = dict(stride=(stride, stride), padding=padding, dilation=(1, 1), groups=groups)
        answer = np.empty(mf.conv(x.astype("f"), w.astype("f"), **window).shape, number)
        getattr(_cpu, name)(x, w, bias, answer, *window.values())
        given = (bias,)
        options = window

    def fused(out, **epilogue):
        getattr(_cpu, f"{name}_fused")(x, packed, *given, out, **options, **epilogue)
        return out

    return answer, fused, rng


@settings(max_examples=60)
@given(
    data=st.data(),
    given_=st.tuples(*[st.booleans()] * 4),
    narrow=st.booleans(),
    residual=st.sampled_from([None, "its own", np.uint8]),
)
def test_epilogue(data, given_, narrow, residual):
    answer, fused, rng = data.draw(convolutions())
    number = answer.dtype if answer.dtype in FLOATS else np.dtype(np.float32)
    filters, spread = answer.shape[1], np.nanmax(np.abs(answer), initial=0) + 1
    scale = (rng.uniform(0.5, 2, filters) * 100 / spread).astype(number)
    origin = (rng.uniform(-1, 1, filters) * spread).astype(number)
    offset = rng.uniform(0, 200, filters).astype(number)
    epilogue = {
        "scale": scale if given_[0] else None,
        "origin": origin if given_[1] else None,
        "offset": offset if given_[2] else None,
    }
    if residual is not None:
        dtype = number if residual == "its own" else residual
        residual = rng.uniform(0, 255, answer.shape).astype(dtype)
    low, high = (0, 255) if narrow else (0, 90) if given_[3] else (-INFINITY, INFINITY)
    epilogue |= dict(residual=residual, residual_scale=0.5, low=low, high=high)
    out = fused(np.empty(answer.shape, "uint8" if narrow else number), **epilogue)
    expected = spec(answer, **epilogue)
    if narrow:
        expected = np.where(np.isnan(expected), 0, expected)
        assert np.abs(out - expected).max() <= 0.5 + 1e-3
    else:
        most = np.nanmax(np.abs(expected), initial=0) + spread * scale.max()
        assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * most + 1e-6)


@settings(max_examples=60)
@given(data=st.data(), relu=st.booleans(), residual=st.booleans())
def test_about_the_mean_it_is_batch_normalisation_to_the_bit(data, relu, residual):
    answer, fused, rng = data.draw(convolutions())
    if answer.dtype not in FLOATS:
        answer = answer.astype(np.float32)
    number, filters = answer.dtype.type, answer.shape[1]
    mean = np.nan_to_num(answer.mean(axis=(0, 2, 3))) + rng.normal(size=filters).astype(number)
    variance = rng.uniform(0.1, 3, filters).astype(number)
    weight, bias = rng.normal(size=(2, filters)).astype(number)
    residual = rng.normal(size=answer.shape).astype(number) if residual else None
    expected, _, _ = batch_norm(
        answer, weight, bias, residual, relu=relu, mean=mean, variance=variance
    )
    out = fused(
        np.empty_like(answer),
        scale=weight / np.sqrt(variance + number(1e-5)),
        origin=mean,
        offset=bias,
        residual=residual,
        low=0 if relu else -INFINITY,
    )
    assert bits(out) == bits(expected)


def bits(a):
    return np.where(np.isnan(a), np.float32(np.nan), a).tobytes()


def test_nothing_given_changes_nothing():
    x, w = np.arange(32, dtype="f").reshape(1, 2, 4, 4), np.ones((3, 2, 1, 1), "f")
    out = np.empty((1, 3, 4, 4), "f")
    _cpu.conv_fused(x, _cpu.pack_conv(w, 1), None, out, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    assert np.array_equal(out, mf.conv(x, w))


def call(**changed):
    x, w = np.ones((1, 2, 4, 4), "f"), np.ones((3, 2, 3, 3), "f")
    given = dict(
        x=x, w=_cpu.pack_conv(w, 1), bias=None, out=np.empty((1, 3, 4, 4), "f"), stride=(1, 1),
        padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1, scale=np.ones(3, "f"), low=0.0,
        high=6.0,
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
    call(x=x, w=w, out=out, padding=((0, 0), (0, 0)), scale=None, low=0, high=255)
    assert out.ravel().tolist() == [0, 0, 0, 2, 2, 254, 255]


@pytest.mark.parametrize(
    "changed",
    [
        {"low": 3, "high": 2},
        {"scale": np.ones(2, "f")},
        {"origin": np.ones(1, "f")},
        {"offset": np.ones(4, "f")},
        {"residual": np.ones((1, 3, 4, 3), "f")},
        {"out": np.zeros((1, 3, 4, 4), "u1"), "low": -1},
        {"out": np.zeros((1, 3, 4, 4), "u1"), "high": 256},
        {"groups": 2},
        {"out": np.zeros((1, 3, 4, 5), "f")},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changed):
    with pytest.raises(ValueError):
        call(**changed)


def test_weights_packed_for_another_operation_are_refused():
    with pytest.raises(ValueError, match="packed for another operation"):
        call(w=_cpu.pack_adder_conv(np.ones((3, 2, 3, 3), "f"), 1))


@pytest.mark.parametrize(
    "changed",
    [
        {"residual": np.ones((1, 3, 4, 4), "d")},
        {"residual": np.ones((1, 3, 4, 4), "i1")},
        {"out": np.zeros((1, 3, 4, 4), "i4")},
        {"scale": np.ones(3, "d")},
        {"origin": np.ones(3, "d")},
    ],
    ids=str,
)
def test_other_dtypes_are_refused(changed):
    with pytest.raises(TypeError):
        call(**changed)
