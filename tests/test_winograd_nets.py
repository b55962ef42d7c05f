"""Layers and networks with prunable weights, in the three forms that the paper compares."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import models, nn, optim
from mulfree_cupy.autograd import Tensor, apply, check_gradients, no_grad
from mulfree_cupy.ops.winograd import importance, precondition
from mulfree_cupy.report import multiplications, operations

FORMS = ["spatial", "winograd", "winograd-relu"]
NETWORKS = ["vgg-nagadomi", "convpool-cnn-c", "resnet18"]
rng = np.random.default_rng(0)


def images(*shape):
    return rng.normal(size=shape).astype(np.float32)


def prunable(model):
    return [module for _, module in model.modules() if hasattr(module, "prune")]


class TestWinogradConv:
    @pytest.mark.parametrize("options", [{}, {"m": 4, "points": "barabasz"}, {"padding": (0, 2)}])
    @pytest.mark.parametrize("relu", [False, True])
    def test_it_runs_the_operation(self, options, relu):
        layer, x = nn.WinogradConv(3, 5, rng, bias=True, relu=relu, **options), images(2, 3, 7, 6)
        layer.bias.data = images(5)
        layer.prune(0.5)
        points, padding = options.get("points", "lavin"), options.get("padding", 1)
        weights = mf.WinogradWeights.from_dense(layer.weight.data, layer.mask, points=points)
        arguments = dict(bias=layer.bias.data, padding=padding, relu=relu)
        expected = mf.winograd_conv(x, weights, kernel="dense", **arguments)
        assert_array_equal(layer(Tensor(x)).data, expected)
        layer.eval()
        assert_array_equal(layer(Tensor(x)).data, mf.winograd_conv(x, weights, **arguments))

    @pytest.mark.parametrize("m", [2, 4])
    @pytest.mark.parametrize("relu", [False, True])
    def test_gradients(self, m, relu):
        layer = nn.WinogradConv(3, 4, rng, relu=relu, m=m)
        layer.prune(0.4)
        dense, mask = layer.weight.data.astype(float), layer.mask

        def function(x, u, bias):
            weights = mf.WinogradWeights.from_dense(u.data, mask)
            return apply("winograd_conv", x, u, bias, weights=weights, relu=relu)

        check_gradients(function, rng.normal(size=(2, 3, 5, 7)), dense, rng.normal(size=4))

    @pytest.mark.parametrize("m", [2, 4])
    def test_the_first_weights_keep_the_scale(self, m):
        x = Tensor(images(4, 64, 16, 16))
        clipped = nn.WinogradConv(64, 64, rng, relu=True, m=m)(x).data
        assert clipped[..., 1:-1, 1:-1].std() == pytest.approx(1, rel=0.15)
        linear = nn.WinogradConv(64, 64, np.random.default_rng(1), m=m)
        spatial = nn.Conv(64, 64, 3, np.random.default_rng(1), padding=1)
        assert_allclose(linear(x).data, spatial(x).data, atol=1e-3)

    def test_packed_weights_are_kept_while_they_are_the_same(self):
        layer = nn.WinogradConv(3, 4, rng).eval()
        x = Tensor(images(1, 3, 6, 6))
        before, packed = layer(x).data, layer.weights
        layer(x)
        assert layer.weights is packed
        with pytest.raises(ValueError, match="read-only"):
            layer.weight.data[0] = 0
        layer.weight.data = 2 * layer.weight.data
        assert_allclose(layer(x).data, 2 * before, rtol=1e-5, atol=1e-6)
        layer.mask = np.zeros_like(layer.mask)
        assert not layer(x).data.any()
        layer.load_state_dict(nn.WinogradConv(3, 4, rng).state_dict())
        assert layer.density == 1 and layer(x).data.any()

    def test_scaled_gradients(self):
        x, layers = Tensor(images(2, 3, 6, 6)), {}
        for gradient in ("plain", "preconditioned", "importance"):
            layers[gradient] = nn.WinogradConv(3, 4, np.random.default_rng(0), gradient=gradient)
            layers[gradient].prune(0.5)
            layers[gradient](x).sum().backward()
        plain, mask = layers["plain"].weight.grad, layers["plain"].mask
        assert not plain[~mask].any()
        expected = precondition(plain) * mask
        assert_allclose(layers["preconditioned"].weight.grad, expected, rtol=1e-5)
        factors = importance(2)[:, :, None, None]
        expected = plain / (factors / factors.min()) ** 1.5
        assert_allclose(layers["importance"].weight.grad, expected, rtol=1e-5)

    def test_bad_options(self):
        with pytest.raises(ValueError, match=r"gradient must be one of plain, precond.*'steep'"):
            nn.WinogradConv(1, 1, rng, gradient="steep")
        with pytest.raises(ValueError, match="no transform for m=3"):
            nn.WinogradConv(1, 1, rng, m=3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MaskedConv(3, 6, 3, rng, padding=1),
        lambda: nn.WinogradConv(3, 6, rng),
        lambda: nn.WinogradConv(3, 6, rng, relu=True, gradient="preconditioned"),
    ],
    ids=["masked", "native", "relu"],
)
def test_a_mask_outlasts_momentum_and_weight_decay(make):
    """Pruned in the middle of training, with velocities of weights that are pruned."""
    layer = make()
    x = Tensor(images(2, 3, 6, 6))
    optimiser = optim.SGD(layer.parameters(), 1e-3, momentum=0.9, weight_decay=0.1, nesterov=True)
    for step in range(6):
        if step == 2:
            layer.prune(0.4)
            mask = layer.mask.copy()
            assert mask.sum() == round(0.4 * mask.size) and layer.density == mask.mean()
        optimiser.zero_grad()
        (layer(x) ** 2).sum().backward()
        optimiser.step()
    assert_array_equal(layer.mask, mask)
    y = layer(x).data
    layer.weight.data = layer.weight.data * mask
    assert_array_equal(layer(x).data, y)
    other = make()
    other.load_state_dict(layer.state_dict())
    assert_array_equal(other(x).data, y)
    layer.prune(0.2)
    assert layer.mask.sum() == round(0.2 * mask.size) and not (layer.mask & ~mask).any()


def test_masked_convolution():
    layer, x = nn.MaskedConv(4, 6, 3, rng, groups=2, stride=2, bias=True), images(2, 4, 7, 7)
    layer.prune(0.3)
    expected = mf.conv(x, layer.weight.data, layer.bias.data, groups=2, stride=2)
    assert_array_equal(layer(Tensor(x)).data, expected)
    with pytest.raises(ValueError, match="score must be 'magnitude', got 'importance'"):
        layer.prune(0.2, "importance")


class TestNetworks:
    @pytest.mark.parametrize(
        ("network", "convolutions", "others", "parameters"),
        [
            ("vgg-nagadomi", 228.27, [4.194, 1.049, 0.01024], 7_582_154),
            ("convpool-cnn-c", 406.09, [2.359, 1.229], 1_388_256),
            ("resnet18", 2890.14, [118.01, 12.85, 6.42, 6.42, 25.69, 0.512], 11_696_552),
        ],
    )
    def test_they_are_the_published_ones(self, network, convolutions, others, parameters):
        weights = 0
        for form, share in (("spatial", 1), ("winograd-relu", 16 / 36)):
            name = f"{form}-{network}"
            shape = models.default_shape(name)
            model = models.build(name, **shape)
            counted = operations.count(model, shape["channels"], shape["size"])
            pruned = [
                layer for layer in counted.layers if layer.kind in ("MaskedConv", "WinogradConv")
            ]
            rest = [layer.multiplications / 1e6 for layer in counted.layers if layer not in pruned]
            assert_allclose(rest, others, rtol=0.01)
            products = sum(layer.multiplications for layer in pruned)
            assert_allclose(products / 1e6, share * convolutions, rtol=1e-4)
            if form == "spatial":
                assert counted.parameters == parameters
                weights = sum(layer.weight.size for layer in prunable(model))
            else:
                assert counted.parameters == parameters + weights * 7 // 9

    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 27)])
    def test_they_take_images_of_odd_sizes(self, network, channels, size):
        for form in models.FORMS:
            name = f"{form}-{network}-8"
            model = models.build(name, channels=channels, size=size, classes=10)
            y = model(Tensor(images(2, channels, size, size)))
            assert y.shape == (2, 10) and np.isfinite(y.data).all()

    @pytest.mark.parametrize("network", NETWORKS)
    def test_the_native_form_is_the_spatial_one_until_it_is_pruned(self, network):
        """Same answers at first, and after steps by the preconditioned gradient."""
        shape = {"channels": 1, "size": 16, "classes": 4}
        x, labels = Tensor(images(16, 1, 16, 16)), np.arange(16) % 4
        answers = []
        for form in ("spatial", "winograd"):
            model = models.build(f"{form}-{network}-8", **shape)
            for _, module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.share = 0
            optimiser = optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=0.1)
            losses = []
            for _ in range(4):
                loss = apply("cross_entropy", model(x), labels=labels)
                losses.append(loss.item())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            answers.append(losses)
        assert_allclose(*answers, rtol=2e-3)
        assert answers[0][-1] < answers[0][0]

    def test_the_relu_is_where_the_form_says(self):
        for form, module_relu, inside in (
            ("spatial", True, False),
            ("winograd", True, False),
            ("winograd-relu", False, True),
        ):
            model = models.build(f"{form}-vgg-nagadomi-8", size=8)
            layers = model.features.layers
            norms = [module.relu for module in layers if isinstance(module, nn.BatchNorm)]
            assert norms == [module_relu] * 7 + [True]  # the last is before the classifier
            if form != "spatial":
                relus = [layer.relu for layer in prunable(model)]
                assert relus == [False] + [inside] * 7


def test_multiplications_measured_on_images():
    x = images(8, 1, 16, 16)
    for form, name, activations in (
        ("spatial", "spatial", 0.5),
        ("winograd", "native", 1),
        ("winograd-relu", "winograd-relu", 0.5),
    ):
        model = models.build(f"{form}-vgg-nagadomi-8", channels=1, size=16)
        for layer in prunable(model):
            layer.prune(0.4)
        for _ in range(30):
            model(Tensor(x))  # for the running statistics
        rows = multiplications.measured(model, x)
        assert [row.form for row in rows[1:8]] == [name] * 7
        assert [row.form for row in rows[8:]] == ["dense"] * 3
        assert rows[0].activation_density > 0.9
        for row in rows[1:8]:
            assert row.weight_density == pytest.approx(0.4, abs=0.01)
            assert row.activation_density == pytest.approx(activations, abs=0.2)
        assert sum(row.static for row in rows) == pytest.approx(
            operations.count(model, 1, 16).multiplications
        )
    with pytest.raises(ValueError, match="no layer that can be pruned"):
        multiplications.measured(models.build("conv-lenet"), images(1, 1, 28, 28))


def test_winograd_layers_count_with_their_transforms():
    layer = nn.WinogradConv(5, 7, rng, m=4, points="barabasz")
    layer.prune(0.25)
    (row,) = operations.count(nn.Sequential(layer), channels=5, size=8).layers
    described = multiplications.describe(layer, "conv", (8, 8))
    assert described.points == "barabasz"
    products = 4 * layer.mask.sum()
    assert row.multiplications == products + described.transforms[0]
    assert row.additions == products + described.transforms[1]


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_runs_the_sparse_kernel(form, monkeypatch):
    model = models.build(f"{form}-vgg-nagadomi-8", channels=1, size=8)
    for layer in prunable(model):
        layer.prune(0.2)
    x = Tensor(images(3, 1, 8, 8))
    with no_grad():
        y = model.eval()(x).data
        monkeypatch.setattr(nn.WinogradConv, "training", True)  # the dense kernel
        for layer in prunable(model):
            layer.__dict__.pop("training")
        assert_allclose(model(x).data, y, rtol=1e-4, atol=1e-5)
    if form != "spatial":
        assert "sparse" in {kernel for kernel, _ in prunable(model)[3].weights._plans}


def test_training_runs_the_dense_kernel_on_a_gpu():
    layer, x = nn.WinogradConv(2, 3, rng, relu=True), images(1, 2, 5, 4)
    on_the_cpu = layer(Tensor(x))
    with mf.emulated_cuda():
        assert_allclose(layer(Tensor(x)).data, on_the_cpu.data, atol=1e-5)
