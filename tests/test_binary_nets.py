"""The binary layer, and the twins that are made of it."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import inference, models, nn, optim
from mulfree_cupy.autograd import Tensor, apply, no_grad
from mulfree_cupy.autograd.tensor import from_first_to_last
from mulfree_cupy.nn.description import network_of

RNG = np.random.default_rng(8)
NETWORKS = {
    "binary-lenet": {"channels": 1, "size": 8},
    "binary-resnet20": {"channels": 3, "size": 8},
    "binary-resnet32": {"channels": 3, "size": 8},
    "binary-vggsmall": {"channels": 3, "size": 8},
    "binary-resnet18": {"channels": 3, "size": 32},
    "binary-resnet50": {"channels": 3, "size": 32},
}
networks = pytest.mark.parametrize("name", NETWORKS)


def images(name, count=2):
    shape = NETWORKS[name]
    return RNG.normal(size=(count, shape["channels"], shape["size"], shape["size"])).astype("f")


def test_the_layer_is_the_function_and_has_its_gradient():
    layer = nn.BinaryConv(6, 8, 3, RNG, stride=2, padding=1, groups=2)
    x = Tensor(RNG.normal(size=(2, 6, 7, 7)).astype("f"), requires_grad=True)
    options = {"stride": 2, "padding": 1, "groups": 2}
    y = layer(x)
    assert_array_equal(y.data, mf.binary_conv(x.data, layer.weight.data, **options))
    y.backward(y.data)
    grad_x, grad_w = mf.binary_conv_backward(y.data, x.data, layer.weight.data, **options)
    assert_array_equal(x.grad, grad_x)
    assert_array_equal(layer.weight.grad, grad_w)
    layer.eval()
    assert_array_equal(layer(x).data, y.data)  # by packed weights


def test_without_the_scale():
    layer = nn.BinaryConv(3, 5, 1, RNG, scale=False)
    y = layer(Tensor(RNG.normal(size=(1, 3, 4, 4)).astype("f"))).data
    assert set(np.unique(y)) <= {-3, -1, 1, 3}


def test_there_is_no_bias():
    with pytest.raises(ValueError, match="BinaryConv: there is no bias"):
        nn.BinaryConv(3, 5, 1, RNG, bias=True)


@networks
def test_signs_are_seen_where_there_are_both(name):
    """No binary convolution reads what a ReLU, or the largest of normalised numbers, has spoilt."""
    network = models.build(name, **NETWORKS[name])
    x = Tensor(images(name, 8), requires_grad=True)
    seen = 0
    for tensor in from_first_to_last(network(x)):
        if tensor.node is not None and tensor.node.operation == "binary_conv":
            positive = (tensor.node.inputs[0].data >= 0).mean()
            assert 0.2 < positive < 0.8, positive
            seen += 1
    assert seen >= 3


@networks
def test_only_what_adds_up_reals_is_not_binary(name):
    network = models.build(name, **NETWORKS[name])
    conv = {path for path, layer in network.modules() if type(layer) is nn.Conv}
    assert all(
        path in ("conv1", "fc3", "features.layers.0") or ".shortcut." in path for path in conv
    ), conv
    twin = models.build(name.replace("binary", "conv"), **NETWORKS[name])
    ours, theirs = (sorted(a.shape for a in n.state_dict().values()) for n in (network, twin))
    assert ours == theirs


@networks
def test_what_signs_are_taken_of_does_not_decay(name):
    network = models.build(name, **NETWORKS[name])
    *norms, logits = (
        layer
        for path, layer in network.modules()
        if type(layer) is nn.BatchNorm and ".shortcut." not in path
    )
    signs = {id(layer.weight) for _, layer in network.modules() if type(layer) is nn.BinaryConv}
    signs |= {id(p) for norm in norms for p in (norm.weight, norm.bias)}
    assert logits.weight.decays and len(norms) >= 4
    assert signs == {id(p) for p in network.parameters() if not p.decays}


def test_it_learns():
    """Which side of a picture is brighter, from signs of features."""
    network = models.build("binary-lenet", channels=1, size=8, classes=2)
    x = RNG.normal(size=(64, 1, 8, 8)).astype("f")
    labels = np.arange(64) % 2
    x[labels == 0, :, :, :4] += 1
    x[labels == 1, :, :, 4:] += 1
    optimiser = optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(20):
        loss = apply("cross_entropy", network(Tensor(x)), labels=labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.data < 0.3


@networks
def test_inference_gives_the_networks_answers(name, tmp_path):
    shape, x = NETWORKS[name], images(name)
    network = models.build(name, **shape)
    network(Tensor(x))  # statistics of their own
    described = network_of(network, shape["channels"], shape["size"])
    assert "binary_conv" in {layer.op for layer in described.layers}
    with no_grad():
        expected = network.eval()(Tensor(x)).data
    predictor = inference.Predictor(described)
    np.testing.assert_allclose(predictor(x), expected, rtol=1e-4, atol=1e-4)
