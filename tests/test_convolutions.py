"""The published reductions of the Winograd pruning paper, from the densities that they imply."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import mulfree_cupy as mf
from mulfree_cupy.report import winograd
from mulfree_cupy.report.convolutions import Convolution, activation_density, reduction, table

# Convolutions as (channels, filters, output side).
VGG_NAGADOMI = [
    (3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), *[(256, 256, 8)] * 3
]  # fmt: skip
VGG_DENSE = [(4096, 1024, 1), (1024, 1024, 1), (1024, 10, 1)]
CONVPOOL = [(3, 96, 32), *[(96, 96, 32)] * 2, (96, 192, 16), *[(192, 192, 16)] * 2, (192, 192, 8)]
CONVPOOL_DENSE = [(192, 192, 8), (192, 100, 8)]
RESNET18 = [
    *[(64, 64, 56)] * 4,
    *[(64, 128, 28), *[(128, 128, 28)] * 3],
    *[(128, 256, 14), *[(256, 256, 14)] * 3],
    *[(256, 512, 14), *[(512, 512, 14)] * 3],
]
# The 1x1 convolutions of the shortcuts and the classifier; the paper leaves its 7x7 out.
RESNET18_DENSE = [(64, 64, 56), (64, 128, 28), (128, 256, 14), (256, 512, 14), (512, 1000, 1)]


def network(convolutions, dense, form, weights, activations=1.0, first=None):
    pruned = [
        Convolution(
            f"conv{i}", *sizes, 3, form, first if first and i == 0 else weights, activations
        )
        for i, sizes in enumerate(convolutions)
    ]
    return pruned, pruned + [Convolution("dense", *sizes, 1) for sizes in dense]


@pytest.mark.parametrize(
    ("convolutions", "dense", "weights", "activations", "pruned", "overall", "static"),
    [
        (VGG_NAGADOMI, VGG_DENSE, 0.4, 0.423, 13.3, 10.4, 5.625),
        (CONVPOOL, CONVPOOL_DENSE, 0.6, 0.525, 7.1, 6.8, 3.75),
        (RESNET18, RESNET18_DENSE, 0.35, 0.4885, 13.2, 10.8, 2.25 / 0.35),
    ],
    ids=["VGG-nagadomi", "ConvPool-CNN-C", "ResNet-18"],
)
def test_published_winograd_relu(
    convolutions, dense, weights, activations, pruned, overall, static
):
    ours, whole = network(convolutions, dense, "winograd-relu", weights, activations)
    assert round(reduction(ours), 1) == pruned
    assert round(reduction(whole), 1) == overall
    assert_allclose(reduction(ours, "static"), static)


@pytest.mark.parametrize(
    ("convolutions", "form", "weights", "activations", "published"),
    [
        (VGG_NAGADOMI, "spatial", 0.6, 0.327, 5.1),
        (VGG_NAGADOMI, "native", 0.6, 0.5, 3.7),
        (CONVPOOL, "spatial", 0.7, 0.408, 3.5),
        (CONVPOOL, "native", 0.7, 0.5, 3.2),
        (RESNET18, "native", 0.5, 0.5, 4.5),
    ],
)
def test_published_twins(convolutions, form, weights, activations, published):
    """The first convolution is pruned to 80%; dense activations of the native form do not count."""
    first = None if convolutions is RESNET18 else 0.8
    ours, _ = network(convolutions, [], form, weights, activations, first)
    assert round(reduction(ours), 1) == published


def test_sizes_of_the_published_networks():
    for convolutions, millions in ((VGG_NAGADOMI, 228.3), (CONVPOOL, 406.1), (RESNET18, 2890.1)):
        layers, _ = network(convolutions, [], "native", 1)
        assert_allclose(sum(layer.direct for layer in layers) / 1e6, millions, atol=0.1)


@pytest.mark.parametrize(("m", "to", "back"), [(2, 32, 24), (4, 336, 200)])
def test_operations_count_the_transforms_as_written(m, to, back):
    """F(2x2, 3x3): Lavin's 32 and 24 additions; F(4x4, 3x3) with no sum shared between rows."""
    layer = Convolution("conv", 5, 7, 4 * m, form="native", weight_density=0.25, m=m)
    products = 2 * 0.25 * 5 * 7 * (m + 2) ** 2
    assert layer.operations.total() == 16 * (products + 5 * to + 7 * back)


def test_odd_sizes_pay_for_whole_tiles():
    layer = Convolution("conv", 1, 1, (7, 5), form="native")
    assert (layer.direct, layer.static) == (9 * 35, 16 * 12)


def test_activations_are_counted_where_they_meet_the_weights():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(2, 8, 9, 9)), 0)
    assert abs(activation_density(x, "spatial") - 0.5) < 0.05
    assert activation_density(x, "native") > 0.8  # the transform fills zeros
    normal = rng.normal(size=(2, 8, 9, 9))
    assert abs(activation_density(normal, "winograd-relu") - 0.5) < 0.05
    BT, _, _ = mf.winograd_matrices(2)
    tiles = np.pad(normal, ((0, 0), (0, 0), (1, 2), (1, 2)))
    tiles = np.lib.stride_tricks.sliding_window_view(tiles, (4, 4), axis=(2, 3))[:, :, ::2, ::2]
    expected = np.mean(BT @ tiles @ BT.T > 0)
    assert activation_density(normal, "winograd-relu") == expected
    pixels = rng.integers(0, 256, (1, 3, 8, 8), np.uint8)  # whose differences are negative too
    for form in ("native", "winograd-relu"):
        assert activation_density(pixels, form) == activation_density(pixels.astype(float), form)


@pytest.mark.parametrize("share", [(0.0, 1.0), (0.4, 0.0)])
def test_nothing_left_to_multiply_is_an_infinite_reduction(share):
    layer = Convolution("conv", 5, 7, 8, 3, "winograd-relu", *share)
    assert reduction([layer]) == np.inf and np.isfinite(reduction([layer], "operations"))
    assert table([layer]).splitlines()[1].split()[-2] == "infx"


def test_the_table_names_every_layer_and_the_totals():
    _, whole = network(VGG_NAGADOMI, VGG_DENSE, "winograd-relu", 0.4, 0.423)
    lines = table(whole).splitlines()
    assert len(lines) == 1 + len(whole) + 2
    assert lines[-2].split()[-2] == "13.30x" and lines[-1].split()[-2] == "10.42x"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Convolution("c", 1, 1, 4, form="sparse"),
            "Convolution: form must be one of dense, .*'sparse'",
        ),
        (
            lambda: Convolution("c", 1, 1, 4, 5, form="native"),
            r"needs a 3x3 kernel, got \(5, 5\) for c",
        ),
        (lambda: Convolution("c", 1, 1, 0), "Convolution: size must be at least 1"),
        (lambda: activation_density(np.ones((1, 1, 4, 4)), "x"), "activation_density: form must"),
        (lambda: Convolution("c", 1, 1, 4, m=3), "Convolution: no transform for m=3"),
        (
            lambda: Convolution("c", 1, 1, 4, weight_density=2),
            "Convolution: weight_density must .*got 2 for",
        ),
        (lambda: activation_density(np.ones((4, 4)), "native"), "x must have 4 dimensions"),
        (lambda: activation_density(np.ones((0, 1, 4, 4)), "spatial"), r"not be empty.*\(0, 1,"),
        (lambda: reduction([]), "reduction: layers must not be empty"),
        (
            lambda: reduction([Convolution("c", 1, 1, 4)], "all"),
            "reduction: count must be .*got 'all'",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_picture_shows_a_position_that_stands_out(tmp_path):
    u = np.random.default_rng(0).normal(size=(4, 4, 9, 5))
    u[1, 1] *= 5
    weights = mf.WinogradWeights.from_dense(u).prune(0.3)
    magnitude = winograd.mean_magnitude(weights)
    assert_allclose(magnitude, np.abs(weights.dense).mean(axis=(2, 3)))
    assert np.unravel_index(magnitude.argmax(), (4, 4)) == (1, 1)
    winograd.draw(tmp_path / "kernels.png", weights, title="conv2")
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
