"""Layers and networks with prunable weights, in the three forms that the paper compares."""

import csv
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import cli, data, models, nn, optim
from mulfree_cupy.autograd import Tensor, apply, check_gradients, no_grad
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.ops.winograd import importance, precondition
from mulfree_cupy.report import pruning
from mulfree_cupy.report.convolutions import PRUNABLE
from mulfree_cupy.report.counts import count, number
from mulfree_cupy.train import (
    Interrupted,
    Plan,
    Recipe,
    Training,
    checkpoint,
    evaluate,
    load_model,
    prune,
    prune_layers,
)

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
        with pytest.raises(ValueError, match="WinogradConv: no transform for m=3"):
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


@pytest.mark.parametrize(
    "make", [lambda: nn.MaskedConv(2, 4, 3, rng), lambda: nn.WinogradConv(2, 4, rng)]
)
def test_zeros_that_are_kept_count_as_kept(make):
    layer = make()
    size = layer.mask.size
    layer.weight.data = np.where(np.arange(size) < size // 2, 0, 1).reshape(layer.weight.shape)
    layer.weight.data = layer.weight.data.astype(np.float32)
    layer.prune(0.8)
    kept = layer.mask.copy()
    assert kept.sum() == round(0.8 * size)
    layer.prune(0.9)  # what was pruned stays so
    assert_array_equal(layer.mask, kept)
    layer.prune(0.6)
    assert layer.mask.sum() == round(0.6 * size) and not (layer.mask & ~kept).any()
    layer.prune(0.3)
    assert layer.weight.data[layer.mask].all()


def test_weights_outside_the_mask_have_no_effect_whatever_they_are():
    layer, x = nn.MaskedConv(2, 3, 3, rng), images(1, 2, 5, 5)
    layer.prune(0.5)
    want = layer(x)
    layer.weight.data[~layer.mask] = np.nan
    y = layer(x)
    assert_array_equal(y.data, want.data)
    y.sum().backward()
    assert not layer.weight.grad[~layer.mask].any()


def test_masked_convolution():
    layer, x = nn.MaskedConv(4, 6, 3, rng, groups=2, stride=2, bias=True), images(2, 4, 7, 7)
    layer.prune(0.3)
    expected = mf.conv(x, layer.weight.data, layer.bias.data, groups=2, stride=2)
    assert_array_equal(layer(Tensor(x)).data, expected)
    for options in ({"score": "importance"}, {"block": 4}):
        with pytest.raises(ValueError, match="score must be 'magnitude' and block 1, got"):
            layer.prune(0.2, **options)


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
            counted = count(network_of(model, shape["channels"], shape["size"]))
            pruned = [layer for layer in counted.convolutions if layer.form in PRUNABLE]
            rest = [layer.static / 1e6 for layer in counted.convolutions if layer not in pruned]
            assert_allclose(rest, others, rtol=0.01)
            products = sum(layer.static for layer in pruned)
            assert_allclose(products / 1e6, share * convolutions, rtol=1e-4)
            if form == "spatial":
                assert counted.parameters == parameters
                weights = sum(layer.weight.size for layer in prunable(model))
            else:
                assert counted.parameters == parameters + weights * 7 // 9

    def test_the_small_resnets_are_their_twins_but_for_one_shortcut(self):
        """Where the stride was there is pooling; the first group's shortcut has a convolution."""
        for depth in (20, 32):
            ours, twin = (
                count(network_of(models.build(f"{form}-resnet{depth}"), 3, 32)).convolutions
                for form in ("spatial", "conv")
            )
            more = sum(c.direct for c in ours) - sum(c.direct for c in twin)
            assert more == 16 * 16 * 32**2
            pruned = [c for c in ours if c.form == "spatial"]
            assert len(pruned) == depth - 2 and all(c.kernel == (3, 3) for c in pruned)
        for size in (1, 8, 27):
            model = models.build("winograd4-relu-resnet20", channels=1, size=size, classes=4)
            assert model(Tensor(images(2, 1, size, size))).shape == (2, 4)

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
        network = network_of(model, 1, 16)
        rows = count(network, x).convolutions
        assert [row.form for row in rows[1:8]] == [name] * 7
        assert [row.form for row in rows[8:]] == ["dense"] * 3
        assert rows[0].activation_density > 0.9
        for row in rows[1:8]:
            assert row.weight_density == pytest.approx(0.4, abs=0.01)
            assert row.activation_density == pytest.approx(activations, abs=0.2)
        products = count(network, x).number("multiplication", "papers")
        assert products == pytest.approx(sum(row.dynamic for row in rows), abs=1)
    with pytest.raises(ValueError, match="no prunable layer"):
        lenet = network_of(models.build("conv-lenet", size=8), 1, 8)
        pruning.measured(lenet, data.load("digits")[1])


def test_winograd_layers_count_with_their_transforms():
    layer = nn.WinogradConv(5, 7, rng, m=4, points="barabasz")
    layer.prune(0.25)
    model = nn.Sequential(layer, nn.GlobalAveragePool())
    row, _ = count(network_of(model, 5, 8)).steps
    assert row.convolution.points == "barabasz"
    products = 4 * layer.mask.sum()
    for i, operation in enumerate(("multiplication", "addition")):
        assert number(row.operations, operation) == products + row.convolution.transforms[i]
    assert row.parameters == layer.mask.sum()
    assert row.weight_bytes == 4 * row.parameters - (-layer.mask.size // 8)


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_runs_the_sparse_kernel(form):
    model = models.build(f"{form}-vgg-nagadomi-8", channels=1, size=8)
    for layer in prunable(model):
        layer.prune(0.2)
    x = Tensor(images(3, 1, 8, 8))
    with no_grad():
        y = model.eval()(x).data
        for layer in prunable(model):
            layer.train()  # the dense kernel
        assert_allclose(model(x).data, y, rtol=1e-4, atol=1e-5)
    if form != "spatial":
        assert "sparse" in {kernel for kernel, _ in prunable(model)[3].weights._plans}


def test_training_runs_the_dense_kernel_on_a_gpu():
    layer, x = nn.WinogradConv(2, 3, rng, relu=True), images(1, 2, 5, 4)
    on_the_cpu = layer(Tensor(x))
    with mf.emulated_cuda():
        assert_allclose(layer(Tensor(x)).data, on_the_cpu.data, atol=1e-5)


def test_a_frozen_layer_evaluates_by_its_own_gpu_kernel():
    layer, x = nn.WinogradConv(2, 3, rng, relu=True).eval(), Tensor(images(1, 2, 5, 4))
    layer.prune(0.3)

    def launched():
        with mf.emulated_cuda(trace=True) as report, no_grad():
            layer(x)
        return set(report.counts)

    dense = {"winograd_input_transform", "winograd_output_transform"}
    assert launched() == dense
    layer.freeze()
    assert launched() == {"winograd_frozen"}
    layer.weight.data = 2 * layer.weight.data
    assert launched() == dense


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Checkpoints of the three forms, and their test accuracy."""
    answers = {}
    for form in FORMS:
        path = tmp_path_factory.mktemp("trained") / f"{form}.npz"
        recipe = Recipe(f"{form}-vgg-nagadomi-16", epochs=4, batch_size=64, augment="none")
        history = Training(recipe, *digits, path=path).run(progress=False)
        answers[form] = path, history.test_accuracy[-1]
    return answers


class Killed(BaseException):
    pass


class TestPruning:
    @pytest.mark.parametrize("form", FORMS)
    def test_it_trains_prunes_and_retrains(self, form, digits, trained, tmp_path):
        source, accuracy = trained[form]
        assert accuracy > 0.7
        steps = prune(source, Plan([0.6, 0.4], epochs=2), *digits, out=tmp_path, progress=False)
        assert [step.density for step in steps] == [1, 0.6, 0.4]
        assert steps[0].test_accuracy == accuracy
        assert steps[-1].test_accuracy > accuracy - 0.1
        first, second = (prunable(load_model(step.path)[0]) for step in steps[1:])
        for i, (before, after) in enumerate(zip(first, second, strict=True)):
            for layer, density in ((before, 0.6), (after, 0.4)):
                wanted = round((density if i else 0.8) * layer.mask.size)
                assert layer.mask.sum() == wanted
                assert not layer.weight.data[~layer.mask].any()
                assert np.count_nonzero(layer.weight.data) == wanted
            assert not (after.mask & ~before.mask).any()

    @pytest.mark.parametrize(
        ("moment", "stop"), [(3, "kill"), (7, "kill"), (8, "Ctrl-C"), (13, "kill")]
    )
    def test_a_run_that_stopped_ends_as_one_that_did_not(
        self, moment, stop, digits, tmp_path, monkeypatch
    ):
        """Each density takes 2 epochs of 5 steps: stopped before the first checkpoint or after."""
        train, test = digits
        few = replace(train, images=train.images[:200], labels=train.labels[:200]), test
        recipe = Recipe("winograd-relu-vgg-nagadomi-8", epochs=1, batch_size=40, augment="crop")
        source = tmp_path / "source.npz"
        Training(recipe, *few, path=source).run(progress=False)
        plan, options = Plan([0.6, 0.4], epochs=2), {"out": tmp_path / "out", "progress": False}
        step, left = Training._train_step, iter(range(moment))

        def mortal(self, *batch):
            if next(left, None) is None:
                if stop == "kill":
                    raise Killed
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, *batch)

        monkeypatch.setattr(Training, "_train_step", mortal)
        with pytest.raises(Killed if stop == "kill" else Interrupted):
            prune(source, plan, *few, **options)
        monkeypatch.undo()
        with pytest.raises(ValueError, match="out holds a pruning run; resume it"):
            prune(source, plan, *few, **options)
        with pytest.raises(ValueError, match="another run: it differs in schedule, epochs"):
            prune(source, Plan([0.6], epochs=3), *few, **options, resume=True)
        resumed = prune(source, plan, *few, **options, resume=True)
        (tmp_path / "out" / "plan.json").unlink()  # the networks may be of any plan now
        for resume in (True, False):
            with pytest.raises(ValueError, match="out holds a pruning run without its plan.json"):
                prune(source, plan, *few, **options, resume=resume)
        whole = prune(source, plan, *few, out=tmp_path / "whole", progress=False)
        for ours, theirs in zip(resumed, whole, strict=True):
            assert replace(ours, path=theirs.path) == theirs
            one, other = checkpoint.load(ours.path).weights, checkpoint.load(theirs.path).weights
            for name, array in one.items():
                assert_array_equal(array, other[name])

    def test_which_layers_are_pruned(self):
        vgg = models.build("winograd-vgg-nagadomi-8", size=8)
        prune_layers(vgg, 0.3, first_layer=0.7, score="importance")
        densities = [layer.density for layer in prunable(vgg)]
        assert_allclose(densities, [0.7] + [0.3] * 7, atol=0.005)
        prune_layers(vgg, 0.2, first_layer=0.1)
        assert_allclose([layer.density for layer in prunable(vgg)], 0.2, atol=0.005)
        resnet = models.build("spatial-resnet18-8", size=8)
        prune_layers(resnet, 0.3)
        assert_allclose([layer.density for layer in prunable(resnet)], 0.3, atol=0.005)
        assert resnet.conv0.weight.data.all()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: Plan([]), r"schedule must be decreasing densities, got \(\)"),
            (lambda: Plan([0.4, 0.4]), "schedule must be decreasing densities"),
            (lambda: Plan([1.5]), "densities must be above 0 and at most 1, got 1.5"),
            (lambda: Plan([0.5], first_layer=0), "densities must be above 0 and at most 1, got 0"),
            (lambda: Plan([0.5], epochs=0), "epochs must be at least 1"),
            (lambda: Plan([0.5], rate=np.nan), "rate must be a finite number >= 0, got nan"),
            (lambda: Plan([0.5], block=0), "block must be at least 1, got 0"),
            (lambda: Plan([0.5], score="size"), "score must be 'magnitude' or 'importance'"),
            (lambda: prune_layers(models.build("conv-lenet"), 0.5), "no prunable layers"),
        ],
    )
    def test_bad_plans(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_a_run_that_is_refused_leaves_nothing(self, digits, trained, tmp_path):
        (source, _), (train, test) = trained["spatial"], digits
        plan, out = Plan([0.5], epochs=1, score="importance"), tmp_path / "out"
        with pytest.raises(ValueError, match="MaskedConv.prune: score must be 'magnitude'"):
            prune(source, plan, train, test, out=out, progress=False)
        wide = [replace(part, images=np.tile(part.images, (2, 2))) for part in digits]
        with pytest.raises(ValueError, match="was trained on images of"):
            prune(source, plan, *wide, out=out, progress=False)
        assert not out.exists()

    def test_the_command(self, trained, tmp_path, capsys):
        source, accuracy = trained["winograd-relu"]
        out = tmp_path / "pruned"
        arguments = ["prune", str(source), "--schedule", "0.5", "--epochs", "1", "--out", str(out)]
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        with (out / "pruning.csv").open() as file:
            dense, pruned = csv.DictReader(file)
        assert float(dense["test_accuracy"]) == pytest.approx(accuracy, rel=1e-4)
        assert float(pruned["kept"]) == pytest.approx(0.5, abs=0.01)
        assert float(dense["static"]) == pytest.approx(2.25, rel=0.01)
        assert float(pruned["static"]) == pytest.approx(4.5, rel=0.05)
        assert float(pruned["dynamic"]) > 1.3 * float(pruned["static"])
        assert f"{float(pruned['dynamic']):.2f}x" in printed and (out / "pruning.png").exists()
        name = "winograd-relu-vgg-nagadomi-16"
        (rows,) = pruning.read(out / "pruning.csv").values()
        pruning.write(tmp_path / "twice.png", {name: rows, "twin": rows})
        assert pruning.read(tmp_path / "twice.csv") == {name: rows, "twin": rows}
        (tmp_path / "other.csv").write_text("network,epoch\n")
        with pytest.raises(ValueError, match="is not a table of mulfree prune"):
            pruning.read(tmp_path / "other.csv")

        assert cli.main(arguments) == 1
        assert "holds a pruning run" in capsys.readouterr().err
        assert cli.main([*arguments, "--resume"]) == 0
        assert capsys.readouterr().out == printed

        last, folder = str(out / "01-density-0.5.npz"), tmp_path / "kernels"
        assert cli.main(["count", last, "--data", "digits", "--picture", str(folder)]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert rows[2].split()[:3] == ["features.layers.2", "winograd-relu", "50.0%"]
        assert len(list(folder.glob("*.png"))) == 8
        assert cli.main(["count", last, "--layers", "--csv", str(tmp_path / "counts.csv")]) == 0
        assert "features.layers.2" in capsys.readouterr().out
        assert "winograd_conv" in (tmp_path / "counts.csv").read_text()
        assert cli.main(["count", "spatial-vgg-nagadomi", "--data", "digits"]) == 1
        assert "--data needs a checkpoint" in capsys.readouterr().err
        for wrong, message in (
            (["count", last, "--size", "9"], f"--size is 8 in {last}"),
            (["count", "conv-lenet", "--picture", "x"], "--picture draws Winograd layers, and"),
        ):
            assert cli.main(wrong) == 1
            assert message in capsys.readouterr().err
        model, saved = load_model(last)
        accuracy = evaluate(model, data.load("digits")[1], saved.mean, saved.std)
        assert f"{accuracy:9.2%}" in printed
