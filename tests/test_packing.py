"""Weights packed once give the answers of weights packed in every call, bit for bit."""

import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import launch, nn
from mulfree_cupy.autograd import Tensor, no_grad

RNG = np.random.default_rng(3)
CONVOLUTIONS = {"conv": mf.conv, "adder": mf.adder_conv}
BINARY = {**CONVOLUTIONS, "binary": mf.binary_conv}
SHIFTED = {"conv": mf.shift_conv, "adder": mf.shift_adder_conv}


def draw(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@settings(max_examples=60)
@given(
    op=st.sampled_from(["conv", "adder"]),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int8", "int16"]),
    groups=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 20)] * 2),
    image=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 2),
    with_bias=st.booleans(),
)
def test_packed_or_not_is_the_same_answer(
    op, dtype, groups, sizes, image, kernel, stride, with_bias
):
    if op == "conv" and "int" in dtype:
        dtype = "float32"
    channels, filters = sizes
    x = draw((image[0], groups * channels, *image[1:]), dtype)
    w = draw((groups * filters, channels, *kernel), dtype, 1)
    bias = draw(len(w), "int8" if "int" in dtype else dtype, 2) if with_bias else None
    options = {"stride": stride, "padding": tuple(k // 2 for k in kernel), "groups": groups}
    if any(i + 2 * p < k for i, p, k in zip(image[1:], options["padding"], kernel, strict=True)):
        return
    packed = mf.pack(w, op, groups=groups)
    function = CONVOLUTIONS[op]
    assert_array_equal(function(x, packed, bias, **options), function(x, w, bias, **options))
    if dtype == "uint8":
        packed, bits = mf.pack(w, op, groups=groups, bits=2), {"bits": 2}
        answer = mf.adder_conv(x, packed, bias, **bits, **options)
        assert_array_equal(answer, mf.adder_conv(x, w, bias, **bits, **options))
    if "float" in dtype:
        packed = mf.pack(w, "binary", groups=groups)
        answer = mf.binary_conv(x, packed, **options)
        assert_array_equal(answer, mf.binary_conv(x, w, **options))


@pytest.mark.parametrize("op", SHIFTED)
@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 1, 1)])
def test_shift_convolutions_take_them(op, shape):
    x, w, shifts = draw((2, 9, 6, 5)), draw(shape), mf.modulo_shifts(9)
    function = SHIFTED[op]
    assert_array_equal(function(x, mf.pack(w, op), shifts), function(x, w.reshape(5, 9), shifts))


def test_winograd_weights_are_the_packed_form_of_their_operation():
    x, w = draw((1, 3, 6, 6)), draw((4, 3, 3, 3))
    packed = mf.pack(w, "winograd", m=4)
    assert isinstance(packed, mf.WinogradWeights) and packed.m == 4
    assert packed.nbytes == 4 * 6 * 6 * 4 * 3 and packed.dtype == np.float32
    assert_array_equal(
        mf.winograd_conv(x, packed), mf.winograd_conv(x, mf.WinogradWeights.from_spatial(w, 4))
    )


@pytest.mark.parametrize("op", BINARY)
def test_a_kernel_as_large_as_the_image(op):
    x, w = draw((5, 4, 3, 3)), draw((6, 4, 3, 3))
    assert_array_equal(BINARY[op](x, mf.pack(w, op)), BINARY[op](x, w))


def test_they_are_a_copy_that_cannot_be_changed():
    x, w = draw((1, 2, 5, 5)), draw((3, 2, 3, 3))
    packed, before = mf.pack(w, "conv"), mf.conv(x, w)
    w[...] = 0
    assert_array_equal(mf.conv(x, packed), before)
    with pytest.raises(ValueError, match="read-only"):
        packed.array[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        packed.array.flags.writeable = True
    for name in ("array", "op", "groups", "bits", "scale"):
        with pytest.raises(AttributeError):
            setattr(packed, name, None)


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (3, 0, 3, 3)])
def test_no_filters_or_no_channels(shape):
    x, w = draw((1, shape[1], 5, 5)), draw(shape)
    assert_array_equal(mf.conv(x, mf.pack(w, "conv")), mf.conv(x, w))


def test_what_they_say_of_themselves():
    packed = mf.pack(draw((64, 32, 3, 3)), "adder", groups=2)
    assert (packed.shape, packed.dtype, packed.op, packed.groups) == (
        (64, 32, 3, 3), np.float32, "adder", 2,
    )  # fmt: skip
    assert packed.nbytes >= packed.array.nbytes
    assert repr(packed).startswith("PackedWeights(adder, 64x32x3x3, groups=2, float32, ")
    assert repr(packed).endswith("KiB)")
    low = mf.pack(draw((4, 32, 3, 3), "uint8"), "adder", bits=2)
    assert low.bits == 2 and "4x32x3x3, bits=2, uint8" in repr(low)
    binary = mf.pack(w := draw((4, 32, 3, 3)), "binary")
    scale = abs(w).reshape(4, -1).mean(axis=1, dtype=float)
    assert_array_equal(binary.scale, scale.astype("f"))
    assert binary.nbytes < binary.array.nbytes / 2  # a tile of 8 filters where there are 4
    assert packed.scale is packed.bits is None


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies(copied):
    x, w = draw((1, 2, 5, 5)), draw((3, 2, 3, 3))
    other = copied(mf.pack(w, "adder"))
    assert_array_equal(mf.adder_conv(x, other), mf.adder_conv(x, w))
    x, w = (abs(a * 2).astype(np.uint8) for a in (x, w))
    other = copied(mf.pack(w, "adder", bits=2))
    assert_array_equal(mf.adder_conv(x, other, bits=2), mf.adder_conv(x, w, bits=2))


def test_threads_share_them():
    x, w = draw((4, 16, 9, 9)), draw((16, 16, 3, 3))
    packed, expected, answers = mf.pack(w, "adder"), mf.adder_conv(x, w), [None] * 8

    def run(i):
        answers[i] = mf.adder_conv(x, packed)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        assert_array_equal(answer, expected)


def test_the_emulated_kernels_take_them():
    x, w = draw((1, 2, 5, 5)), draw((3, 2, 3, 3))
    packed = mf.pack(w, "adder")
    with mf.emulated_cuda():
        assert_array_equal(mf.adder_conv(x, packed), mf.adder_conv(x, w))


W = draw((6, 4, 3, 3))


REFUSED = {
    r"op must be one of conv, adder, binary, winograd": lambda: mf.pack(W, "shift"),
    r"groups=4 must divide the 6 filters": lambda: mf.pack(W, "conv", groups=4),
    r"w must have shape .* got \(6,\)": lambda: mf.pack(W[:, 0, 0, 0], "conv"),
    r"\(K, C\) with groups=1, got \(6, 4\) with": lambda: mf.pack(W[..., 0, 0], "conv", groups=2),
    r"has no groups, got groups=2": lambda: mf.pack(W, "winograd", groups=2),
    r"^conv: w was packed for op='winograd'": lambda: mf.conv(W, mf.pack(W, "winograd")),
    r"^conv: w was packed for op='adder'": lambda: mf.conv(W, mf.pack(W, "adder")),
    r"^adder_conv: w, of shape .*, was packed for groups=2, got groups=1": (
        lambda: mf.adder_conv(draw((1, 8, 3, 3)), mf.pack(W, "adder", groups=2))
    ),
    r"C/groups = 5": lambda: mf.conv(draw((1, 5, 3, 3)), mf.pack(W, "conv")),
    r"^shift_conv: w .*\(6, 4, 3, 3\)": (
        lambda: mf.shift_conv(W, mf.pack(W, "conv"), mf.group_shifts(9)[:4])
    ),
}
REFUSED_TYPES = {
    r"of float32, float64 for op='conv', got uint8": lambda: mf.pack(W.astype("u1"), "conv"),
    r"^conv_backward: w is no array: packed weights .* pass their .array": (
        lambda: mf.conv_backward(W, W, mf.pack(W, "conv"))
    ),
    r"m is an option for op='winograd' only": lambda: mf.pack(W, "conv", m=2),
    r"^conv: w was packed as float32, and x makes it float64; pack w as float64": (
        lambda: mf.conv(W.astype("f8"), mf.pack(W, "conv"))
    ),
}


@pytest.mark.parametrize("match", REFUSED)
def test_values_that_are_refused(match):
    with pytest.raises(ValueError, match=match):
        REFUSED[match]()


@pytest.mark.parametrize("match", REFUSED_TYPES)
def test_types_that_are_refused(match):
    with pytest.raises(TypeError, match=match):
        REFUSED_TYPES[match]()


def test_other_cpu_features():
    kernels = launch.cpu_kernels()
    if len(getattr(kernels, "available_features", tuple)()) < 2:
        pytest.skip("one instruction set alone")
    packed, before = mf.pack(W, "conv"), kernels.features()
    other = next(name for name in kernels.available_features() if name != before)
    kernels.use_features(other)
    try:
        with pytest.raises(ValueError, match=f"packed for {before}, and {other} is in use"):
            mf.conv(W, packed)
    finally:
        kernels.use_features(before)


LAYERS = {
    "conv": lambda: nn.Conv(4, 6, 3, RNG, padding=1, bias=True),
    "adder_conv": lambda: nn.AdderConv(4, 6, 3, RNG, groups=2),
    "shift_conv": lambda: nn.ShiftConv(mf.group_shifts(9)[:4], 6, RNG),
    "shift_adder_conv": lambda: nn.ShiftAdderConv(mf.group_shifts(9)[:4], 6, RNG, bias=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pack_for_evaluation(name):
    layer, x = LAYERS[name](), Tensor(draw((2, 4, 6, 6)))
    trained = layer(x).data
    layer.eval()
    with no_grad():
        assert_array_equal(layer(x).data, trained)
        with pytest.raises(ValueError, match="read-only"):
            layer.weight.data[...] = 0
        layer.train()
        layer.weight.data[...] = layer.weight.data  # as before
        layer.eval()
        layer.weight.data = layer.weight.data * np.float32(2)
        doubled = layer(x).data
    assert not np.array_equal(doubled, trained)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.weight.data[...] = layer.weight.data  # its own array, which is not packed yet
        assert_array_equal(other(x).data, doubled)
    layer.train()
    assert_array_equal(layer(x).data, doubled)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_leave_the_callers_array_alone(name):
    layer, x = LAYERS[name](), Tensor(draw((2, 4, 6, 6)))
    mine = layer.weight.data.copy()
    layer.weight.data = mine
    answer = layer.eval()(x).data
    mine += 1  # the layer has its own copy by now
    assert_array_equal(layer(x).data, answer)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_evaluate_what_they_train_on(name):
    layer = LAYERS[name]()
    for dtype in ("float64", "float32"):
        x = Tensor(draw((2, 4, 6, 6)).astype(dtype))
        assert_array_equal(layer.eval()(x).data, layer.train()(x).data)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pack_again_for_other_cpu_features(name):
    kernels, layer, x = launch.cpu_kernels(), LAYERS[name]().eval(), Tensor(draw((2, 4, 6, 6)))
    before = kernels.features()
    layer(x)
    try:
        for other in getattr(kernels, "available_features", lambda: (before,))():
            kernels.use_features(other)
            assert_array_equal(layer.eval()(x).data, layer.train()(x).data)
    finally:
        kernels.use_features(before)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_in_evaluation_mode(name):
    layer = LAYERS[name]()
    gradients = []
    for training in (True, False):
        x = Tensor(draw((2, 4, 6, 6)), requires_grad=True)
        layer.weight.grad = None
        layer.train(training)(x).sum().backward()
        gradients.append((x.grad, layer.weight.grad))
    for trained, evaluated in zip(*gradients, strict=True):
        assert_array_equal(trained, evaluated)
