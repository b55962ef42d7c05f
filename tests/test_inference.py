"""A trained network as one function: the answers of the tape, and nothing allocated for them."""

import concurrent.futures
import copy
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rehearsal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import cli, data, inference, models, nn, train
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.inference import Layer, Network, Plan, Predictor
from mulfree_cupy.inference.folding import fold
from mulfree_cupy.nn.description import network_of

_cpu = pytest.importorskip("mulfree_cupy._cpu")

FAMILIES = {
    "adder-lenet": 8,
    "conv-lenet": 16,
    "sign-adder-resnet20": 8,
    "adder-resnet20": 16,
    "conv-resnet20": 12,
    "adder-resnet18": 32,
    "adder-resnet50": 32,
    "adder-vggsmall": 8,
    "binary-lenet": 16,
    "binary-resnet20": 8,
    "binary-vggsmall": 8,
    "binary-resnet18": 32,
    "shiftresnet20-e3": 12,
    "depthwise-resnet20-e1": 8,
    "shift-adder-resnet20-e1": 8,
    "sc2-resnet20-e1": 8,
    "shiftnet-c": 32,
    "spatial-vgg-nagadomi-8": 16,
    "winograd-vgg-nagadomi-8": 16,
    "winograd-relu-vgg-nagadomi-8": 16,
    "winograd4-vgg-nagadomi-8": 16,
    "winograd4-relu-convpool-cnn-c-8": 16,
    "winograd-resnet18-8": 32,
    "winograd-relu-resnet18-8": 32,
}
MEAN, STD = (120.0, 118.0, 90.0), (60.0, 61.0, 70.0)


def settled(name, size, prune=None):
    """A network with random weights whose normalisations know what they normalise."""
    shape = {**models.default_shape(name), "size": size, "classes": 10}
    model = models.build(name, **shape)
    rng = np.random.default_rng(1)
    for _, module in model.modules():
        if prune and hasattr(module, "prune"):
            module.prune(prune)
        if isinstance(module, nn.BatchNorm):
            module.momentum = 1.0
            size = module.weight.shape
            module.weight.data = rng.uniform(0.5, 1.5, size).astype("f")
            module.weight.data[::3] *= -1
            module.bias.data = rng.normal(size=size).astype("f")
    images = pixels(24, shape["channels"], shape["size"])
    with no_grad():
        model(Tensor(normalised(images)))
    return model.eval(), images


def pixels(count, channels, size):
    return np.random.default_rng(2).integers(0, 256, (count, channels, size, size), np.uint8)


def normalised(images):
    channels = images.shape[1]
    x = images.astype("f")
    x -= np.array(MEAN[:channels], "f")[:, None, None]
    x /= np.array(STD[:channels], "f")[:, None, None]
    return x


def predictor_of(model, images):
    channels, size = images.shape[1:3]
    statistics = {"mean": MEAN[:channels], "std": STD[:channels]}
    return Predictor(network_of(model, channels, size, **statistics))


def of_the_tape(model, images):
    with no_grad():
        return model(Tensor(normalised(images))).data


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_are_those_of_the_tape(name):
    model, images = settled(name, FAMILIES[name])
    predictor, expected = predictor_of(model, images), of_the_tape(model, images)
    tolerance = 1e-5 * np.abs(expected).max()
    assert predictor.plan is not None
    assert_allclose(predictor(images), expected, rtol=0, atol=tolerance)
    assert_allclose(predictor(images[:1]), expected[:1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["spatial-vgg-nagadomi-8", "winograd-relu-vgg-nagadomi-8"])
@pytest.mark.parametrize("density", [0.4, 0.05])
def test_of_pruned_networks_too(name, density):
    model, images = settled(name, 16, prune=density)
    expected = of_the_tape(model, images)
    assert_allclose(predictor_of(model, images)(images), expected, rtol=0, atol=1e-5)


def test_no_normalisation_is_left_in_a_resnet():
    model, images = settled("adder-resnet20", 8)
    steps = predictor_of(model, images).plan.steps
    assert [step.op for step in steps] == ["conv"] + ["adder_conv"] * 20 + [
        "global_average_pool",
        "linear",
    ]
    assert sum(step.epilogue.residual is not None for step in steps) == 9


def test_the_last_bit_before_the_classifier():
    """The epilogue rounds as the tape's normalisation does."""
    model, images = settled("adder-resnet20", 16)
    model.pool, model.fc, model.bn2 = nn.Flatten(), nn.Sequential(), nn.Sequential()
    expected = of_the_tape(model, images)
    assert_array_equal(predictor_of(model, images)(images), expected)


# ---- any graph --------------------------------------------------------------------------------


@st.composite
def graphs(draw):
    """Layers that take any answers before them, of one shape (6, 5, 5) until the last two."""
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    arrays, layers = {}, []

    def array(layer, role, *shape, positive=False):
        values = rng.uniform(0.5, 1.5, shape) if positive else rng.normal(size=shape)
        arrays[f"{layer}.{role}"] = values.astype("f") / np.sqrt(np.prod(shape[1:]))
        return f"{layer}.{role}"

    names = ["first"]
    weight = {"weight": array("first", "weight", 6, 1, 3, 3)}
    layers.append(Layer("conv", "first", ("images",), weight, {"padding": 1}))
    kinds = [
        "conv",
        "adder_conv",
        "batch_norm",
        "residual",
        "add",
        "relu",
        "winograd_conv",
        "shift",
    ]
    for i, kind in enumerate(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=10))):
        name, source = f"layer{i}", draw(st.sampled_from(names[-3:]))
        other = draw(st.sampled_from(names[-4:]))
        if kind in ("conv", "adder_conv"):
            given = {"weight": array(name, "weight", 6, 6, 3, 3)}
            layers.append(Layer(kind, name, (source,), given, {"padding": 1}))
        elif kind == "winograd_conv":
            given = {"weight": array(name, "weight", 4, 4, 6, 6)}
            options = {"relu": draw(st.booleans()), "padding": 1, "points": "lavin"}
            layers.append(Layer(kind, name, (source,), given, options))
        elif kind in ("batch_norm", "residual"):
            given = {role: array(name, role, 6) for role in ("weight", "bias", "mean")}
            given["variance"] = array(name, "variance", 6, positive=True)
            options = {"eps": 1e-5, "relu": draw(st.booleans())}
            inputs = (source, other) if kind == "residual" else (source,)
            layers.append(Layer("batch_norm", name, inputs, given, options))
        elif kind == "shift":
            arrays[f"{name}.shifts"] = rng.integers(-2, 3, (6, 2))
            layers.append(Layer("shift", name, (source,), {"shifts": f"{name}.shifts"}, {}))
        else:
            layers.append(Layer(kind, name, (source, other) if kind == "add" else (source,)))
        names.append(name)
    layers.append(Layer("global_average_pool", "pool", (names[-1],)))
    network = Network(tuple(layers), arrays, (1, 5, 5), tuple("abcdef"), np.zeros(1), np.ones(1))
    return network


@settings(max_examples=150)
@given(network=graphs(), count=st.integers(1, 3))
def test_a_plan_computes_what_its_layers_say(network, count):
    images = np.random.default_rng(0).normal(size=(count, 1, 5, 5)).astype("f")
    expected = network(images)
    answer = Predictor(network)(images)
    assert_allclose(answer, expected, rtol=0, atol=2e-5 * np.abs(expected).max() + 1e-6)


@given(network=graphs())
def test_no_answer_lies_over_one_that_is_still_read(network):
    plan = Plan(network)
    last = {"images": -1} | {step.output: i for i, step in enumerate(plan.steps)}
    born = dict(last)
    for i, step in enumerate(plan.steps):
        last |= dict.fromkeys(step.sources, i)
    for i, step in enumerate(plan.steps):
        mine = plan.places[step.output]
        for name, place in plan.places.items():
            alive_after = born[name] < i < last[name]
            apart = (
                mine.offset + mine.nbytes <= place.offset
                or place.offset + place.nbytes <= mine.offset
            )
            assert apart or not alive_after


# ---- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_allocates_nothing_once_it_is_warm(name):
    model, images = settled(name, FAMILIES[name])
    predictor = predictor_of(model, images)
    out = np.empty((len(images), len(predictor.classes)), "f")
    predictor(images, out=out)
    tracemalloc.start()
    try:
        predictor(images, out=out)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        predictor(images, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 40_000  # NumPy's buffer of 8192 numbers, and Python's small objects


def test_memory_is_used_again():
    model, images = settled("adder-resnet20", 16)
    plan = predictor_of(model, images).plan
    assert plan.nbytes < 0.25 * sum(place.nbytes for place in plan.places.values())


def test_many_images_are_cut_into_parts(monkeypatch):
    model, images = settled("shiftresnet20-e3", 16)
    whole = predictor_of(model, images)(images)
    monkeypatch.setattr("mulfree_cupy.inference.plan._AT_ONCE", 0)
    predictor = predictor_of(model, images)
    assert 1 < predictor.plan.images < len(images)
    assert_array_equal(predictor(images), whole)


# ---- in threads and other processes -----------------------------------------------------------


@pytest.fixture(scope="module")
def predictor():
    return predictor_of(*settled("adder-lenet", 8))


@pytest.fixture(scope="module")
def images():
    return pixels(24, 1, 8)


def test_threads_may_share_it(predictor, images):
    expected = predictor(images)
    parts = [slice(i % 5, None) for i in range(60)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda part: predictor(images[part]), parts))
    for part, answer in zip(parts, answers, strict=True):
        assert_array_equal(answer, expected[part])


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies(predictor, images, copied):
    expected = predictor(images)
    other = copied(predictor)
    assert other.classes == predictor.classes
    assert_array_equal(other(images), expected)


def _ask(predictor, images, queue):
    queue.put(predictor(images))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_other_processes(predictor, images, method):
    context = multiprocessing.get_context(method)
    expected, queue = predictor(images), context.SimpleQueue()
    process = context.Process(target=_ask, args=(predictor, images, queue))
    process.start()
    assert_array_equal(queue.get(), expected)
    process.join(30)
    assert process.exitcode == 0


# ---- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8", "f2", "u4"])
def test_any_dtype_of_pixels(predictor, images, dtype):
    assert_array_equal(predictor(images.astype(dtype)), predictor(images))


def test_any_memory_order(predictor, images):
    rows = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert_array_equal(predictor(rows), predictor(images))
    assert_array_equal(predictor(images[::-2]), predictor(images)[::-2])


def test_no_images(predictor):
    assert predictor(np.zeros((0, 1, 8, 8), np.uint8)).shape == (0, 10)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 8, 8), r"must have shape \(N, 1, 8, 8\), got shape \(1, 8, 8\) and dtype uint8.*None"),
        ((4, 8, 8, 1), r"got shape \(4, 8, 8, 1\).*transpose\(0, 3, 1, 2\)"),
        ((8, 8, 1), r"transpose\(2, 0, 1\)\[None\]"),
        ((8, 8), r"grey images have one channel: images\[None, None\]"),
        ((4, 8, 8), r"grey images have one channel: images\[:, None\]"),
        ((4, 3, 8, 8), r"got shape \(4, 3, 8, 8\) and dtype uint8$"),
        ((8,), r"got shape \(8,\)"),
    ],
)
def test_other_shapes_are_refused(predictor, shape, says):
    with pytest.raises(ValueError, match=says):
        predictor(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("images", [np.zeros((1, 1, 8, 8), complex), "cat.png", None])
def test_what_is_no_image_is_refused(predictor, images):
    with pytest.raises(TypeError, match="images"):
        predictor(images)


@pytest.mark.parametrize("out", [np.empty((3, 9), "f"), np.empty((3, 10)), np.empty((2, 10), "f")])
def test_an_out_that_does_not_fit_is_refused(predictor, images, out):
    with pytest.raises(ValueError, match=r"predictor: out must have shape \(3, 10\)"):
        predictor(images[:3], out=out)


def test_images_of_another_scale_are_doubted(predictor, images):
    with pytest.warns(RuntimeWarning, match="lie between 0 and 1; multiply them by 255"):
        predictor(images / 255)
    with pytest.warns(RuntimeWarning, match="have pixels below 0; pass them as they were before"):
        predictor(images / 127.5 - 1)


def test_names_of_classes(predictor, images):
    names = predictor.predict(images)
    assert_array_equal(names, predictor(images).argmax(axis=1).astype(str))


def test_answers_that_are_not_finite(predictor):
    with pytest.raises(FloatingPointError, match="not finite"):
        predictor.predict(np.full((1, 1, 8, 8), np.nan))


def test_repr(predictor):
    expected = "Predictor(images of 1 x 8 x 8, 10 classes, 12 layers, 45,134 numbers)"
    assert repr(predictor) == expected


# ---- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained network: its folder, and the run."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.npz"
    recipe = train.Recipe(model="adder-lenet", epochs=1, augment="none")
    training = train.Training(recipe, *data.load("digits"), path=path)
    training.run(progress=False)
    return training


def test_a_checkpoint_is_a_predictor(run):
    predictor, test = mf.load(run.path), run.test
    assert predictor.classes == tuple(test.classes)
    right = predictor.predict(test.images) == np.array(test.classes)[test.labels]
    assert right.mean() == run.history.test_accuracy[-1]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_network_in_a_file(run, suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    network, path = inference.read(run.path), tmp_path / f"network.{suffix}"
    getattr(inference, f"save_{suffix}")(path, network)
    assert_array_equal(mf.load(path)(run.test.images), mf.load(run.path)(run.test.images))
    assert inference.read(path).layers == network.layers


def test_loading_needs_numpy_alone(run):
    code = f"""
import sys, numpy, mulfree_cupy
print(mulfree_cupy.load({str(run.path)!r}).predict(numpy.zeros((2, 1, 8, 8), numpy.uint8)).shape)
others = {{name.partition(".")[0] for name in sys.modules}} & {{"tqdm", "PIL", "scipy", "cupy"}}
assert not others, others
assert not [m for m in sys.modules if m.startswith(("mulfree_cupy.autograd", "mulfree_cupy.nn"))]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(2,)\n", done.stderr


def test_the_lines_of_the_first_page(tmp_path, monkeypatch, capsys):
    pillow = pytest.importorskip("PIL.Image")
    pytest.importorskip("tqdm")
    rng = np.random.default_rng(0)
    for name, mean in {"dark": 60, "light": 190}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(15):
            picture = rng.normal(mean, 25, (20, 20, 3)).clip(0, 255).astype(np.uint8)
            pillow.fromarray(picture).save(tmp_path / "pictures" / name / f"{i}.png")
    pillow.fromarray(np.full((50, 70, 3), 200, np.uint8)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    command = ["train", "--model", "conv-lenet", "--data", "pictures", "--out", "folders"]
    options = ["--image-size", "16", "--epochs", "3", "--batch-size", "8", "--augment", "none"]
    assert cli.main([*command, *options]) == 0
    capsys.readouterr()
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"<!-- predict -->\n```python\n(.*?)```", page, re.DOTALL)[1]
    exec(lines, {})
    assert capsys.readouterr().out.startswith("['light']")


def described(network, **changes):
    """A network with some of its first layer's entries changed."""
    first, *rest = network.layers
    return (Layer.from_description({**first.described(), **changes}), *rest)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"op": "magic"}, "there is no operation 'magic'"),
        ({"inputs": ["nowhere"]}, "no layer before it is named 'nowhere'"),
        ({"inputs": []}, "takes the outputs of 1 to 1 layers"),
        ({"arrays": {}}, "needs the array 'weight'"),
        ({"arrays": {"weight": "lost"}}, "its weight, 'lost', is missing"),
        ({"arrays": {"weight": "conv2.weight"}}, "layer 'conv1': adder_conv: .* shape"),
        ({"options": {"strides": 2}}, "has no option 'strides'"),
        ({"options": {"stride": "two"}}, "layer 'conv1': stride must be"),
        ({"name": "bn1"}, "two layers have the name 'bn1'|no layer before it is named 'conv1'"),
        ({"inputs": "images"}, "inputs must be of type list"),
        ({"inputs": [3]}, "inputs must be names"),
    ],
)
def test_networks_that_do_not_hold(run, changes, says):
    n = inference.read(run.path)
    with pytest.raises((TypeError, ValueError), match=says):
        Network(described(n, **changes), n.arrays, n.image, n.classes, n.mean, n.std)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": ("a", "b")}, "one number for each of 2 classes"),
        ({"image": (1, 20, 20)}, "classes"),
        ({"image": (3, 8, 8)}, "mean must have shape"),
        ({"std": np.zeros(1)}, "std must be positive"),
        ({"mean": np.full(1, np.nan)}, "mean holds numbers that are not finite"),
        ({"layers": ()}, "must have layers"),
    ],
)
def test_facts_that_do_not_hold(run, changes, says):
    n = inference.read(run.path)
    given = {name: getattr(n, name) for name in ("layers", "image", "classes", "mean", "std")}
    with pytest.raises((ValueError, FloatingPointError), match=says):
        Network(**{**given, **changes}, arrays=n.arrays)


def test_damaged_files_are_named(run, tmp_path):
    path = tmp_path / "cat.npz"
    with pytest.raises(FileNotFoundError, match="there is no file .*cat.npz"):
        mf.load(path)
    for content in (b"", b"\x89PNG\r\n\x1a\n", run.path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cat.npz holds no network.*no npz file"):
            mf.load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="cat.npz holds no network of mulfree: it has no"):
        mf.load(path)


def test_files_of_pytorch(tmp_path):
    path = tmp_path / "cat.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cat.pth is PyTorch's; mulfree import"):
        mf.load(path)


def changed_checkpoint(run, path, **changes):
    with np.load(run.path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **changes})
    return path


def test_weights_that_are_not_finite(run, tmp_path):
    broken = np.full((6, 1, 5, 5), np.nan, "f")
    path = changed_checkpoint(run, tmp_path / "c.npz", **{"model/conv1.weight": broken})
    with pytest.raises(ValueError, match="c.npz .*conv1.weight holds numbers that are not finite"):
        mf.load(path)


def test_weights_of_another_shape(run, tmp_path):
    path = changed_checkpoint(
        run, tmp_path / "c.npz", **{"model/conv1.weight": np.zeros((6, 2, 5, 5), "f")}
    )
    with pytest.raises(ValueError, match="c.npz .*layer 'conv1'.*shape"):
        mf.load(path)


# ---- profiles ---------------------------------------------------------------------------------


def test_a_profile_counts_and_times_every_step():
    model, images = settled("adder-resnet20", 32)
    predictor = predictor_of(model, images)
    found = inference.profile(predictor, images[:2])
    assert [step.layers[-1] for step in found.steps[1:]] == [s.output for s in predictor.plan.steps]
    assert sum(step.terms for step in found.steps) == 40_813_184
    assert all(step.seconds >= 0 for step in found.steps) and found.seconds > 0
    text = str(found)
    assert "stages.layers.0.conv1 + bn1" in text and "40,813,184 terms" in text


def test_layer_by_layer_in_the_emulator(predictor, images):
    expected = predictor(images[:2])
    with mf.emulated_cuda():
        assert_allclose(predictor(images[:2]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu(cupy, predictor, images):
    answer = predictor(cupy.asarray(images))
    assert isinstance(answer, cupy.ndarray)
    assert_allclose(answer.get(), predictor(images), rtol=1e-4, atol=1e-4)
    if not rehearsal.active():  # which computes no answers, finite or not
        assert_array_equal(predictor.predict(cupy.asarray(images)), predictor.predict(images))


def test_a_network_of_float64_answers_in_float32():
    model, images = settled("conv-lenet", 16)
    network = predictor_of(model, images).network
    wide = {name: a.astype(np.float64) for name, a in network.arrays.items()}
    facts = network.image, network.classes, network.mean, network.std
    predictor = Predictor(Network(network.layers, wide, *facts))
    assert predictor.plan is None and predictor(images).dtype == np.float32
    assert_allclose(predictor(images), of_the_tape(model, images), rtol=1e-4, atol=1e-4)


def test_fold_keeps_what_others_read():
    """A sum that two layers take cannot become another's epilogue."""
    weight = np.ones((2, 1, 1, 1), "f")
    layers = (
        Layer("conv", "a", ("images",), {"weight": "w"}),
        Layer("relu", "b", ("a",)),
        Layer("add", "c", ("a", "b")),
        Layer("global_average_pool", "d", ("c",)),
    )
    network = Network(layers, {"w": weight}, (1, 2, 2), ("x", "y"), np.zeros(1), np.ones(1))
    assert [step.layers for step in fold(network)] == [("a",), ("b",), ("c",), ("d",)]
    images = np.full((1, 1, 2, 2), -3, np.int8)
    assert_array_equal(Predictor(network)(images), [[-3, -3]])


# ---- what a network may hold ----------------------------------------------------------------


def one_layer(op, arrays=(), options=(), before=(), shape=(2, 4, 4)):
    """A network with one layer of that kind, behind others, and a mean of planes."""
    layers = [*before]
    source = layers[-1].name if layers else "images"
    roles = {role: f"layer.{role}" for role in dict(arrays)}
    layers.append(Layer(op, "layer", (source,), roles, dict(options)))
    given = {f"layer.{role}": array for role, array in dict(arrays).items()}
    layers.append(Layer("rescale", "float", ("layer",), {"scale": "one", "offset": "one"}, FLOATS))
    layers.append(Layer("global_average_pool", "mean", ("float",)))
    filters = len(given.get("layer.weight", np.ones(shape[0])))
    given["one"] = np.ones(filters, "f")
    for layer in before:
        given |= {name: np.ones(shape[0], "f") for name in layer.arrays.values()}
    classes = tuple(map(str, range(filters)))
    return Network(tuple(layers), given, shape, classes, np.zeros(shape[0]), np.ones(shape[0]))


FLOATS = {"low": -1e9, "high": 1e9, "dtype": "float32"}
BYTES = {"dtype": "uint8", "low": 0, "high": 255}
TO_BYTES = Layer("rescale", "bytes", ("images",), {"scale": "s", "offset": "o"}, BYTES)
SCALED = dict.fromkeys(("scale", "offset"), np.ones(2, "f"))
WEIGHT = np.ones((3, 2, 3, 3), "f")
NORM = dict.fromkeys(("weight", "bias", "mean", "variance"), np.ones(2, "f"))


@pytest.mark.parametrize(
    ("op", "arrays", "options", "says"),
    [
        ("conv", {"weight": WEIGHT.astype("f2")}, {}, "layer.weight must be of one of float32"),
        ("conv", {"weight": WEIGHT.astype(">f4")}, {}, "layer.weight must be of one of float32"),
        ("conv", {"weight": WEIGHT.astype("u1")}, {}, "float32, float64, got uint8"),
        ("adder_conv", {"weight": WEIGHT > 0}, {}, "float32, float64, uint8, got bool"),
        ("batch_norm", NORM | {"variance": -NORM["mean"]}, {"eps": 0, "relu": False}, "below 0"),
        ("batch_norm", NORM | {"bias": np.ones(2, "f2")}, {"eps": 0, "relu": False}, "float16"),
        ("batch_norm", NORM, {"eps": 0, "relu": [1]}, "relu must be true or false, got \\[1\\]"),
        ("batch_norm", NORM, {"eps": "0", "relu": True}, "eps must be a number from 0"),
        ("shift", {"shifts": np.zeros((2, 2), "u8")}, {}, "int8, int16, int32, int64, got uint64"),
        ("conv", {"weight": WEIGHT}, {"stride": 0}, "stride must be a whole number from 1"),
        ("conv", {"weight": WEIGHT}, {"stride": True}, "stride must be a whole number from 1"),
        ("conv", {"weight": WEIGHT}, {"padding": [1, -1]}, "padding must be a whole number from 0"),
        ("max_pool", {}, {"kernel_size": 10**9, "stride": 1, "padding": 0}, "kernel_size must be"),
        ("pad", {}, {"border": [1, 1], "value": -1}, "value must be a whole number from 0 to 255"),
        ("pad", {}, {"border": [10**6, 1], "value": 0}, "border must be a whole number"),
        ("rescale", SCALED, FLOATS | {"low": None}, "low must be a number"),
        ("rescale", SCALED, FLOATS | {"low": 1e10}, "low must be at most high"),
        ("rescale", SCALED, FLOATS | {"dtype": "int8"}, "dtype must be"),
        ("rescale", {"scale": np.float32(1), "offset": np.float32(1)}, FLOATS, "scale and offset"),
    ],
)  # fmt: skip
def test_layers_that_do_not_hold(op, arrays, options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        one_layer(op, {role: np.asarray(a) for role, a in arrays.items()}, options)


def test_whole_numbers_are_rescaled_before():
    with pytest.raises(TypeError, match="layer 'layer': relu: takes floating-point numbers"):
        one_layer("relu", before=[TO_BYTES])


def test_sums_of_whole_numbers_may_be_read_twice():
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.integers(0, 9, (3, 2, 3, 3), np.uint8),
        **{name: np.ones(2, "f") for name in "so"},
        **{name: rng.normal(size=3).astype("f") for name in ("s1", "o1", "s2", "o2")},
    }
    layers = (
        TO_BYTES,
        Layer("adder_conv", "sums", ("bytes",), {"weight": "w"}, {"padding": 1}),
        Layer("rescale", "a", ("sums",), {"scale": "s1", "offset": "o1"}, FLOATS),
        Layer("rescale", "b", ("sums",), {"scale": "s2", "offset": "o2"}, FLOATS),
        Layer("add", "c", ("a", "b")),
        Layer("global_average_pool", "d", ("c",)),
    )
    network = Network(layers, arrays, (2, 4, 4), ("x", "y", "z"), np.zeros(2), np.ones(2))
    images = pixels(5, 2, 4)
    expected = network(network.normalised(images))
    assert_allclose(Predictor(network)(images), expected, rtol=1e-5, atol=1e-5)


def test_a_scale_of_no_residual_is_no_other_sums():
    weight = np.ones((2, 1, 1, 1), "f")
    arrays = {"w": weight, "s": np.ones(2, "f"), "o": np.zeros(2, "f")}
    options = FLOATS | {"low": -3e38, "high": 3e38, "residual_scale": 5.0}
    layers = (
        Layer("conv", "first", ("images",), {"weight": "w"}),
        Layer("conv", "a", ("images",), {"weight": "w"}),
        Layer("rescale", "b", ("a",), {"scale": "s", "offset": "o"}, options),
        Layer("add", "c", ("b", "first")),
        Layer("global_average_pool", "d", ("c",)),
    )
    network = Network(layers, arrays, (1, 2, 2), ("x", "y"), np.zeros(1), np.ones(1))
    images = pixels(3, 1, 2)
    assert_array_equal(Predictor(network)(images), network(network.normalised(images)))


def test_sums_of_unequal_shapes_are_refused():
    layers = (
        Layer("conv", "a", ("images",), {"weight": "w"}),
        Layer("max_pool", "b", ("images",), {}, {"kernel_size": 4, "stride": 4, "padding": 0}),
        Layer("conv", "c", ("b",), {"weight": "w"}),
        Layer("add", "d", ("a", "c")),
        Layer("global_average_pool", "e", ("d",)),
    )
    arrays = {"w": np.ones((2, 1, 1, 1), "f")}
    with pytest.raises(ValueError, match=r"layer 'd': add: shapes must be equal, got \(2, 4, 4\)"):
        Network(layers, arrays, (1, 4, 4), ("x", "y"), np.zeros(1), np.ones(1))


def test_a_network_cannot_be_written_to(run):
    network = inference.read(run.path)
    with pytest.raises(ValueError, match="read-only"):
        network.arrays["conv1.weight"][...] = 0


def test_images_that_are_not_finite_have_no_whole_numbers():
    arrays = {"w": np.ones((2, 2, 1, 1), np.uint8), **dict.fromkeys("so", np.ones(2, "f"))}
    layers = (
        TO_BYTES,
        Layer("adder_conv", "a", ("bytes",), {"weight": "w"}),
        Layer("rescale", "b", ("a",), {"scale": "s", "offset": "o"}, FLOATS),
        Layer("global_average_pool", "c", ("b",)),
    )
    network = Network(layers, arrays, (2, 2, 2), ("x", "y"), np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="images must be finite for a network of whole numbers"):
        Predictor(network)(np.full((1, 2, 2, 2), np.nan))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_another_thread_loads(run, images):
    """A lock that is held at a fork is never released in the child."""
    stop = threading.Event()

    def keep_loading():
        while not stop.is_set():
            mf.load(run.path)

    thread = threading.Thread(target=keep_loading)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(8):
            process = context.Process(target=lambda: mf.load(run.path)(images))
            process.start()
            process.join(30)
            assert process.exitcode == 0
    finally:
        stop.set()
        thread.join()


def test_facts_of_a_checkpoint_are_checked_by_name(run, tmp_path):
    with np.load(run.path) as file:
        facts = json.loads(str(file["facts"]))
    assert facts.keys() == inference.file.CHECKPOINT_FACTS
    assert facts["recipe"].keys() == inference.file.CHECKPOINT_RECIPE
    for changes, says in (
        ({"recipe": facts["recipe"] | {"zeal": 1}}, "recipe: zeal unknown"),
        ({"recipe": None}, "recipe must have entries"),
        ({"format": 99}, "it has format 99"),
        ({"format": True}, "format must be a whole number"),
    ):
        path = changed_checkpoint(
            run, tmp_path / "c.npz", facts=np.array(json.dumps(facts | changes))
        )
        with pytest.raises(ValueError, match=f"c.npz .*{says}"):
            mf.load(path)
    del facts["history"]
    path = changed_checkpoint(run, tmp_path / "c.npz", facts=np.array(json.dumps(facts)))
    with pytest.raises(ValueError, match="c.npz .*facts: history missing"):
        mf.load(path)


def test_a_wrong_layer_in_a_file_is_one_line_that_names_it(run, tmp_path):
    path = tmp_path / "n.npz"
    inference.save_npz(path, inference.read(run.path))
    with np.load(path) as file:
        arrays = dict(file)
    network = json.loads(str(arrays["network"]))
    network["layers"][1]["options"]["relu"] = [1]
    np.savez(path, **arrays | {"network": np.array(json.dumps(network))})
    with pytest.raises(ValueError, match="n.npz .*relu must be true or false") as caught:
        mf.load(path)
    assert len(str(caught.value).splitlines()) == 1
