import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import models, nn, optim
from mulfree_cupy.autograd import Tensor, apply, no_grad
from mulfree_cupy.ops.batch_norm import batch_norm

rng = np.random.default_rng(0)


def normalised(x, weight, bias, eps):
    """Batch normalisation from its formula."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight.reshape(shape) + bias.reshape(shape)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 7), (1, 3, 2, 1), (2, 3, 40, 33)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0, -3000])
def test_batch_norm_is_its_formula(shape, dtype, offset):
    """Also if the mean is large compared with the deviation, as after an adder convolution."""
    x = (rng.normal(size=shape) * 50 + offset).astype(dtype)
    weight, bias = rng.normal(size=(2, 3)).astype(dtype)
    residual = rng.normal(size=shape).astype(dtype)
    expected = normalised(x.astype(float), weight.astype(float), bias.astype(float), 1e-5)
    tolerance = {"float32": 2e-4 if offset else 1e-5, "float64": 1e-10}[dtype]
    y, mean, _ = batch_norm(x, weight, bias)
    assert y.dtype == dtype
    assert_allclose(y, expected, atol=tolerance)
    assert_allclose(mean, x.mean(axis=(0, *range(2, x.ndim)), dtype=float), rtol=1e-5, atol=1e-4)
    y, *_ = batch_norm(x, weight, bias, residual, relu=True)
    assert_allclose(y, np.maximum(expected + residual, 0), atol=tolerance)


def test_batch_norm_refuses_what_does_not_fit():
    x, ones = np.ones((2, 3, 4, 4)), np.ones(3)
    with pytest.raises(ValueError, match=r"batch_norm: weight must have shape \(3,\).*\(2,\)"):
        batch_norm(x, ones[:2], ones)
    with pytest.raises(ValueError, match=r"batch_norm: residual must have shape \(2, 3, 4, 4\)"):
        batch_norm(x, ones, ones, x[:1])
    with pytest.raises(ValueError, match=r"4 dimensions \(N, C, H, W\) or 2 .*\(2, 3, 4\)"):
        batch_norm(x[..., 0], ones, ones)
    with pytest.raises(ValueError, match="mean and variance must be given together"):
        batch_norm(x, ones, ones, mean=ones)
    with pytest.raises(ValueError, match="has no statistics"):
        batch_norm(x[:0], ones, ones)
    with pytest.raises(ValueError, match="one value per channel has no variance"):
        nn.BatchNorm(3)(Tensor(np.ones((1, 3), np.float32)))


def test_batch_norm_learns_running_statistics():
    layer = nn.BatchNorm(3, momentum=1.0)
    x = rng.normal(2, 3, size=(50, 3)).astype(np.float32)
    layer(Tensor(x))
    assert_allclose(layer.running_mean, x.mean(axis=0), rtol=1e-5)
    assert_allclose(layer.running_var, x.var(axis=0, ddof=1), rtol=1e-5)
    evaluated = layer.eval()(Tensor(x)).data
    assert_allclose(evaluated, (x - x.mean(0)) / np.sqrt(x.var(0, ddof=1) + 1e-5), atol=1e-5)


def test_layers_run_the_operations():
    x = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
    for layer, function in (
        (nn.Conv(4, 6, 3, rng, bias=True, stride=2, padding=1, groups=2), mf.conv),
        (nn.AdderConv(4, 6, 3, rng, bias=True, stride=2, padding=1, groups=2), mf.adder_conv),
    ):
        expected = function(x, layer.weight.data, layer.bias.data, stride=2, padding=1, groups=2)
        assert_array_equal(layer(Tensor(x)).data, expected)
        assert layer.weight.adder == (function is mf.adder_conv)
    linear = nn.Linear(8, 5, rng)
    assert_allclose(
        linear(Tensor(x[0, 0])).data, x[0, 0] @ linear.weight.data.T + linear.bias.data, rtol=1e-5
    )


def test_kernels_may_be_oblong():
    x = Tensor(rng.normal(size=(1, 2, 5, 6)).astype(np.float32))
    assert nn.Conv(2, 3, (3, 1), rng)(x).shape == (1, 3, 3, 6)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.Conv(4, 0, 3, rng), "Conv: filters must be at least 1, got 0"),
        (lambda: nn.Conv(4, 6, 3, rng, groups=4), "Conv: groups=4 must divide filters, got 6"),
        (lambda: nn.Conv(4, 6, 3, rng, groups=0), "Conv: groups must be at least 1, got 0"),
        (lambda: nn.AdderConv(-4, 6, 3, rng), "AdderConv: channels must be at least 1, got -4"),
        (lambda: nn.AdderConv(4, 6, (3, 0), rng), "AdderConv: kernel_size must be at least 1"),
        (lambda: nn.Linear(8, 0, rng), "Linear: out_features must be at least 1, got 0"),
        (lambda: nn.BatchNorm(0), "BatchNorm: channels must be at least 1, got 0"),
        (lambda: nn.WinogradConv(4, 0, rng), "WinogradConv: filters must be at least 1, got 0"),
        (
            lambda: nn.ShiftConv(mf.modulo_shifts(9, 3), 0, rng),
            "ShiftConv: filters must be at least 1, got 0",
        ),
    ],
)
def test_layers_refuse_sizes_that_cannot_be(layer, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        layer()


def test_layers_refuse_options_that_there_are_not():
    with pytest.raises(TypeError, match="^AdderConv: there is no option strides; there are .*sign"):
        nn.AdderConv(3, 4, 3, rng, strides=2)
    with pytest.raises(TypeError, match="^Conv: there is no option scale; there are .*stride, pad"):
        nn.Conv(3, 4, 3, rng, scale=True)


def test_dropout_keeps_the_mean_and_only_while_training():
    layer = nn.Dropout(0.25, np.random.default_rng(0))
    x = Tensor(np.ones((100, 100), np.float32))
    y = layer(x).data
    assert set(np.unique(y)) == {0, np.float32(4 / 3)} and abs(y.mean() - 1) < 0.02
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="share must be in"):
        nn.Dropout(1.0, rng)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_dropout_of_integers(dtype):
    y = nn.Dropout(0.5, np.random.default_rng(1))(Tensor(np.ones(100, dtype))).data
    assert y.dtype == np.float64
    assert set(y) == {0, 2}


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_layers_with_weights_refuse_raw_pixels(dtype):
    layers = [kind(2, 2, 3, rng) for kind in (nn.Conv, nn.AdderConv, nn.BinaryConv)]
    layers += [kind(np.zeros((2, 2), int), 2, rng) for kind in (nn.ShiftConv, nn.ShiftAdderConv)]
    layers += [nn.WinogradConv(2, 2, rng), nn.MaskedConv(2, 2, 3, rng), nn.Linear(2, 2, rng)]
    for layer in layers:
        message = rf"{type(layer).__name__}: x must be of floats, got {np.dtype(dtype)} of shape"
        for x in (np.ones((1, 2, 4, 4), dtype), Tensor(np.ones((1, 2, 4, 4), dtype))):
            with pytest.raises(TypeError, match=message):
                layer(x)


@pytest.mark.parametrize("adder", [False, True])
def test_a_parameter_may_be_one_number(adder):
    class Scaled(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(np.float32(3), adder=adder)

    model = Scaled()
    optimiser = optim.SGD(model.parameters(), 0.5, momentum=0.5, weight_decay=0.25)
    for _ in range(2):
        (model.scale * model.scale).backward()
        optimiser.step()
    for array in (model.scale.data, model.scale.grad, optimiser.velocities[0]):
        assert (type(array), array.dtype, array.shape) == (np.ndarray, np.float32, ())
    model.load_state_dict(model.state_dict())
    optimiser.load_state_dict(optimiser.state_dict())


def test_observed_modules_are_told_of_in_order():
    seen = []
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    with nn.observed(lambda module, answer, _: seen.append((type(module).__name__, answer.shape))):
        model(Tensor(np.ones((2, 3, 1, 1))))
    assert seen == [("ReLU", (2, 3, 1, 1)), ("Flatten", (2, 3)), ("Sequential", (2, 3))]


def trained_once(**options):
    """One step of a small AdderNet from fixed weights."""
    model = models.build("adder-lenet", size=8)
    optimiser = optim.SGD(model.parameters(), 0.1, momentum=0.9, **options)
    x = Tensor(np.random.default_rng(2).normal(size=(8, 1, 8, 8)).astype(np.float32))
    for _ in range(2):
        apply("cross_entropy", model(x), labels=np.arange(8)).backward()
    optimiser.step()
    return model


def test_state_is_saved_and_loaded_by_name():
    source, target = trained_once(), models.build("adder-lenet", size=8, seed=3)
    state = source.state_dict()
    assert {"conv1.weight", "bn1.bias", "bn1.running_mean", "fc3.weight"} <= state.keys()
    target.load_state_dict(state)
    x = Tensor(rng.normal(size=(4, 1, 8, 8)).astype(np.float32))
    with no_grad():
        assert_array_equal(source.eval()(x).data, target.eval()(x).data)

    with pytest.raises(ValueError, match=r"missing \['conv1.weight'\].*unknown \['conv9.weight'\]"):
        target.load_state_dict(
            {
                name.replace("conv1", "conv9") if name == "conv1.weight" else name: array
                for name, array in state.items()
            }
        )
    with pytest.raises(ValueError, match=r"bn1.bias must have shape \(6,\), got \(1,\)"):
        target.load_state_dict({**state, "bn1.bias": np.zeros(1)})
    with pytest.raises(
        TypeError, match=r"a mapping from names to arrays, .*state_dict\(\).* got str"
    ):
        target.load_state_dict("checkpoint.npz")


def test_the_adaptive_rate_sees_accumulated_gradients():
    """After accumulation the step is that of the sum; in backward it is the sum of two."""
    before = models.build("adder-lenet", size=8).conv1.weight.data
    for adder, size in (("adaptive", 0.2), ("adaptive in backward", 0.4)):
        change = (before - trained_once(adder=adder).conv1.weight.data) / 0.1
        assert_allclose(np.sqrt(np.mean(change**2)), size, rtol=1e-4)


def test_the_last_optimiser_decides_where_the_rate_is_adapted():
    filters = nn.Parameter(np.ones(3), adder=True)
    optim.SGD([filters], 0.01, adder="adaptive in backward")
    assert filters.on_gradient is not None
    optim.SGD([filters], 0.01, adder="fixed")
    assert filters.on_gradient is None


def test_a_parameter_under_two_names_takes_one_step():
    w = nn.Parameter(np.ones(2))
    optimiser = optim.SGD([w, w], 0.5)
    w.sum().backward()
    optimiser.step()
    assert_allclose(w.data, 0.5)


def test_a_fixed_rate_scales_adder_gradients_only():
    filters, others = nn.Parameter(np.ones(3), adder=True), nn.Parameter(np.ones(3))
    optimiser = optim.SGD([filters, others], 0.01, adder="fixed", adder_scale=100)
    (filters + others).sum().backward()
    optimiser.step()
    assert_allclose(filters.data, 0, atol=1e-15)
    assert_allclose(others.data, 0.99)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_formula(nesterov):
    w = nn.Parameter(np.array([2.0, -1.0]))
    optimiser = optim.SGD([w], 0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    expected, velocity = w.data.copy(), 0
    for _ in range(4):
        optimiser.zero_grad()
        (w**2).sum().backward()
        optimiser.step()
        gradient = 2 * expected + 0.01 * expected
        velocity = 0.9 * velocity + gradient
        expected = expected - 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
        assert_allclose(w.data, expected)
    other = optim.SGD([w], 0.1, momentum=0.9)
    other.load_state_dict(optimiser.state_dict())
    assert_array_equal(other.velocities[0], optimiser.velocities[0])


def test_parameters_are_found_in_lists_and_dicts():
    class Branches(nn.Module):
        def __init__(self):
            self.scales = [nn.Parameter(np.ones(1)), nn.Parameter(np.ones(2))]
            self.named = {"a": nn.ReLU(), "b": [nn.Linear(2, 3, rng)], 3: (nn.Parameter([4.0]),)}
            self.table = np.arange(3)

    model = Branches()
    names = ["scales.0", "scales.1", "named.3.0", "named.b.0.weight", "named.b.0.bias"]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == [*names[:3], "table", *names[3:]]
    assert not model.eval().named["b"][0].training
    state = {name: array + 1 for name, array in model.state_dict().items()}
    model.load_state_dict(state)
    assert_array_equal(model.scales[1].data, [2, 2])
    assert_array_equal(model.named[3][0].data, [5])
    assert_array_equal(model.table, [1, 2, 3])


@pytest.mark.parametrize(
    "named",
    [
        {1: nn.Parameter([1.0]), "1": nn.Parameter([2.0])},
        {"a.weight": nn.Parameter([1.0]), "a": nn.BatchNorm(1)},
    ],
)
def test_two_parameters_of_one_name_are_refused(named):
    model = nn.Module()
    model.named = named
    for use in (model.state_dict, lambda: model.load_state_dict({})):
        with pytest.raises(ValueError, match="Module: two parameters or buffers have the name"):
            use()


def test_numbers_of_numpy_are_no_buffers():
    one = np.int64(1)
    for layer in (
        nn.BatchNorm(np.int64(4), eps=np.float32(1e-5), momentum=np.float64(0.1)),
        nn.Conv(np.int64(4), np.int32(4), np.int64(3), rng, stride=one, padding=one),
        nn.AdderConv(4, 4, 3, rng, groups=np.int64(2), dilation=(one, one)),
        nn.ShiftConv(mf.modulo_shifts(4, 1), 4, rng, stride=one),
        nn.Shift(mf.modulo_shifts(4, 1), stride=one),
        nn.MaxPool(np.int64(2), stride=one),
        nn.Dropout(np.float32(0.5), rng),
        nn.WinogradConv(4, 4, rng, padding=one),
    ):
        assert all(array.ndim for array in layer.state_dict().values())
        layer.load_state_dict(layer.state_dict())
        layer.to(np)(Tensor(np.ones((2, 4, 5, 5), np.float32)))


def test_sizes_of_small_integers_draw_the_same_weights():
    """Where products of the sizes overflow their dtype, and NumPy would take roots in float16."""
    for layer in (
        lambda size, rng: nn.Conv(size(200), size(200), size(3), rng, groups=size(2)),
        lambda size, rng: nn.Linear(size(200), size(3), rng),
        lambda size, rng: nn.ShiftConv(mf.modulo_shifts(9), size(200), rng),
        lambda size, rng: nn.WinogradConv(size(8), size(200), rng),
        lambda size, rng: nn.WinogradConv(size(200), size(8), rng, relu=True),
    ):
        plain, small = (layer(size, np.random.default_rng(1)) for size in (int, np.uint8))
        assert_array_equal(small.weight.data, plain.weight.data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bad: nn.BatchNorm(3, eps=bad), "BatchNorm: eps"),
        (lambda bad: nn.BatchNorm(3, momentum=bad), "BatchNorm: momentum"),
        (lambda bad: nn.Dropout(bad, rng), "Dropout: share"),
        (lambda bad: optim.SGD([], bad), "SGD: rate"),
        (lambda bad: setattr(optim.SGD([], 1), "rate", bad), "SGD: rate"),
        (lambda bad: optim.SGD([], 1, momentum=bad), "SGD: momentum"),
        (lambda bad: mf.adaptive_rate(np.ones(3), bad), "adaptive_rate: eta"),
        (lambda bad: mf.adaptive_rate(np.ones(0), bad), "adaptive_rate: eta"),
        (lambda bad: batch_norm(np.ones((2, 1)), [1.0], [0.0], eps=bad), "batch_norm: eps"),
        (
            lambda bad: batch_norm(np.ones((2, 1)), [1.0], [0.0], momentum=bad),
            "batch_norm: momentum",
        ),
    ],
)
def test_numbers_that_make_no_sense(call, message):
    for bad in (np.nan, np.inf, -1e-9, 10**400, np.float32(-1)):
        with pytest.raises(ValueError, match=f"^{message} must be a finite number >= 0, got "):
            call(bad)
    for bad in ("1", None, [1.0], 1j):
        with pytest.raises(TypeError, match=f"^{message} must be a number, got "):
            call(bad)


def test_sgd_refuses_bad_numbers():
    for options, message in (
        (dict(rate=-1), "rate must be a finite number >= 0, got -1"),
        (dict(rate=np.nan), "rate must be"),
        (dict(rate=0.1, eta=-1), "eta must be"),
        (dict(rate=0.1, adder="fixed", adder_scale=np.inf), "adder_scale must be"),
        (dict(rate=0.1, nesterov=True), "nesterov needs momentum"),
        (dict(rate=0.1, adder="sometimes"), "adder must be 'adaptive'"),
    ):
        with pytest.raises(ValueError, match=message):
            optim.SGD([], **options)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("resnet20", dict(), 272_484),
        ("resnet32", dict(), 466_916),
        # The published networks' and the normalisation of the logits.
        ("resnet18", dict(size=224, classes=1000), 11_689_512 + 2000),
        ("resnet50", dict(size=224, classes=1000), 25_557_032 + 2000),
        ("vggsmall", dict(), 4_660_126),
    ],
)
def test_twins_have_the_same_parameters(name, shape, count):
    adder, conv = (models.build(f"{kind}-{name}", **shape) for kind in ("adder", "conv"))
    shapes = [(n, p.shape) for n, p in adder.named_parameters()]
    assert shapes == [(n, p.shape) for n, p in conv.named_parameters()]
    total = sum(p.size for p in adder.parameters())
    assert total == count
    kinds = [m for _, m in adder.modules() if isinstance(m, nn.AdderConv)]
    assert kinds and not [m for _, m in conv.modules() if isinstance(m, nn.AdderConv)]
    assert isinstance(adder.features.layers[0] if name == "vggsmall" else adder.conv1, nn.Conv)


@pytest.mark.parametrize("kind", ["adder", "conv"])
@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet20", 3, 32),
        ("resnet20", 1, 8),
        ("lenet", 1, 28),
        ("lenet", 1, 8),
        ("vggsmall", 3, 32),
    ],
)
def test_networks_take_their_images(kind, name, channels, size):
    model = models.build(f"{kind}-{name}", channels=channels, size=size).eval()
    with no_grad():
        assert model(Tensor(np.ones((2, channels, size, size), np.float32))).shape == (2, 10)


def test_a_network_prints_as_a_tree():
    rng = np.random.default_rng(0)
    block = nn.Sequential(nn.Conv(3, 4, 3, rng, padding=1, bias=True), nn.MaxPool(2))
    assert repr(block) == (
        "Sequential(\n"
        "  layers.0: Conv(weight=(4, 3, 3, 3), bias=(4,), groups=1, padding=1)\n"
        "  layers.1: MaxPool(kernel_size=2, stride=2, padding=0)\n"
        ")"
    )
    assert "\n  stages: Sequential(\n    layers.0: " in repr(models.build("adder-resnet20"))


def test_models_refuse_what_they_cannot_do():
    nearest = "no model named 'adder-alexnet'; the nearest of .* are adder-lenet, "
    with pytest.raises(ValueError, match=nearest):
        models.build("adder-alexnet")
    large = np.zeros((2, 1, 32, 32), np.float32)
    with pytest.raises(ValueError, match=r"LeNet: x must be images of size 28, got .*32, 32"):
        models.build("adder-lenet")(large)
    with pytest.raises(ValueError, match=r"Linear: x must have shape \(N, 8192\), got \(1, 12800"):
        models.build("conv-vggsmall")(np.zeros((1, 3, 40, 40), np.float32))
    with pytest.raises(ValueError, match="size must be a multiple of 8 up to 256, got 20"):
        models.build("adder-vggsmall", size=20)
    for name, size, limit in (
        ("adder-lenet", 1, "from 2 to 256"),
        ("conv-lenet", 100_000, "at most 4096"),
        ("conv-lenet", 300, "from 2 to 256"),
        ("winograd-vgg-nagadomi", 7, "from 8 to 256"),
        ("winograd-vgg-nagadomi", 4096, "from 8 to 256"),
        ("conv-vggsmall", 2048, "a multiple of 8 up to 256"),
    ):
        with pytest.raises(ValueError, match=f"size must be {limit}, got {size}"):
            models.build(name, size=size)
    with pytest.raises(ValueError, match="adder-resnet20: classes must be at least 1, got 0"):
        models.build("adder-resnet20", classes=0)


def test_statistics_that_move_later_leave_a_gradient_alone():
    rng = np.random.default_rng(0)
    first, later = (Tensor(rng.normal(k, 2, (8, 3)).astype(np.float32)) for k in (0, 5))
    layer, gradients = nn.BatchNorm(3), []
    for moved in (False, True):
        layer.eval().weight.grad = None
        y = layer(first)
        if moved:
            layer.train()(later)
        y.sum().backward()
        gradients.append(layer.weight.grad)
    np.testing.assert_array_equal(*gradients)
