"""Trained networks as ONNX models: the same answers in ONNX Runtime."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import paddings
from test_inference import FAMILIES, MEAN, STD, predictor_of, settled

import mulfree_cupy as mf
from mulfree_cupy import inference
from mulfree_cupy.inference import Layer, Network
from mulfree_cupy.inference.operations import OPERATIONS

TOLERANCE = 1e-4  # of the largest logit


def in_onnx_runtime(network):
    """From raw images to logits."""
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnx", reason="needs the extra 'export': pip install .[export]")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    model = inference.to_onnx(network).SerializeToString()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.astype("f")})[0]


def onnx_of(network):
    pytest.importorskip("onnx", reason="needs the extra 'export': pip install .[export]")
    return inference.to_onnx(network)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def exact(network, images):
    """The answers in float64."""
    arrays = {n: a.astype(float) if a.dtype.kind == "f" else a for n, a in network.arrays.items()}
    facts = network.image, network.classes, network.mean, network.std
    mean, std = (a[:, None, None] for a in (network.mean, network.std))
    return Network(network.layers, arrays, *facts)((images - mean) / std)


# Of a binary network rounding turns signs over, after which answers are others.
CONTINUOUS = [name for name in FAMILIES if not name.startswith("binary-")]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_onnx_runtime_answers_alike(name):
    """To 1e-4; where a network of random weights magnifies rounding, as ours are exact to."""
    model, images = settled(name, FAMILIES[name])
    predictor = predictor_of(model, images)
    network, run = predictor.network, in_onnx_runtime(predictor.network)
    images = images[:4]
    expected = exact(network, images)
    largest = np.abs(expected).max()
    assert np.ptp(expected, axis=0).min() > 0  # images are told apart
    tolerance = max(TOLERANCE * largest, 10 * np.abs(predictor(images) - expected).max())
    assert tolerance < 0.01 * largest
    assert_allclose(run(images), expected, rtol=0, atol=tolerance)
    assert_allclose(run(images[:1]), expected[:1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["binary-lenet", "binary-resnet20", "binary-vggsmall"])
def test_binary_networks_answer_alike_where_no_sign_is_in_doubt(name):
    model, images = settled(name, 16)
    predictor = predictor_of(model, images)
    expected, found = predictor(images), in_onnx_runtime(predictor.network)(images)
    off = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(off) < TOLERANCE


PRUNED = [
    "spatial-vgg-nagadomi-8",
    "winograd-relu-vgg-nagadomi-8",
    "winograd-vgg-nagadomi-8",
    "winograd4-relu-convpool-cnn-c-8",
    "winograd4-vgg-nagadomi-8",
]


@pytest.mark.parametrize("name", PRUNED)
def test_of_pruned_networks_too(name):
    model, images = settled(name, 16, prune=0.3)
    predictor = predictor_of(model, images)
    assert_close(in_onnx_runtime(predictor.network)(images), predictor(images))


def test_operators_are_standard():
    for name in ("adder-lenet", "winograd-relu-vgg-nagadomi-8", "shift-adder-resnet20-e1"):
        model = onnx_of(predictor_of(*settled(name, 16)).network)
        own = {function.name for function in model.functions}
        for node in model.graph.node:
            assert node.domain == "" or (node.domain == "mulfree" and node.op_type in own)
        assert not any(node.domain for function in model.functions for node in function.node)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17), ("mulfree", 1)]


def test_a_model_says_what_it_is():
    network = predictor_of(*settled("conv-lenet", 16)).network
    model = onnx_of(network)
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, name, shape in ((images, "images", ["N", 1, 16, 16]), (logits, "logits", ["N", 10])):
        assert value.name == name
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["classes"] == list(network.classes)
    assert [Layer.from_description(layer) for layer in facts["network"]["layers"]] == list(
        network.layers
    )


def single(op, image, arrays, options, name="layer"):
    """A network of one layer whose answer is flattened, and a class for each of its numbers."""
    roles = {role: f"{name}.{role}" for role in arrays}
    arrays = {roles[role]: array for role, array in arrays.items()}
    layers = (Layer(op, name, ("images",), roles, options), Layer("flatten", "flat", (name,)))
    given = {role: arrays[name] for role, name in roles.items()}
    size = OPERATIONS[op].run(np.zeros((1, *image), "f"), **given, **options).size
    statistics = np.zeros(image[0]), np.ones(image[0])
    return Network(layers, arrays, image, tuple(map(str, range(size))), *statistics)


def drawn(rng, *shape):
    return rng.normal(size=shape).astype("f")


@settings(max_examples=25)
@given(drawing=st.data())
def test_windows_of_any_kind(drawing):
    """Strides, paddings, dilations and groups, of one number or a pair."""
    draw, rng = drawing.draw, np.random.default_rng(0)
    op = draw(st.sampled_from(["conv", "adder_conv", "binary_conv"]))
    number = lambda least, most: st.one_of(  # noqa: E731
        st.integers(least, most), st.tuples(*2 * [st.integers(least, most)]).map(list)
    )
    options = {
        "stride": draw(number(1, 3)),
        "padding": draw(st.one_of(number(0, 2), paddings(2))),
        "dilation": draw(number(1, 2)),
        "groups": draw(st.integers(1, 3)),
    }
    groups, kernel = options["groups"], draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    channels, filters = 2 * groups, draw(st.integers(1, 4)) * groups
    arrays = {"weight": drawn(rng, filters, 2, *kernel)}
    also = draw(st.booleans())
    if op == "binary_conv":
        options["scale"] = also
    elif also:
        arrays["bias"] = drawn(rng, filters)
    network = single(op, (channels, 7, 9), arrays, options)
    images = drawn(rng, 2, *network.image)
    assert_close(in_onnx_runtime(network)(images), network(images))


@settings(max_examples=20)
@given(drawing=st.data())
def test_shifts_of_any_size(drawing):
    draw, rng = drawing.draw, np.random.default_rng(0)
    op = draw(st.sampled_from(["shift", "shift_conv", "shift_adder_conv"]))
    pair = st.tuples(*2 * [st.sampled_from([-40, -3, -1, 0, 0, 1, 2, 9])])
    arrays = {"shifts": np.array(draw(st.lists(pair, min_size=3, max_size=3)))}
    if op != "shift":
        arrays |= {"weight": drawn(rng, 4, 3), "bias": drawn(rng, 4)}
    network = single(op, (3, 6, 7), arrays, {"stride": draw(st.integers(1, 3))})
    images = drawn(rng, 2, *network.image)
    assert_allclose(in_onnx_runtime(network)(images), network(images), atol=1e-4)


@settings(max_examples=20)
@given(
    side=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    kind=st.sampled_from([(2, "lavin"), (4, "lavin"), (4, "barabasz")]),
    padding=st.sampled_from([0, 1, [2, 0], [[0, 2], [1, 0]]]),
    relu=st.booleans(),
    bias=st.booleans(),
)
def test_winograd_of_any_size(side, kind, padding, relu, bias):
    (m, points), rng = kind, np.random.default_rng(0)
    arrays = {"weight": drawn(rng, m + 2, m + 2, 5, 3)}
    arrays |= {"mask": rng.random(arrays["weight"].shape) < 0.5}
    arrays |= {"bias": drawn(rng, 5)} if bias else {}
    options = {"points": points, "padding": padding, "relu": relu}
    network = single("winograd_conv", (3, *side), arrays, options)
    images = drawn(rng, 2, *network.image)
    assert_close(in_onnx_runtime(network)(images), network(images))


@pytest.mark.parametrize(("m", "points"), [(2, "lavin"), (4, "lavin"), (4, "barabasz")])
def test_a_winograd_convolution_is_a_plain_one_where_it_can_be(m, points):
    spatial = mf.WinogradWeights.from_spatial(
        drawn(np.random.default_rng(0), 5, 3, 3, 3), m, points=points
    )
    for weights, relu, op in (
        (spatial, False, "Conv"),
        (spatial.prune(0.8), False, "WinogradConv"),
        (spatial, True, "WinogradReluConv"),
    ):
        options = {"points": points, "relu": relu}
        network = single("winograd_conv", (3, 8, 8), {"weight": np.array(weights.dense)}, options)
        assert op in {node.op_type for node in onnx_of(network).graph.node}
        images = drawn(np.random.default_rng(1), 2, 3, 8, 8)
        assert_close(in_onnx_runtime(network)(images), network(images))


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("padding", [0, 1, [1, 0], [[0, 2], [1, 0]]])
def test_pooling(op, padding):
    options = {"kernel_size": [3, 2], "stride": 2, "padding": padding}
    network = single(op, (3, 7, 8), {}, options)
    images = drawn(np.random.default_rng(0), 2, 3, 7, 8)
    assert_close(in_onnx_runtime(network)(images), network(images))


def test_normalisation_of_rows_and_layers_that_share_weights():
    rng = np.random.default_rng(0)
    norm = {role: f"norm.{role}" for role in ("weight", "bias", "mean", "variance")}
    linear = {"weight": "w", "bias": "b"}
    options = {"eps": 1e-5, "relu": True}
    layers = (
        Layer("flatten", "", ("images",)),
        Layer("linear", "logits", ("",), linear),
        Layer("linear", "mean", ("logits",), linear),
        Layer("batch_norm", "w", ("mean", "logits"), norm, options),
        Layer("relu", "images/3", ("w",)),
    )
    arrays = {"w": drawn(rng, 4, 4), "b": drawn(rng, 4)}
    arrays |= {name: np.abs(drawn(rng, 4)) + 0.1 for name in norm.values()}
    network = Network(layers, arrays, (1, 2, 2), tuple("abcd"), np.full(1, 0.5), np.full(1, 2.0))
    images = drawn(rng, 5, 1, 2, 2)
    expected = inference.Predictor(network)(images)
    assert_close(in_onnx_runtime(network)(images), expected)
    assert sum(c.name == "w" for c in onnx_of(network).graph.initializer) == 1


def quantised(rng):
    """A network of 8 bits with all that there may be in one."""
    scale, offset = {"scale": "s3", "offset": "o3"}, {"low": 0.0, "high": 255.0, "dtype": "uint8"}
    back = {"scale": "s4", "offset": "o4"}
    layers = (
        Layer("rescale", "bytes", ("images",), scale, offset),
        Layer("pad", "padded", ("bytes",), {}, {"border": [1, 2], "value": 7}),
        Layer("adder_conv", "sums", ("padded",), {"weight": "w", "bias": "b"}),
        Layer("rescale", "one", ("sums",), back, offset),
        Layer("pad", "again", ("one",), {}, {"border": [1, 1], "value": 9}),
        Layer("adder_conv", "twice", ("again",), {"weight": "v"}),
        Layer("rescale", "two", ("twice", "one"), back, {**offset, "residual_scale": 0.75}),
        Layer("shift", "moved", ("two",), {"shifts": "t"}),
        Layer("max_pool", "pooled", ("moved",), {}, {"kernel_size": 2, "stride": 2, "padding": 0}),
        Layer("flatten", "flat", ("pooled",)),
        Layer(
            "rescale",
            "logits",
            ("flat",),
            {"scale": "s5", "offset": "o5"},
            {"low": -1e30, "high": 1e30, "dtype": "float32"},
        ),
    )
    arrays = {
        "w": rng.integers(0, 256, (4, 3, 3, 3), np.uint8),
        "b": rng.integers(-500, 500, 4).astype(np.int32),
        "v": rng.integers(0, 256, (4, 4, 3, 3), np.uint8),
        "t": np.array([(0, 1), (1, 0), (-1, -1), (0, 0)]),
        "s3": rng.uniform(20, 40, 3).astype("f"), "o3": rng.uniform(90, 120, 3).astype("f"),
        "s4": rng.uniform(0.05, 0.1, 4).astype("f"), "o4": rng.uniform(200, 250, 4).astype("f"),
        "s5": np.ones(64, "f"), "o5": np.zeros(64, "f"),
    }  # fmt: skip
    statistics = np.array(MEAN), np.array(STD)
    return Network(layers, arrays, (3, 8, 6), tuple(map(str, range(64))), *statistics)


def test_integers_are_the_same_ones():
    network, rng = quantised(np.random.default_rng(0)), np.random.default_rng(1)
    images = rng.integers(0, 256, (64, *network.image), np.uint8)
    x = (images.astype("f") - np.array(MEAN, "f")[:, None, None]) / np.array(STD, "f")[
        :, None, None
    ]
    expected = network(x)
    assert len(np.unique(expected)) > 200
    assert_array_equal(in_onnx_runtime(network)(images), expected)


def test_other_floats_become_float32():
    network = predictor_of(*settled("conv-lenet", 16)).network
    arrays = {name: a.astype("f8") for name, a in network.arrays.items()}
    double = Network(
        network.layers, arrays, *(getattr(network, n) for n in ("image", "classes", "mean", "std"))
    )
    images = np.random.default_rng(0).integers(0, 256, (2, *network.image))
    assert_close(in_onnx_runtime(double)(images), inference.Predictor(network)(images))
