"""Layers and networks of shifts, and the ways between their conventions."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import cli, models, nn, optim
from mulfree_cupy.autograd import Tensor, apply, no_grad
from mulfree_cupy.compat import chainer
from mulfree_cupy.models.shiftnet import Group, Preactivation, ShiftNet
from mulfree_cupy.models.shiftresnet import CSC
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.report.counts import count

rng = np.random.default_rng(0)
TABLE = mf.modulo_shifts(11)


def images(*shape):
    return rng.normal(size=shape).astype(np.float32)


def parameters(model):
    return sum(p.size for p in model.parameters())


def kept_floats(answer):
    """The arrays of floats that the tape holds for the backward of one operation."""
    found, seen, todo = [], set(), [answer.node.pullback]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            found += [thing] if thing.dtype.kind == "f" else []
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, (list, tuple)):
            todo += thing
        elif getattr(thing, "__closure__", None):
            todo += [cell.cell_contents for cell in thing.__closure__]
    return found


class TestLayers:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_they_run_the_operations(self, stride):
        x = images(2, 11, 5, 6)
        assert_array_equal(
            nn.Shift(TABLE, stride=stride)(Tensor(x)).data, mf.shift(x, TABLE, stride=stride)
        )
        for kind, function, adder in (
            (nn.ShiftConv, mf.shift_conv, False),
            (nn.ShiftAdderConv, mf.shift_adder_conv, True),
        ):
            layer = kind(TABLE, 4, rng, bias=True, stride=stride)
            expected = function(x, layer.weight.data, TABLE, layer.bias.data, stride=stride)
            assert_array_equal(layer(Tensor(x)).data, expected)
            assert layer.weight.shape == (4, 11) and layer.weight.adder == adder

    @pytest.mark.parametrize("kind", [nn.ShiftConv, nn.ShiftAdderConv])
    def test_only_the_input_is_kept(self, kind):
        """Half of what a shift and a 1x1 convolution one after another keep."""
        x = Tensor(images(2, 11, 5, 6))
        layer = kind(TABLE, 4, rng)
        kept = kept_floats(layer(x))
        assert {id(a) for a in kept} == {id(x.data), id(layer.weight.data)}
        assert kept_floats(nn.Shift(TABLE)(Tensor(x.data, requires_grad=True))) == []

    def test_the_table_is_saved_with_the_weights(self):
        modulo, group = (
            nn.ShiftConv(table(11), 4, np.random.default_rng(seed), stride=2)
            for seed, table in enumerate((mf.modulo_shifts, mf.group_shifts))
        )
        modulo.load_state_dict(group.state_dict())
        x = Tensor(images(2, 11, 5, 6))
        assert_array_equal(modulo(x).data, group(x).data)

    def test_average_pooling_is_its_formula(self):
        x = images(2, 3, 7, 6)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        y = nn.AvgPool(3, stride=2, padding=1)(Tensor(x)).data
        assert_allclose(y, windows[:, :, ::2, ::2].mean(axis=(4, 5)), atol=1e-6)


def normalised(x):
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    return np.maximum((x - mean) / np.sqrt(variance + 1e-5), 0)


def pointwise(x, layer, stride=1):
    w = layer.weight.data.reshape(len(layer.weight), -1)
    return np.einsum("kc,nchw->nkhw", w, x[:, :, ::stride, ::stride], optimize=True)


def moved(x, kernel_size=3):
    """Modulo shifts by their definition, pixel by pixel of a padded image."""
    h, k = kernel_size // 2, kernel_size
    padded = np.pad(x, ((0, 0), (0, 0), (h, h), (h, h)))
    y = x.copy()
    for c in range(x.shape[1] // k**2 * k**2):
        top, side = c // k % k, c % k
        y[:, c] = padded[:, c, top : top + x.shape[2], side : side + x.shape[3]]
    return y


class TestBlocks:
    def test_csc_of_the_repository(self):
        block, x = CSC("shift", 4, 6, 2, rng, expansion=3), images(3, 4, 7, 5)
        inside = normalised(pointwise(x, block.conv1))
        y = normalised(pointwise(moved(inside), block.conv2, stride=2))
        conv, norm = block.shortcut.layers
        assert not norm.relu
        beside = pointwise(x, conv, stride=2)
        beside = (beside - beside.mean((0, 2, 3), keepdims=True)) / np.sqrt(
            beside.var((0, 2, 3), keepdims=True) + 1e-5
        )
        assert_allclose(block(Tensor(x)).data, y + beside, atol=1e-4)

    @pytest.mark.parametrize("shift_first", [False, True])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_preactivation(self, shift_first, stride):
        width, options = 10 * stride, dict(expansion=2, shift_first=shift_first)
        block, x = Preactivation(10, width, stride, rng, **options), images(3, 10, 7, 5)
        inside = pointwise(normalised(moved(x) if shift_first else x), block.conv1)
        y = pointwise(normalised(moved(inside)), block.conv2, stride)
        if stride == 1:
            expected = x + y
        else:
            pooled = nn.AvgPool(3, stride=2, padding=1)(Tensor(x)).data
            expected = np.concatenate([pooled, y], axis=1)
        assert_allclose(block(Tensor(x)).data, expected, atol=1e-4)

    def test_the_strided_depthwise_twin_is_the_shift_one_with_one_hot_kernels(self):
        shift, depthwise = (CSC(kind, 4, 6, 2, rng, expansion=3) for kind in ("shift", "depthwise"))
        state = shift.state_dict()
        kernels = np.zeros((18, 1, 3, 3))
        for c, (dh, dw) in enumerate(state.pop("conv2.shifts")):
            kernels[c, 0, 1 + dh, 1 + dw] = 1
        state["conv2.layers.0.weight"] = kernels
        state["conv2.layers.1.weight"] = state.pop("conv2.weight")[:, :, None, None]
        depthwise.load_state_dict(state)
        x = Tensor(images(3, 4, 7, 5))
        assert_allclose(shift(x).data, depthwise(x).data, atol=1e-5)

    def test_they_refuse_what_does_not_fit(self):
        with pytest.raises(ValueError, match=r"channels must be at least 3\*3 = 9"):
            CSC("shift", 4, 16, 1, rng, expansion=0.5)
        with pytest.raises(ValueError, match=r"width must grow where the stride is not 1.*16 and"):
            Preactivation(16, 32, 1, rng, expansion=1)


def counts_of(name):
    shape = models.default_shape(name)
    return count(network_of(models.build(name), shape["channels"], shape["size"]))


class TestNetworks:
    @pytest.mark.parametrize(
        ("depth", "counts", "millions"),
        [
            (20, (34_906, 95_642, 186_746, 277_850), (5.95, 16.43, 32.16, 47.89)),
            (56, (0.102e6, 0.295e6, 0.583e6, 0.872e6), (15.4, 44.7, 88.8, 132.8)),
            (110, (0.203e6, 0.593e6, 1.178e6, 1.763e6), (29.5, 87.2, 173.7, 260.2)),
        ],
    )
    def test_shiftresnet_as_published(self, depth, counts, millions):
        for expansion, parameters, products in zip((1, 3, 6, 9), counts, millions, strict=True):
            counted = counts_of(f"shiftresnet{depth}-e{expansion}")
            unit, digits = (1, 0) if depth == 20 else (1e6, 3)
            assert round(counted.parameters / unit, digits) == round(parameters / unit, digits)
            digits = 2 if depth == 20 else 1
            multiplications = counted.number("multiplication", "papers")
            assert round(multiplications / 1e6, digits) == products
            assert counted.number("addition", "papers") == multiplications

    def test_a_twin_has_the_same_layers(self):
        shift, depthwise, adder = (
            models.build(f"{kind}resnet20-e3") for kind in ("shift", "depthwise-", "shift-adder-")
        )
        middles = 3 * (48 + 96 + 192)
        assert parameters(depthwise) == parameters(shift) + 9 * middles
        assert parameters(adder) == parameters(shift)
        products = counts_of("shiftresnet20-e3").number("multiplication", "papers")
        counted = counts_of("shift-adder-resnet20-e3")
        assert counted.number("multiplication", "papers") == 0
        assert counted.number("addition", "papers") == 2 * products
        moves = 3 * (48 * 32**2 + 96 * 16**2 + 192 * 8**2)  # of those pixels that a stride leaves
        assert counted.moves == counts_of("shiftresnet20-e3").moves == moves

    @pytest.mark.parametrize(
        ("variant", "published", "ours", "billions"),
        [
            ("a", 4.1e6, 4_188_680, 1.4),
            ("b", 1.1e6, 1_183_480, 0.371),
            ("c", 0.78e6, 785_272, None),
        ],
    )
    def test_shiftnet(self, variant, published, ours, billions):
        counted = counts_of(f"shiftnet-{variant}")
        assert counted.parameters == ours
        # The published figures are cut off rather than rounded: B's second one is exact.
        assert 0 <= ours / published - 1 < 0.08
        if billions:
            multiplications = counted.number("multiplication", "papers")
            assert multiplications / 1e9 == pytest.approx(billions, rel=0.02)

    @pytest.mark.parametrize(
        "name", ["shiftresnet20-e1", "shift-adder-resnet20-e1", "sc2-resnet20-e1", "shiftnet-c"]
    )
    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 33)])
    def test_they_take_images_of_any_size(self, name, channels, size):
        model = models.build(name, channels=channels, size=size, classes=10)
        y = model(Tensor(images(2, channels, size, size)))
        assert y.shape == (2, 10) and np.isfinite(y.data).all()

    @pytest.mark.parametrize(
        "name", ["shiftresnet20-e1", "depthwise-resnet20-e1", "shift-adder-resnet20-e1"]
    )
    def test_they_learn(self, name):
        model = models.build(name, channels=1, size=8, classes=4)
        optimiser = optim.SGD(model.parameters(), 0.05, momentum=0.9)
        x, labels = Tensor(images(16, 1, 8, 8)), np.arange(16) % 4
        losses = []
        for _ in range(12):
            loss = apply("cross_entropy", model(x), labels=labels)
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert losses[-1] < 0.5 * losses[0]

    def test_the_command_trains_one_on_digits(self, tmp_path, capsys):
        arguments = ["train", "--model", "shiftresnet20-e3", "--epochs", "1", "--out"]
        assert cli.main([*arguments, str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "shiftresnet20-e3, 95,354 parameters, on digits" in printed
        assert cli.main(["evaluate", str(tmp_path / "checkpoint.npz")]) == 0

    def test_the_command_counts(self, capsys):
        assert cli.main(["count", "shiftresnet20-e3", "--layers"]) == 0
        assert "stages.layers.0.conv2" in capsys.readouterr().out


def trained(model, *shape):
    """With running statistics and weights of normalisations that are not all alike."""
    model(Tensor(images(*shape)))
    for _, module in model.modules():
        if isinstance(module, nn.BatchNorm):
            for parameter in (module.weight, module.bias):
                parameter.data = parameter.data + images(*parameter.shape) / 4
    return model.eval()


class TestConversion:
    @pytest.mark.parametrize(
        ("name", "size"),
        [("shiftresnet20-e1", 8), ("shift-adder-resnet20-e1", 8), ("shiftnet-c", 32)],
    )
    def test_answers_stay(self, name, size):
        model = trained(models.build(name, size=size, classes=10), 4, 3, size, size)
        x = Tensor(images(4, 3, size, size))
        with no_grad():
            before = model(x).data
            models.convert(model, mf.group_shifts)
            assert_allclose(model(x).data, before, rtol=1e-4, atol=1e-4)
            tables = [m.shifts for _, m in model.modules() if hasattr(m, "shifts")]
            assert (tables[-1] == mf.group_shifts(len(tables[-1]))).all()
            models.convert(model, mf.modulo_shifts)
            assert_array_equal(model(x).data, before)

    def test_permutation(self):
        tables = mf.modulo_shifts(31), mf.group_shifts(31), chainer.shifts(31)
        for source in tables:
            for target in tables:
                assert_array_equal(source[models.permutation(source, target)], target)
        assert_array_equal(models.permutation(TABLE, TABLE), np.arange(11))

    def test_what_cannot_be_converted(self):
        with pytest.raises(
            ValueError, match=r"\(11, 2\), has 1 channels with .* \(-1, -1\), .* 0$"
        ):
            models.permutation(TABLE, np.zeros((11, 2), int))
        with pytest.raises(
            ValueError, match=r"^permutation: target must have shape \(C, 2\).*\(11,"
        ):
            models.permutation(TABLE, TABLE[:, 0])
        with pytest.raises(
            TypeError, match="^permutation: source must be integers, got dtype float"
        ):
            models.permutation(TABLE * 1.0, TABLE)
        network = ShiftNet(rng, (16, 3, 1), [Group(16, 1, (1, 1))], shift_first=True, classes=2)
        before = network.state_dict()
        with pytest.raises(ValueError, match=r"convert: blocks.layers.0.shift1.layers.0 does not"):
            models.convert(network, mf.group_shifts)
        network = models.build("shiftresnet20-e1")
        before = network.state_dict()
        with pytest.raises(ValueError, match="same shifts equally often"):
            models.convert(network, lambda channels, _: np.zeros((channels, 2), int))
        with pytest.raises(TypeError, match="^convert: table must be a function .*got ndarray"):
            models.convert(network, TABLE)
        for name, array in network.state_dict().items():
            assert_array_equal(array, before[name])


def chainer_by_its_words(x, ksize, dilate):
    """Equal groups, the centre's last; a group moves by (ky, kx) steps of dilate, zeros follow."""
    (kh, kw), (dy, dx) = ksize, dilate
    taps = [(i - kh // 2, j - kw // 2) for i in range(kh) for j in range(kw)]
    taps[len(taps) // 2], taps[-1] = taps[-1], taps[len(taps) // 2]
    y = np.zeros_like(x)
    _, channels, height, width = x.shape
    for c in range(channels):
        ky, kx = taps[min(c // (channels // len(taps)), len(taps) - 1)]
        for h in range(height):
            for w in range(width):
                if 0 <= h - ky * dy < height and 0 <= w - kx * dx < width:
                    y[:, c, h, w] = x[:, c, h - ky * dy, w - kx * dx]
    return y


class TestChainer:
    @pytest.mark.parametrize(
        ("ksize", "dilate"),
        [((3, 3), (1, 1)), ((1, 3), (1, 2)), ((3, 5), (2, 1)), ((3, 3), (-1, 2)), ((1, 1), (1, 1))],
    )
    def test_is_its_words(self, ksize, dilate):
        x = images(2, 17, 5, 7)
        assert_array_equal(chainer.shift(x, ksize, dilate), chainer_by_its_words(x, ksize, dilate))

    def test_its_sign_is_opposite_to_ours(self):
        x = images(1, 9, 5, 5)
        ours, theirs = mf.shift(x, mf.group_shifts(9)), chainer.shift(x)
        assert_array_equal(ours[:, 0, 1:, 1:], x[:, 0, :-1, :-1])  # down and to the right
        assert_array_equal(theirs[:, 0, :-1, :-1], x[:, 0, 1:, 1:])  # up and to the left

    def test_its_gradient_moves_the_other_way(self):
        x = Tensor(images(2, 9, 5, 6), requires_grad=True)
        seed = images(2, 9, 5, 6)
        chainer.shift(x, 3, (1, 2)).backward(seed)
        assert_array_equal(x.grad, chainer.shift(seed, 3, (-1, -2)))

    def test_it_refuses_what_chainer_refuses(self):
        x = np.zeros((1, 9, 4, 4))
        for arguments, message in (
            ((x, 2), "ksize must be odd, got 2"),
            ((x, 3, 0), "dilate must not be 0, got 0"),
            ((x[:, :8],), r"^shift: the channels of x must be at least 3\*3 = 9, .*got 8"),
            ((x[0],), r"x must have 4 dimensions \(N, C, H, W\), got shape \(9, 4, 4\)"),
        ):
            with pytest.raises(ValueError, match=message):
                chainer.shift(*arguments)
        with pytest.raises(
            ValueError, match=r"^shifts: channels must be at least 3\*3 = 9, .*got 8"
        ):
            chainer.shifts(8)
        with pytest.raises(TypeError, match=r"^shifts: channels must be an int, got 9.5"):
            chainer.shifts(9.5)


@pytest.mark.parametrize("layer", [nn.Shift, nn.ShiftConv, nn.ShiftAdderConv])
def test_layers_refuse_bad_tables(layer):
    rest = () if layer is nn.Shift else (4, np.random.default_rng(0))
    with pytest.raises(
        ValueError, match=rf"^{layer.__name__}: shifts must have shape \(C, 2\).*\(9,\)"
    ):
        layer(TABLE[:9, 0], *rest)
    with pytest.raises(
        TypeError, match=f"^{layer.__name__}: shifts must be integers, got dtype float64"
    ):
        layer(TABLE * 1.0, *rest)
