"""Networks in whole numbers: exact but for rounding, uint8 between the layers, as accurate."""

import functools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_inference import MEAN, STD, settled

import mulfree_cupy as mf
from mulfree_cupy import cli, data, inference, train
from mulfree_cupy import formulas as spec
from mulfree_cupy.inference import Layer, Network, Predictor, quantisation
from mulfree_cupy.inference.quantisation import Grid, quantize
from mulfree_cupy.nn.description import network_of

ADDERS = {
    "adder-lenet": 8,
    "adder-resnet20": 8,
    "adder-resnet18": 32,
    "adder-resnet50": 32,
    "adder-vggsmall": 8,
}
TWINS = {"conv-lenet": 16, "conv-resnet20": 8, "conv-vggsmall": 8}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@functools.cache
def network_and_images(name, size):
    model, images = settled(name, size)
    channels = images.shape[1]
    network = network_of(model, channels, size, mean=MEAN[:channels], std=STD[:channels])
    shape = 64, *images.shape[1:]
    return network, np.random.default_rng(5).integers(0, 256, shape, np.uint8)


@functools.cache
def quantised_of(name, size, bits=8):
    network, images = network_and_images(name, size)
    return quantize(network, images, bits=bits)


adders = pytest.mark.parametrize(("name", "size"), ADDERS.items())
twins = pytest.mark.parametrize(("name", "size"), TWINS.items())
both = pytest.mark.parametrize(("name", "size"), {**ADDERS, **TWINS}.items())


@pytest.fixture
def uncorrected(monkeypatch):
    """Only the formulas, without the correction from the calibration images."""
    monkeypatch.setattr(
        quantisation, "_match", lambda sums, _: (np.ones(sums.shape[1]), np.zeros(sums.shape[1]))
    )


# ---- exact but for rounding ---------------------------------------------------------------------


def of_each_block(network, quantised, images):
    """For each adder convolution its grid, its input and its output after the epilogue."""
    old = {layer.name: layer for layer in network.layers}
    new = quantised.network
    answers = new.answers(new.normalised(images))
    grids = {old[row.name].inputs[0]: row.grid for row in quantised.operands}
    for grid_of in list(grids):  # pools pass whole numbers on
        if old.get(grid_of) and old[grid_of].op == "max_pool":
            grids[old[grid_of].inputs[0]] = grids[grid_of]

    def real(name):
        answer = answers[name if name in answers and name != "images" else f"{name}.uint8"]
        if answer.dtype != np.uint8:
            return answer.astype(float)
        return (answer.astype(float) - grids[name].zero) * grids[name].scale

    for layer in network.layers:
        if layer.op == "batch_norm" and layer.inputs[0] in {row.name for row in quantised.operands}:
            convolution = old[layer.inputs[0]]
            (source,) = convolution.inputs
            weight = network.arrays[convolution.arrays["weight"]].astype(float)
            residual = [real(name) for name in layer.inputs[1:]]
            arrays = {role: network.arrays[name] for role, name in layer.arrays.items()}
            yield (
                grids[source],
                grids.get(layer.name),
                real(source),
                weight,
                convolution.options,
                arrays,
                layer.options,
                residual,
                real(layer.name),
            )


@pytest.mark.parametrize("bits", [8, 4])
@adders
def test_each_block_computes_the_formulas(name, size, bits, uncorrected):
    """In float64, of weights that are rounded within the range and as they were beyond it."""
    network, images = network_and_images(name, size)
    quantised = quantize(network, images, bits=bits)
    blocks = list(of_each_block(network, quantised, images[:1]))
    assert len(blocks) == len(quantised.operands)
    for grid, out, x, weight, options, norm, epilogue, residual, answer in blocks:
        weight = np.where(
            (grid.low <= weight) & (weight <= grid.high), grid.nearest(weight), weight
        )
        y = spec.adder_conv(x, weight, **options)
        norm = {role: a.astype(float) for role, a in norm.items()}
        expected = spec.batch_norm(y, residual=sum(residual, 0), **norm, **epilogue)
        if out is None:
            tolerance = 0
        else:
            expected, tolerance = np.clip(expected, out.low, out.high), out.scale / 2
        assert np.abs(answer - expected).max() <= tolerance + 1e-5 * np.abs(y).max()


def one_layer(weight, padding, mean):
    """An adder convolution of two planes, a normalisation and the mean of each plane."""
    filters = len(weight)
    arrays = {
        "w": weight.astype("f"),
        "gamma": np.linspace(-1, 1, filters, dtype="f") / 100,
        "beta": np.arange(filters, dtype="f"),
        "mean": np.full(filters, -900, "f"),
        "variance": np.full(filters, 2, "f"),
    }
    names = {"weight": "gamma", "bias": "beta", "mean": "mean", "variance": "variance"}
    layers = (
        Layer("adder_conv", "conv", ("images",), {"weight": "w"}, {"padding": padding}),
        Layer("batch_norm", "bn", ("conv",), names, {"eps": 0.0, "relu": False}),
        Layer("global_average_pool", "pool", ("bn",)),
    )
    classes = tuple(map(str, range(filters)))
    return Network(layers, arrays, (2, 6, 7), classes, np.full(2, mean), np.ones(2))


def whole_images():
    """Of every byte, so that the range is 0 to 255 and whole numbers stay what they are."""
    images = np.random.default_rng(6).integers(0, 256, (64, 2, 6, 7), np.uint8)
    images[0, 0, 0, :2] = 0, 255
    return images


@pytest.mark.parametrize("mean", [0.0, 100.0, 255.0])
@pytest.mark.parametrize("padding", [0, 1, [2, 1], [[0, 3], [1, 0]]])
def test_clipping_the_weights_changes_nothing(mean, padding, rng, uncorrected):
    """What it takes off goes into the bias, and its fraction into the offset; borders too."""
    weight = rng.integers(-1000, 1000, (5, 2, 3, 3)) - mean
    weight += np.where((weight < -mean) | (weight > 255 - mean), rng.uniform(size=weight.shape), 0)
    network, images = one_layer(weight, padding, mean), whole_images()
    quantised = quantize(network, images, percentile=100)
    (row,) = quantised.operands
    assert row.grid == Grid(1.0, int(mean), 255)
    assert row.clipped_activations == 0
    assert row.clipped_weights > 0.5
    expected = network(network.normalised(images))
    assert_allclose(Predictor(quantised.network)(images), expected, rtol=1e-5, atol=1e-4)


def test_the_bias_is_what_was_clipped_and_the_mean(rng, uncorrected):
    weight = rng.normal(scale=300, size=(5, 2, 3, 3))
    images = whole_images()
    network = quantize(one_layer(weight, 0, 0.0), images, percentile=100).network
    answers = network.answers(network.normalised(images))
    clipped = np.clip(weight.astype("f"), 0, 255)
    assert_array_equal(network.arrays["conv.weight"], np.rint(clipped))
    excess = np.abs(weight.astype("f").astype(float) - clipped).sum(axis=(1, 2, 3))
    sums = spec.adder_conv(images, network.arrays["conv.weight"]).astype(float)
    expected = -np.rint(excess) - np.rint(sums.mean(axis=(0, 2, 3)))
    assert network.arrays["conv.bias"].dtype == np.int32
    assert_array_equal(network.arrays["conv.bias"], expected)
    assert answers["conv"].dtype == np.int32
    assert abs(answers["conv"].mean(axis=(0, 2, 3))).max() <= np.abs(excess).max() + 1


def test_borders_are_of_the_zero_point(rng):
    network = quantize(one_layer(rng.normal(size=(5, 2, 3, 3)), 1, 100.0), whole_images()).network
    by_name = {layer.name: layer for layer in network.layers}
    zero = by_name["conv.padded"].options["value"]
    assert by_name["conv.padded"].options["border"] == [[1, 1], [1, 1]]
    assert "padding" not in by_name["conv"].options
    padded = network.answers(network.normalised(whole_images()))["conv.padded"]
    assert padded.shape == (64, 2, 8, 9)
    assert (padded[:, :, [0, -1]] == zero).all()
    assert (padded[:, :, :, [0, -1]] == zero).all()
    assert zero == 100


def test_sums_have_the_mean_and_deviation_that_they_had():
    network, images = network_and_images("adder-lenet", 8)
    quantised = quantize(network, images, bits=4)
    before = network.answers(network.normalised(images))
    after = quantised.network.answers(network.normalised(images))
    grid = quantised.operands[1].grid
    scale, offset = (
        quantised.network.arrays[f"bn1.{a}"][:, None, None] for a in ("scale", "offset")
    )
    now = (after["conv1"] * scale + offset - grid.zero) * grid.scale
    norm = {
        r: network.arrays[f"bn1.{a}"].astype(float)
        for r, a in {
            "weight": "weight",
            "bias": "bias",
            "mean": "running_mean",
            "variance": "running_var",
        }.items()
    }
    then = spec.batch_norm(before["conv1"].astype(float), **norm)
    over = (0, 2, 3)
    assert_allclose(now.mean(axis=over), then.mean(axis=over), atol=1e-4)
    assert_allclose(now.std(axis=over), then.std(axis=over), rtol=1e-4)


def test_filters_that_hardly_vary_are_not_blown_up(rng):
    sums, wanted = rng.normal(size=(2, 8, 3, 5, 5))
    sums *= np.array([1e-6, 1, 0])[:, None, None]
    slope, shift = quantisation._match(sums, wanted)
    assert slope[0] == 2
    assert slope[1] == pytest.approx(1, abs=0.2)
    assert slope[2] == 1
    mean = (sums * slope[:, None, None] + shift[:, None, None]).mean(axis=(0, 2, 3))
    assert_allclose(mean, wanted.mean(axis=(0, 2, 3)))


def test_filters_that_do_not_vary_stay_finite():
    network, images = network_and_images("adder-resnet20", 8)
    quantised = quantize(network, np.zeros_like(images))
    assert np.isfinite(Predictor(quantised.network)(images)).all()


# ---- grids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "grid"),
    [
        (0, 255, Grid(1.0, 0, 255)),
        (-100, 155, Grid(1.0, 100, 255)),
        (-255, 0, Grid(1.0, 255, 255)),
        (51, 255, Grid(1.0, 0, 255)),  # widened to 0
        (0, 0, Grid(1.0, 0, 255)),
    ],
)
def test_grids(low, high, grid):
    assert Grid.between(low, high, 255) == grid
    assert grid.nearest(np.array([0.0]))[0] == 0


def test_a_value_within_a_grid_is_half_a_step_from_it():
    grid = Grid.between(-0.7, 2.1, 63)
    values = np.linspace(grid.low, grid.high, 1001)
    assert np.abs(grid.nearest(values) - values).max() <= grid.scale / 2 + 1e-12
    assert grid.nearest(np.array([-9.0, 9.0])).tolist() == pytest.approx([grid.low, grid.high])


def test_a_percentile_that_is_given_is_where_the_range_ends():
    network, images = network_and_images("adder-lenet", 8)
    row = quantize(network, images, percentile=99.0).operands[1]
    taken = network.answers(network.normalised(images))["bn1"]
    assert row.grid.high == pytest.approx(np.percentile(taken, 99.0), rel=1e-5)
    assert row.clipped_activations == pytest.approx(0.01, abs=0.002)


def test_the_range_of_least_squared_error_is_narrower_for_fewer_bits():
    highs = [
        np.array([row.grid.high for row in quantised_of("adder-resnet20", 8, bits).operands])
        for bits in (8, 4)
    ]
    assert (highs[0] >= highs[1]).mean() > 0.9
    assert (highs[0] > highs[1]).mean() > 0.5


# ---- what the network is made of ----------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("name", ["adder-lenet", "adder-resnet20"])
def test_whole_numbers_have_as_many_bits(name, bits):
    _, images = network_and_images(name, 8)
    quantised = quantised_of(name, 8, bits)
    new, most = quantised.network, 0
    for answer in new.answers(new.normalised(images)).values():
        if answer.dtype == np.uint8:
            assert answer.max() < 2**bits
            most = max(most, answer.max())
    assert most == 2**bits - 1
    for row in quantised.operands:
        weight = new.arrays[f"{row.name}.weight"]
        assert weight.dtype == np.uint8
        assert weight.max() < 2**bits
        assert row.grid.levels == 2**bits - 1
    layers = [layer for layer in new.layers if layer.op == "adder_conv"]
    assert all(layer.options.get("bits") == (bits if bits <= 4 else None) for layer in layers)


@adders
def test_what_lies_between_adders_is_uint8(name, size):
    new = quantised_of(name, size).network
    for layer in new.layers:
        if layer.op == "adder_conv":
            assert [new.forms[name][1] for name in layer.inputs] == [np.uint8]
            assert new.forms[layer.name][1] == np.int32
    plan = Predictor(new).plan
    assert not [name for name, place in plan.places.items() if place.dtype == np.int32]
    assert {step.op for step in plan.steps if step.epilogue.residual} <= {"adder_conv"}


def test_the_plan_of_a_resnet():
    """As many steps as in float32; of 20 convolutions only the shortcuts and the last answer it."""
    network, _ = network_and_images("adder-resnet20", 8)
    float_plan, plan = (
        Predictor(n).plan for n in (network, quantised_of("adder-resnet20", 8).network)
    )
    assert [step.op for step in plan.steps] == [step.op for step in float_plan.steps]
    dtypes = [plan.places[step.output].dtype.name for step in plan.steps]
    assert dtypes.count("uint8") == 18
    residuals = [
        plan.places[s.epilogue.residual].dtype.name for s in plan.steps if s.epilogue.residual
    ]
    assert sorted(residuals) == ["float32"] * 2 + ["uint8"] * 7
    assert plan.nbytes < 0.35 * float_plan.nbytes


@both
def test_the_plan_answers_as_the_layers_do(name, size):
    """But for values halfway between two whole numbers, which float32 may round either way."""
    _, images = network_and_images(name, size)
    new = quantised_of(name, size).network
    predictor, expected = Predictor(new), new(new.normalised(images))
    assert predictor.plan is not None
    difference = np.abs(predictor(images) - expected)
    assert np.median(difference) < 1e-4
    assert difference.std() < 0.01 * expected.std()


def test_on_emulated_cuda():
    network = quantised_of("adder-lenet", 8).network
    _, images = network_and_images("adder-lenet", 8)
    expected = Predictor(network)(images[:2])
    with mf.emulated_cuda():
        assert_allclose(Predictor(network)(images[:2]), expected, rtol=1e-5)


@both
def test_the_answers_are_near_those_of_the_network(name, size):
    network, images = network_and_images(name, size)
    expected = Predictor(network)(images)
    errors = []
    for bits in (8, 4):
        answer = Predictor(quantised_of(name, size, bits).network)(images)
        errors.append((answer - expected).std() / expected.std())
    assert errors[0] < 0.15
    assert errors == sorted(errors)


@twins
def test_twins_compute_in_float32_on_rounded_operands(name, size):
    network, images = network_and_images(name, size)
    quantised = quantised_of(name, size, 6)
    new = quantised.network
    answers = new.answers(new.normalised(images))
    by_name = {layer.name: layer for layer in new.layers}
    convolutions = [layer for layer in network.layers if layer.op == "conv"]
    assert [row.name for row in quantised.operands] == [layer.name for layer in convolutions[1:]]
    assert not quantised.whole_sums
    for row in quantised.operands:
        layer = by_name[row.name]
        places = row.grid.places(answers[layer.inputs[0]].astype(float))
        assert_allclose(places, np.rint(places), atol=1e-4)
        for weight in new.arrays[layer.arrays["weight"]]:
            places = weight / (np.abs(weight).max() / 31)
            assert_allclose(places, np.rint(places), atol=1e-4)
    first = convolutions[0]
    assert_array_equal(new.arrays[f"{first.name}.weight"], network.arrays[first.arrays["weight"]])


@pytest.mark.parametrize("name", ["adder-resnet20", "conv-resnet20"])
def test_twice_the_same_bits(name):
    network, images = network_and_images(name, 8)
    first, second = (quantize(network, images, bits=5).network for _ in range(2))
    assert first.layers == second.layers
    for key, array in first.arrays.items():
        assert_array_equal(array, second.arrays[key])


def test_a_file_of_it_is_strict_json(tmp_path):
    _, images = network_and_images("adder-resnet20", 8)
    new = quantised_of("adder-resnet20", 8).network
    json.dumps([layer.described() for layer in new.layers], allow_nan=False)
    inference.save_npz(tmp_path / "8-bit.npz", new)
    assert_array_equal(mf.load(tmp_path / "8-bit.npz")(images), Predictor(new)(images))


# ---- other graphs -------------------------------------------------------------------------------


def test_a_graph_that_no_model_has(rng):
    """Adders with a bias, with nothing behind them or before them, sums and planes put together."""
    arrays = {f"w{i}": rng.normal(size=(4, 4 if i else 2, 3, 3)).astype("f") for i in range(3)}
    arrays |= {"b": rng.normal(size=4).astype("f"), "fc": rng.normal(size=(3, 8)).astype("f")}
    layers = (
        Layer("adder_conv", "a", ("images",), {"weight": "w0", "bias": "b"}, {"padding": 1}),
        Layer("adder_conv", "b", ("a",), {"weight": "w1"}, {"padding": 1}),
        Layer("add", "sum", ("a", "b")),
        Layer("relu", "relu", ("sum",)),
        Layer("adder_conv", "c", ("relu",), {"weight": "w2"}, {"padding": 1}),
        Layer("concatenate", "both", ("c", "relu")),
        Layer("global_average_pool", "pool", ("both",)),
        Layer("linear", "fc", ("pool",), {"weight": "fc"}),
    )
    network = Network(layers, arrays, (2, 9, 9), tuple("abc"), np.full(2, 128.0), np.full(2, 60.0))
    images = rng.integers(0, 256, (64, 2, 9, 9), np.uint8)
    quantised = quantize(network, images)
    assert len(quantised.operands) == 3
    expected = network(network.normalised(images))
    for answer in (
        Predictor(quantised.network)(images),
        quantised.network(network.normalised(images)),
    ):
        assert (answer - expected).std() < 0.05 * expected.std()


def test_a_signed_residual(rng):
    """Of uint8 with a zero point."""
    arrays = {f"w{i}": rng.normal(size=(4, 4 if i else 2, 3, 3)).astype("f") for i in range(2)}
    arrays |= {"one": np.ones(4, "f"), "none": np.zeros(4, "f"), "far": np.full(4, -30, "f")}
    norm = {"weight": "one", "bias": "none", "mean": "far", "variance": "one"}
    options = {"eps": 1e-5, "relu": False}
    layers = (
        Layer("adder_conv", "a", ("images",), {"weight": "w0"}, {"padding": 1}),
        Layer("batch_norm", "bn_a", ("a",), norm, options),
        Layer("adder_conv", "b", ("bn_a",), {"weight": "w1"}, {"padding": 1}),
        Layer("batch_norm", "bn_b", ("b", "bn_a"), norm, options),
        Layer("global_average_pool", "pool", ("bn_b",)),
    )
    network = Network(layers, arrays, (2, 9, 9), tuple("abcd"), np.full(2, 128.0), np.full(2, 60.0))
    images = rng.integers(0, 256, (64, 2, 9, 9), np.uint8)
    quantised = quantize(network, images)
    new = quantised.network
    residual = new.forms["bn_a"][1]
    assert residual == np.uint8
    assert 0 < quantised.operands[1].grid.zero < 255
    assert_allclose(Predictor(new)(images), network(network.normalised(images)), atol=1)


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("shift-adder-resnet20-e1", 8, "with .*shift_adder_conv cannot be quantised"),
        ("winograd-vgg-nagadomi-8", 16, "with winograd_conv cannot be quantised"),
        ("shiftresnet20-e3", 12, "shift_conv cannot be quantised"),
    ],
)
def test_other_convolutions_are_refused(name, size, says):
    with pytest.raises(ValueError, match=says):
        quantize(*network_and_images(name, size))


def test_a_network_without_convolutions_is_refused():
    layers = Layer("flatten", "flatten", ("images",)), Layer("relu", "relu", ("flatten",))
    network = Network(layers, {}, (2, 1, 1), ("a", "b"), np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="no adder convolution, and no other behind the first"):
        quantize(network, np.zeros((64, 2, 1, 1), np.uint8))


def test_a_quantised_network_is_refused():
    network, images = network_and_images("adder-lenet", 8)
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(network, images).network, images)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"bits": 1}, ValueError, "bits must be 2 to 8, got 1"),
        ({"bits": 9}, ValueError, "bits must be 2 to 8, got 9"),
        ({"bits": 8.0}, TypeError, "bits must be an int"),
        ({"percentile": 50}, ValueError, "percentile must be above 50 and at most 100, got 50"),
        ({"percentile": 100.5}, ValueError, "percentile"),
        ({"percentile": np.nan}, ValueError, "percentile"),
        ({"images": np.zeros((63, 1, 8, 8), "u1")}, ValueError, "at least 64 .* got 63"),
        (
            {"images": np.zeros((64, 8, 8), "u1")},
            ValueError,
            r"\(N, 1, 8, 8\), got .* \(64, 8, 8\)",
        ),
        ({"images": np.zeros((64, 1, 8, 8), complex)}, ValueError, "got dtype complex128"),
        ({"images": np.full((64, 1, 8, 8), np.nan)}, ValueError, "images must be finite"),
    ],
)
def test_arguments_that_are_refused(changed, error, says):
    network, images = network_and_images("adder-lenet", 8)
    with pytest.raises(error, match=says):
        quantize(network, **{"images": images, **changed})


# ---- trained networks, and the command ----------------------------------------------------------


@pytest.fixture(scope="module", params=["adder-lenet", "conv-lenet"])
def trained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "checkpoint.npz"
    recipe = train.Recipe(model=request.param, epochs=6, batch_size=64, augment="none")
    train.Training(recipe, *data.load("digits"), path=path).run(progress=False)
    return path


@pytest.mark.parametrize(("bits", "points"), [(8, 0.3), (6, 0.6), (4, 1.5)])
def test_the_accuracy_stays(trained, bits, points, tmp_path, capsys):
    """One of the 355 test images is 0.28 points."""
    out = tmp_path / "network.npz"
    command = ["quantize", str(trained), "--bits", str(bits), "--out", str(out)]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    before, after = map(float, re.search(r"accuracy (.+)% before, (.+)% with", told).groups())
    assert before > 90
    assert after >= before - points
    assert ("not faster" in told) == trained.parent.name.startswith("conv")
    assert cli.main(["evaluate", str(out)]) == 0
    assert f"{out} on digits: test accuracy {after:.2f}% of 355" in capsys.readouterr().out


def test_the_command(trained, capsys):
    assert cli.main(["quantize", str(trained), "--images", "100", "--percentile", "99.5"]) == 0
    table = capsys.readouterr().out.splitlines()
    out = trained.with_name("checkpoint-8-bit.npz")
    assert table[-1].startswith(f"Network {out}, ")
    assert "ranges from 100 training images" in table[-2]
    network, (images, _) = inference.read(trained), data.load("digits")
    spread = images.images[np.linspace(0, len(images) - 1, 100).round().astype(int)]
    quantised = quantize(network, spread, percentile=99.5)
    assert inference.read(out).layers == quantised.network.layers
    for row, line in zip(quantised.operands, table[1:], strict=False):
        assert line.split()[0] == row.name
        assert f"{row.grid.scale:.4g}" in line
        assert f"{row.grid.low:.4g} to {row.grid.high:.4g}" in line


def test_what_the_command_refuses(trained, tmp_path, capsys):
    def refused(*arguments):
        assert cli.main(["quantize", *map(str, arguments)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    text = tmp_path / "picture.npz"
    text.write_bytes(b"\x89PNG")
    assert f"{text} holds no network" in refused(text)
    assert f"there is no file {tmp_path / 'none.npz'}" in refused(tmp_path / "none.npz")
    assert "--out" in refused(trained, "--out", trained)
    assert "must end in .npz" in refused(trained, "--out", tmp_path / "network.txt")
    assert "--images asks for 5000, and digits has 1442" in refused(trained, "--images", 5000)
    done = tmp_path / "done.npz"
    assert cli.main(["quantize", str(trained), "--out", str(done)]) == 0
    capsys.readouterr()
    assert f"{done}: quantize: the network is quantised already" in refused(done)
    other, _ = network_and_images("adder-resnet20", 8)
    inference.save_npz(tmp_path / "other.npz", other)
    told = refused(tmp_path / "other.npz")
    assert "on images of 3 x 8 x 8 in 10 classes, digits has 1 x 8 x 8 in 10 classes" in told
    letters = replace(network_and_images("adder-lenet", 8)[0], classes=tuple("abcdefghij"))
    inference.save_npz(tmp_path / "letters.npz", letters)
    assert "trained on other classes than those of digits" in refused(tmp_path / "letters.npz")
    for option, value in (("--bits", 9), ("--bits", 1), ("--images", 10), ("--percentile", 40)):
        with pytest.raises(SystemExit):
            cli.main(["quantize", str(trained), option, str(value)])
        assert option in capsys.readouterr().err
