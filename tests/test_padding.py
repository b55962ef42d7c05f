"""The spellings of padding, and "same" as PyTorch has it, in every operation with windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from problems import WAYS, run

import mulfree_cupy as mf
from mulfree_cupy import autograd, inference, nn
from mulfree_cupy.geometry import window_options
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.ops.adder import adder_conv_sign_backward
from mulfree_cupy.ops.pooling import avg_pool, max_pool

RNG = np.random.default_rng(0)
X, W = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 4, 7, 6), (6, 4, 3, 4)))
PACKED = {op: mf.pack(W, op=op) for op in ("conv", "adder", "binary")}
WINOGRAD = mf.WinogradWeights.from_spatial(W[..., :3])
TABLE = {  # of a padding to an answer, by a kernel of 3 rows and 4 columns
    "im2col": lambda x, **padding: mf.im2col(x, (3, 4), **padding),
    "conv": lambda x, **padding: mf.conv(x, W, **padding),
    "packed conv": lambda x, **padding: mf.conv(x, PACKED["conv"], **padding),
    "adder_conv": lambda x, **padding: mf.adder_conv(x, W, **padding),
    "packed adder_conv": lambda x, **padding: mf.adder_conv(x, PACKED["adder"], **padding),
    "adder_conv of bytes": lambda x, **padding: mf.adder_conv(
        *((a * 50).astype(np.int8) for a in (x, W)), **padding
    ),
    "binary_conv": lambda x, **padding: mf.binary_conv(x, W, **padding),
    "packed binary_conv": lambda x, **padding: mf.binary_conv(x, PACKED["binary"], **padding),
    "max_pool": lambda x, **padding: max_pool(x, (3, 4), stride=1, **padding),
    "avg_pool": lambda x, **padding: avg_pool(x, (3, 4), stride=1, **padding),
}
SPELLINGS = {  # and as pairs
    0: ((0, 0), (0, 0)),
    1: ((1, 1), (1, 1)),
    (0, 2): ((0, 0), (2, 2)),
    "valid": ((0, 0), (0, 0)),
    "same": ((1, 1), (1, 2)),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("spelled", SPELLINGS)
def test_every_spelling_is_one_padding(name, spelled):
    expected = TABLE[name](X, padding=SPELLINGS[spelled])
    assert_array_equal(TABLE[name](X, padding=spelled), expected)
    if spelled == "same" and name != "im2col":
        assert expected.shape[2:] == X.shape[2:]


@pytest.mark.parametrize("name", [name for name in TABLE if name != "max_pool"])
def test_padding_is_zeros_around_the_image(name):
    """But for signs, among which there is no zero, and the largest, to which there is no border."""
    if "binary" in name:
        pytest.skip("a zero is a sign")
    padded = np.pad(X, ((0, 0), (0, 0), (1, 3), (2, 0)))
    answer = TABLE[name](X, padding=((1, 3), (2, 0)))
    np.testing.assert_allclose(answer, TABLE[name](padded), rtol=1e-5, atol=1e-5)


BACKWARD = {
    "conv": mf.conv_backward,
    "adder_conv": mf.adder_conv_backward,
    "adder_conv, sign": adder_conv_sign_backward,
    "binary_conv": mf.binary_conv_backward,
}


@pytest.mark.parametrize("name", BACKWARD)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_an_even_kernel(way, name):
    grad = RNG.normal(size=(2, 6, 7, 6)).astype(np.float32)
    same = run(way, BACKWARD[name], grad, X, W, padding="same")
    pairs = run(way, BACKWARD[name], grad, X, W, padding=((1, 1), (1, 2)))
    for answer, expected in zip(same, pairs, strict=True):
        assert_array_equal(answer, expected)


@pytest.mark.parametrize("way", WAYS)
def test_winograd(way):
    for spelled, pairs in {"same": 1, "valid": 0, (0, 2): ((0, 0), (2, 2))}.items():
        answer = run(way, mf.winograd_conv, X, WINOGRAD, padding=spelled)
        assert_array_equal(answer, run(way, mf.winograd_conv, X, WINOGRAD, padding=pairs))
        gradients = run(way, mf.winograd_conv_backward, answer, X, WINOGRAD, padding=spelled)
        expected = run(way, mf.winograd_conv_backward, answer, X, WINOGRAD, padding=pairs)
        assert_array_equal(gradients[0], expected[0])
        assert_array_equal(gradients[1], expected[1])


def test_columns_go_back():
    cols = mf.im2col(X, (3, 4), padding="same")
    given = dict(x_shape=X.shape, kernel_size=(3, 4))
    expected = mf.col2im(cols, padding=((1, 1), (1, 2)), **given)
    assert_array_equal(mf.col2im(cols, padding="same", **given), expected)


@given(
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_same_is_pytorchs(kernel, dilation):
    """In all ``dilation * (kernel - 1)``, half of it in front and the odd one behind."""
    _, sides, _ = window_options("conv", kernel, padding="same", dilation=dilation)
    for (before, after), k, d in zip(sides, kernel, dilation, strict=True):
        assert before + after == d * (k - 1) and after - before in (0, 1)


def test_same_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    for dilation in 1, (2, 1), (1, 2):
        expected = torch.nn.functional.conv2d(x, w, padding="same", dilation=dilation)
        answer = mf.conv(X, W, padding="same", dilation=dilation)
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [nn.Conv, nn.AdderConv, nn.BinaryConv])
def test_layers_take_it(kind):
    layer = kind(4, 6, (2, 3), np.random.default_rng(0), padding="same")
    assert layer(autograd.Tensor(X)).shape == (2, 6, 7, 6)
    y = layer.eval()(autograd.Tensor(X, requires_grad=True))
    y.sum().backward()


@pytest.mark.parametrize("padding", [((0, 1), (2, 0)), "same", "valid"])
@pytest.mark.parametrize("winograd", [False, True])
def test_a_trained_network_has_it_in_numbers(padding, winograd):
    rng = np.random.default_rng(0)
    layer = (
        nn.WinogradConv(3, 5, rng, padding=padding)
        if winograd
        else nn.Conv(3, 5, (2, 3), rng, padding=padding, dilation=(1, 2))
    )
    pool = nn.MaxPool(3, stride=1, padding=padding if padding == "valid" else "same")
    model = nn.Sequential(layer, pool, nn.GlobalAveragePool())
    network = network_of(model, 3, 8)
    for described in network.layers[:2]:
        assert not isinstance(described.options["padding"], str)
    images = rng.normal(size=(2, 3, 8, 8)).astype("f")
    expected = model(autograd.Tensor(images)).data
    np.testing.assert_allclose(inference.Predictor(network)(images), expected, rtol=1e-4, atol=1e-5)


def test_a_pool_has_a_stride_which_same_refuses():
    with pytest.raises(
        ValueError, match=r"max_pool: padding='same' is for stride 1, got .*\(3, 4\)"
    ):
        max_pool(X, (3, 4), padding="same")
