"""The compiled module called with arbitrary arguments: it succeeds or raises, without invalid
accesses.

`.ci/sanitize` runs this under AddressSanitizer; without it only crashes would show.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import unaligned

_cpu = pytest.importorskip("mulfree_cupy._cpu")
REFUSED = (ValueError, TypeError, MemoryError)
DTYPES = [np.float32, np.float64, np.uint8, np.int32, np.int64, np.float16, object]
NUMBERS = [-(2**63), -(2**40), -1, 0, 1, 2, 3, 5, 2**31, 2**40, 2**62, 2**63 - 1]
NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))  # padding
OPTIONS = {"stride": (1, 1), "padding": ONE, "dilation": (1, 1)}
TABLE = np.array([(0, 1), (-1, 0), (0, 0), (1, -1)])


def ones(*shape):
    return np.ones(shape, np.float32)


def plan(tile=4, dtype=np.float32):
    return _cpu.winograd_dense(np.ones((tile, tile, 6, 4), dtype))


X, GRAD, W, U = ones(2, 4, 6, 5), ones(2, 6, 6, 5), ones(6, 4, 3, 3), ones(4, 4, 6, 4)
BYTES = {
    "x": X.astype(np.uint8), "w": W.astype(np.uint8), "bias": np.ones(6, np.int32),
    "out": GRAD.astype(np.int32),
}  # fmt: skip
PIECE, CHANNEL = ones(2, 4, 30), ones(4)
PACKED = [
    _cpu.pack_conv(W, 1), _cpu.pack_conv(W[:, :2].copy(), 2), _cpu.pack_conv(ones(6, 4, 1, 1), 1),
    _cpu.pack_conv(W.astype(np.float64), 1), _cpu.pack_adder_conv(W, 1),
    _cpu.pack_adder_conv(BYTES["w"], 1), _cpu.pack_adder_conv(ones(6, 4, 1, 1), 1),
    _cpu.pack_binary_conv(W, 1), _cpu.pack_adder_conv_3bit(BYTES["w"], 1),
]  # fmt: skip
CALLS = [  # every function with arguments that it takes
    ("pack_conv", {"w": W, "groups": 1}),
    ("pack_adder_conv", {"w": BYTES["w"], "groups": 2}),
    ("conv", {"x": X, "w": PACKED[0], "bias": None, "out": GRAD, **OPTIONS, "groups": 1}),
    ("adder_conv", {"x": X, "w": PACKED[4], "bias": ones(6), "out": GRAD, **OPTIONS, "groups": 1}),
    ("adder_conv", {**BYTES, "w": PACKED[5], **OPTIONS, "groups": 1}),
    (
        "conv_fused",
        {
            "x": X, "w": PACKED[0], "bias": None, "out": GRAD, **OPTIONS, "groups": 1,
            "scale": ones(6), "origin": ones(6), "offset": None, "residual": GRAD,
            "residual_scale": 1.0, "low": 0.0, "high": 1.0,
        },
    ),
    (
        "adder_conv_fused",
        {
            **BYTES, "w": PACKED[5], "out": GRAD.astype(np.uint8), **OPTIONS, "groups": 1,
            "scale": ones(6), "origin": None, "offset": ones(6),
            "residual": GRAD.astype(np.uint8), "residual_scale": 1.0, "low": 0.0, "high": 255.0,
        },
    ),
    (
        "adder_conv_fused",
        {
            **BYTES, "w": PACKED[5], "out": GRAD.astype(np.uint8), **OPTIONS, "groups": 1,
            "scale": ones(6), "origin": ones(6), "offset": ones(6), "residual": GRAD,
            "residual_scale": 1.0, "low": 0.0, "high": 255.0,
        },
    ),
    ("pack_binary_conv", {"w": W, "groups": 2}),
    ("binary_conv", {"x": X, "w": W, "bias": ones(6), "out": GRAD, **OPTIONS, "groups": 1}),
    ("binary_conv", {"x": X, "w": PACKED[7], "bias": None, "out": GRAD, **OPTIONS, "groups": 1}),
    (
        "binary_conv_fused",
        {
            "x": X, "w": PACKED[7], "bias": ones(6), "out": GRAD, **OPTIONS, "groups": 1,
            "scale": ones(6), "origin": ones(6), "offset": None, "residual": GRAD,
            "residual_scale": 1.0, "low": 0.0, "high": 1.0,
        },
    ),
    *(
        call
        for bits in (1, 2, 3, 4)
        for call in (
            (f"pack_adder_conv_{bits}bit", {"w": BYTES["w"], "groups": 2}),
            (f"adder_conv_{bits}bit", {**BYTES, **OPTIONS, "groups": 1}),
            (
                f"adder_conv_{bits}bit_fused",
                {
                    **BYTES, "w": getattr(_cpu, f"pack_adder_conv_{bits}bit")(BYTES["w"], 1),
                    "out": GRAD.astype(np.uint8), **OPTIONS, "groups": 1, "scale": ones(6),
                    "origin": None, "offset": ones(6), "residual": GRAD.astype(np.uint8),
                    "residual_scale": 1.0, "low": 0.0, "high": 255.0,
                },
            ),
        )
    ),
    ("adder_conv_3bit", {**BYTES, "w": PACKED[8], **OPTIONS, "groups": 1}),
    *(
        (
            f"{name}_fused",
            {
                "x": X, "w": packed, "shifts": TABLE, "bias": ones(6), "out": GRAD,
                "stride": (1, 1), "scale": ones(6), "origin": ones(6), "offset": None,
                "residual": GRAD, "residual_scale": 1.0, "low": 0.0, "high": 1.0,
            },
        )
        for name, packed in (("shift_conv", PACKED[2]), ("shift_adder_conv", PACKED[6]))
    ),
    (
        "shift_conv",
        {
            "x": X, "w": PACKED[2], "shifts": TABLE, "bias": None, "out": GRAD, "stride": (1, 1),
        },
    ),
    ("conv", {"x": X, "w": W, "bias": ones(6), "out": GRAD, **OPTIONS, "groups": 1}),
    ("adder_conv", {"x": X, "w": W, "bias": ones(6), "out": GRAD, **OPTIONS, "groups": 1}),
    ("adder_conv", {**BYTES, **OPTIONS, "groups": 1}),
    ("conv", {"x": X, "w": W[:, :2].copy(), "bias": None, "out": GRAD, **OPTIONS, "groups": 2}),
    (
        "conv",
        {
            "x": X, "w": ones(6, 4, 6, 5), "bias": None, "out": ones(2, 6, 1, 1),
            **OPTIONS, "padding": NONE, "groups": 1,
        },
    ),
    ("conv_grad_x", {"grad": GRAD, "w": W, "grad_x": X, **OPTIONS, "groups": 1}),
    ("conv_grad_w", {"grad": GRAD, "x": X, "grad_w": W, **OPTIONS, "groups": 1}),
    ("adder_conv_grad_x", {"grad": GRAD, "x": X, "w": W, "grad_x": X, **OPTIONS, "groups": 1}),
    ("adder_conv_grad_w", {"grad": GRAD, "x": X, "w": W, "grad_w": W, **OPTIONS, "groups": 1}),
    ("im2col", {"x": X, "cols": ones(2, 36, 30), "kernel": (3, 3), **OPTIONS}),
    ("col2im", {"cols": ones(2, 36, 30), "x": X, "kernel": (3, 3), **OPTIONS}),
    ("shift", {"x": X, "shifts": TABLE, "out": X, "stride": (1, 1)}),
    ("shift", {"x": X, "shifts": TABLE, "out": ones(2, 4, 3, 5), "stride": (2, 1)}),
    ("shift_backward", {"grad": ones(2, 4, 3, 3), "shifts": TABLE, "grad_x": X, "stride": (2, 2)}),
    *(
        (
            name,
            {
                "x": X, "w": ones(6, 4), "shifts": TABLE, "bias": ones(6), "out": GRAD,
                "stride": (1, 1),
            },
        )
        for name in ("shift_conv", "shift_adder_conv")
    ),
    (
        "shift_conv_grad_x",
        {"grad": GRAD, "w": ones(6, 4), "shifts": TABLE, "grad_x": X, "stride": (1, 1)},
    ),
    (
        "shift_adder_conv_grad_x",
        {"grad": GRAD, "x": X, "w": ones(6, 4), "shifts": TABLE, "grad_x": X, "stride": (1, 1)},
    ),
    (
        "shift_conv_grad_w",
        {"grad": GRAD, "x": X, "shifts": TABLE, "grad_w": ones(6, 4), "stride": (1, 1)},
    ),
    (
        "shift_adder_conv_grad_w",
        {
            "grad": GRAD, "x": X, "w": ones(6, 4), "shifts": TABLE, "grad_w": ones(6, 4),
            "stride": (1, 1),
        },
    ),
    ("winograd_dense", {"u": U}),
    ("winograd_costs", {"dtype": "float32"}),
    (
        "winograd_sparse",
        {
            "indptr": np.arange(97), "indices": np.zeros(96, np.int32), "values": ones(96),
            "shape": (4, 6, 4),
        },
    ),
    (
        "winograd_blocks",
        {
            "indptr": np.arange(33), "indices": np.zeros(32, np.int32), "values": ones(32, 4),
            "shape": (4, 6, 4),
        },
    ),
    (
        "winograd_conv",
        {
            "x": X, "plan": plan(), "bias": ones(6), "out": GRAD, "padding": ONE, "relu": True,
            "matrices": None,
        },
    ),
    (
        "winograd_conv",
        {
            "x": X, "plan": plan(6), "bias": None, "out": GRAD, "padding": ONE, "relu": True,
            "matrices": (np.ones((6, 6)), np.ones((4, 6))), "residual": GRAD, "relu_of_out": True,
        },
    ),
    (
        "winograd_conv_grad_x",
        {
            "grad": GRAD, "x": X, "u": U, "grad_x": X, "padding": ONE, "relu": True,
            "matrices": None,
        },
    ),
    (
        "winograd_conv_grad_u",
        {"grad": GRAD, "x": X, "grad_u": U, "padding": ONE, "relu": False, "matrices": None},
    ),
    *(
        (
            name,
            {
                "x": x, "out": x[..., :3, :3].copy(), "kernel": (2, 5), "stride": (2, 1),
                "padding": ((0, 0), (1, 1)),
            },
        )
        for name, x in (("max_pool", X), ("avg_pool", X), ("max_pool", BYTES["x"]))
    ),
    ("plane_means", {"x": X, "out": ones(2, 4)}),
    ("plane_means", {"x": BYTES["x"], "out": ones(2, 4)}),
    ("magnitude_means", {"x": X, "out": ones(2, 4)}),
    *(
        (name, {**rows, **answers})
        for n in (np.float32, np.float64, np.uint8)
        for d in [np.int32 if n is np.uint8 else n]
        for name, rows, answers in (
            (
                "pairwise_l1",
                {"a": np.ones((5, 9), n), "b": np.ones((7, 9), n)},
                {"out": np.ones((5, 7), d)},
            ),
            (
                "nearest_l1",
                {"queries": np.ones((5, 9), n), "points": np.ones((7, 9), n)},
                {"distances": np.ones((5, 3), d), "indices": np.ones((5, 3), np.int64)},
            ),
            (
                "match_template_l1",
                {"image": np.ones((2, 9, 8), n), "template": np.ones((2, 3, 5), n)},
                {"out": np.ones((7, 4), d)},
            ),
        )
    ),
    ("batch_norm_moments", {"x": PIECE}),
    (
        "batch_norm",
        {
            "x": PIECE, "mean": CHANNEL, "scale": CHANNEL, "bias": CHANNEL, "residual": PIECE,
            "relu": True, "out": PIECE,
        },
    ),
    ("batch_norm_sums", {"grad": PIECE, "x": PIECE, "answer": PIECE, "mean": CHANNEL}),
    (
        "batch_norm_grad",
        {
            "grad": PIECE, "x": PIECE, "answer": None, "mean": CHANNEL, "scale": CHANNEL,
            "constant": CHANNEL, "along_x": CHANNEL, "wants_flow": True,
        },
    ),
]  # fmt: skip


def test_every_function_is_called_here():
    known = {"features", "available_features", "use_features", "peak", "compiler"}
    known |= {"get_num_threads", "set_num_threads"}
    functions = {
        name for name in dir(_cpu) if not name.startswith("_") and name[0].islower()
    } - known
    assert functions == {name for name, _ in CALLS}


@pytest.mark.parametrize("call", range(len(CALLS)), ids=[name for name, _ in CALLS])
def test_the_arguments_that_are_changed_are_right_before(call):
    name, arguments = CALLS[call]
    getattr(_cpu, name)(*fresh(arguments.values()))


@pytest.mark.parametrize("call", range(len(CALLS)), ids=[name for name, _ in CALLS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_another_dtype_is_refused(call, dtype):
    name, arguments = CALLS[call]
    moves_bits = name in ("im2col", "shift", "shift_backward")  # whatever they stand for
    for chosen, value in arguments.items():
        if not isinstance(value, np.ndarray) or value.dtype == dtype:
            continue
        others = [a.dtype for a in arguments.values() if isinstance(a, np.ndarray)]
        if others.count(value.dtype) == 1 and dtype in (np.float32, np.float64):
            continue  # it alone decides
        either = name.endswith("_fused") and chosen in ("out", "residual")
        either |= name == "plane_means" and chosen == "x"
        if either and dtype in (np.uint8, np.float32):
            continue
        if moves_bits and chosen != "shifts" and np.dtype(dtype).itemsize == value.itemsize:
            continue
        changed = arguments | {chosen: value.astype(dtype)}
        with pytest.raises((TypeError, ValueError)):
            getattr(_cpu, name)(*fresh(changed.values()))


def fresh(values):
    """Separately allocated arrays, so that overruns are invalid accesses."""
    return [value.copy() if isinstance(value, np.ndarray) else value for value in values]


@st.composite
def hostile(draw, value):
    """Something else in an argument's place, near enough to be taken for it."""
    if isinstance(value, np.ndarray):
        return draw(hostile_arrays(value))
    if isinstance(value, tuple) and isinstance(value[0], np.ndarray):
        return tuple(draw(hostile_arrays(a)) for a in value)
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        changed = draw(st.integers(0, len(value) - 1))
        return tuple(draw(hostile(v)) if i == changed else v for i, v in enumerate(value))
    if isinstance(value, tuple):
        whole = list(value)
        # A plan (tile, filters, channels) of 2**31 channels would be given the memory it takes.
        numbers = NUMBERS if len(value) == 2 else [n for n in NUMBERS if not 2**30 < n < 2**60]
        whole[draw(st.integers(0, len(whole) - 1))] = draw(st.sampled_from(numbers))
        return tuple(whole)
    if isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return draw(st.sampled_from(NUMBERS))
    if value is None:
        return draw(st.sampled_from([None, np.ones(1, np.float32), np.ones(7, np.float32), 3]))
    others = PACKED if value in PACKED else [plan(4), plan(6), plan(4, np.float64)]
    return draw(st.sampled_from([*others, None]))


@st.composite
def hostile_arrays(draw, array):
    change = draw(
        st.sampled_from(
            ["size", "size", "dimensions", "dtype", "dtype", "order", "unaligned", "reversed",
             "step", "read-only", "values", "swapped", "one"]
        )
    )  # fmt: skip
    if change == "size":
        shape = list(array.shape)
        d = draw(st.integers(0, len(shape) - 1))
        shape[d] = max(0, draw(st.sampled_from([0, 1, shape[d] - 1, shape[d] + 1, 2 * shape[d]])))
        return np.ones(shape, array.dtype)
    if change == "dimensions":
        return draw(
            st.sampled_from([array[0], array[None], array.ravel(), array.reshape(1, -1)])
        ).copy()
    if change == "dtype":
        return array.astype(draw(st.sampled_from(DTYPES)))
    if change == "order":
        return array.copy("F")
    if change == "unaligned":
        return unaligned(array)
    if change == "reversed":
        return array.copy()[..., ::-1]
    if change == "step":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if change == "read-only":
        array = array.copy()
        array.flags.writeable = False
        return array
    if change == "values":
        value = draw(st.sampled_from([-1, 2**31 - 1, 7, 100]))
        return np.full(array.shape, value).astype(array.dtype)
    if change == "swapped":
        return array.astype(array.dtype.newbyteorder())
    return np.broadcast_to(array[:1], array.shape)


@pytest.mark.parametrize("features", _cpu.available_features())
@pytest.mark.parametrize("call", range(len(CALLS)), ids=[name for name, _ in CALLS])
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_arguments_are_refused_or_harmless(features, call, data):
    name, arguments = CALLS[call]
    changed = dict(zip(arguments, fresh(arguments.values()), strict=True))
    for _ in range(data.draw(st.integers(1, 2))):
        chosen = data.draw(st.sampled_from(sorted(changed)))
        changed[chosen] = data.draw(hostile(arguments[chosen]))
    before = _cpu.features()
    _cpu.use_features(features)
    try:
        getattr(_cpu, name)(*changed.values())
    except REFUSED:
        pass
    finally:
        _cpu.use_features(before)


X3, W3, GRAD3 = ones(2, 4, 6, 5), ones(6, 4, 3, 3), ones(2, 6, 6, 5)
GEOMETRY = ((1, 1), ONE, (1, 1), 1)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("conv", (X3, W3, ones(5), GRAD3, *GEOMETRY), "bias must have 6 values, got 5"),
        ("adder_conv", (X3, W3, ones(5), GRAD3, *GEOMETRY), "bias must have 6 values, got 5"),
        (
            "adder_conv_grad_w",
            (GRAD3, X3, ones(6, 4, 3, 2), W3, *GEOMETRY),
            "w and grad_w must have the same shape",
        ),
        ("conv", (X3, unaligned(W3), None, GRAD3, *GEOMETRY), "w must be C-contiguous and aligned"),
        ("conv", (X3, W3, None, unaligned(GRAD3), *GEOMETRY), "the output must be C-contiguous"),
        (
            "conv",
            (X3, W3, None, GRAD3, (0, 1), *GEOMETRY[1:]),
            "stride and dilation must be positive",
        ),
        (
            "conv",
            (X3, W3, None, GRAD3[:, :, 1:].copy(), *GEOMETRY),
            "sizes, stride, .* do not match",
        ),
        ("conv", (X3[:0], W3, None, GRAD3[:0], *GEOMETRY), "expected no empty arrays"),
        ("shift", (X3.astype(object), TABLE, X3.astype(object), (1, 1)), "objects cannot be moved"),
        (
            "shift_adder_conv_grad_w",
            (GRAD3, X3, ones(5, 4), TABLE, ones(6, 4), (1, 1)),
            "w and grad_w must have the same shape",
        ),
        ("shift_conv", (X3, ones(6, 4), TABLE, ones(7), GRAD3, (1, 1)), "bias must have 6 values"),
        ("batch_norm_moments", (ones(2, 0, 3),), "expected no empty arrays"),
        (
            "max_pool",
            (X3, ones(2, 4, 3, 5), (2, 2), (2, 1), NONE),
            "sizes, stride, .* do not match",
        ),
        (
            "avg_pool",
            (X3, ones(2, 3, 6, 5), (1, 1), (1, 1), NONE),
            "x and out do not match",
        ),
        ("plane_means", (X3, ones(4, 2)), "x and out do not match"),
        (
            "batch_norm_sums",
            (ones(2, 4, 3), ones(2, 4, 3), None, ones(5)),
            "mean must have 4 values",
        ),
    ],
)
def test_what_is_refused_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(_cpu, name)(*arguments)
