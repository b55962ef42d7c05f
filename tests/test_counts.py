"""Operations, bytes and energy of networks, compared with published and hand-computed figures."""

import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mulfree_cupy import cli, data, models, nn
from mulfree_cupy.inference.operations import OPERATIONS
from mulfree_cupy.inference.quantisation import quantize
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.report import counts, energy
from mulfree_cupy.report.convolutions import Convolution, operations_of
from mulfree_cupy.report.counts import count

rng = np.random.default_rng(0)


def counted(name, **shape):
    shape = {**models.default_shape(name), **shape}
    return count(network_of(models.build(name, **shape), shape["channels"], shape["size"]))


def numbers(counted, rule="everything"):
    return [counted.number(what, rule) for what in ("multiplication", "addition", "xnor")]


def of_layers(*layers, channels, size):
    network = nn.Sequential(*layers, nn.GlobalAveragePool())
    return count(network_of(network, channels, size)).steps[:-1]


def test_adder_resnet20_by_hand():
    """40.37 M abs(x - w) in its adder layers, an ordinary first layer and classifier."""
    everything = counted("adder-resnet20")
    adders = [c for c in everything.convolutions if c.form == "adder"]
    assert sum(c.direct for c in adders) == 40_370_176
    first, *_, last = everything.convolutions
    assert (first.name, first.direct) == ("conv1", 442_368)
    assert (last.name, last.direct) == ("fc", 640)
    assert everything.parameters == 272_484
    assert everything.weight_bytes == 4 * 272_484

    answers = 7 * 16 * 1024 + 7 * 32 * 256 + 7 * 64 * 64  # two stages have a shortcut of their own
    assert everything.activation_bytes == 4 * (answers + 64 + 10)
    normalised = answers + 10
    residuals = 3 * (16 * 1024 + 32 * 256 + 64 * 64)
    multiplications = 442_368 + 640 + normalised + 64  # a mean ends with a factor
    additions = 2 * 40_370_176 + 442_368 + 640 + normalised + residuals + 64 * 64
    assert numbers(everything) == [multiplications, additions, 0]
    assert everything.energy == pytest.approx(3.7e-12 * multiplications + 0.9e-12 * additions)


@pytest.mark.parametrize(
    ("name", "billions", "digits"), [("resnet32", 0.06912, 5), ("resnet18", 1.8, 1)]
)
def test_published_figures(name, billions, digits):
    """AdderNet's tables 2 and 3; the additions that they print are twice the rounded ones."""
    cnn, adder, binary = (
        numbers(counted(f"{kind}-{name}"), "papers") for kind in ("conv", "adder", "binary")
    )
    assert [round(n / 1e9, digits) for n in cnn] == [billions, billions, 0]
    assert adder == [0, 2 * cnn[1], 0]
    assert binary == [0, cnn[1], cnn[1]]


def test_published_resnet50_has_the_stride_in_the_first_1x1():
    """3.9 G and 7.7 G; ours, with the stride in the 3x3, has 4.1 and 8.2."""
    ours = counted("conv-resnet50")
    layers = {c.name: c for c in ours.convolutions}
    moved = 0
    for name, layer in layers.items():
        first = layers.get(name.removesuffix("conv2") + "conv1")
        if name.endswith("conv2") and first.size != layer.size:
            moved += first.direct - first.direct * layer.size[0] ** 2 // first.size[0] ** 2
    total = sum(c.direct for c in layers.values())
    assert round(total / 1e9, 2) == 4.09
    assert round((total - moved) / 1e9, 1) == 3.9
    assert round(2 * (total - moved) / 1e9, 1) == 7.7


def test_two_published_figures_do_not_come_out():
    """ResNet-20's 41.17 M does not fit ResNet-32's 69.12 M, which has two more blocks a stage."""
    (resnet20, *_), (resnet32, *_) = (
        numbers(counted(f"conv-resnet{depth}"), "papers") for depth in (20, 32)
    )
    blocks = 3 * 4 * 2_359_296
    assert resnet32 - resnet20 == blocks
    assert resnet20 == 40_813_184 == round(41.17e6 - 356_816)
    vggsmall, *_ = numbers(counted("conv-vggsmall"), "papers")
    assert vggsmall == 607_600_640 and round(vggsmall / 0.65e9 - 1, 3) == -0.065


def test_groups_bias_and_stride():
    layer = nn.Conv(6, 4, 3, rng, bias=True, groups=2, stride=2, padding=1)
    (row,) = of_layers(layer, channels=6, size=7)
    assert row.shape == (4, 4, 4) and row.parameters == 4 * 3 * 9 + 4
    products = 4 * 16 * 3 * 9
    assert row.operations == {
        ("multiplication", "float32"): products,
        ("addition", "float32"): products + 4 * 16,
    }


def test_pools_means_and_sums():
    pool = nn.AvgPool(3, stride=2, padding=1)
    first, _, last = count(
        network_of(nn.Sequential(pool, nn.MaxPool(2), nn.GlobalAveragePool()), 5, 8)
    ).steps
    assert first.operations == {
        ("multiplication", "float32"): 5 * 16,
        ("addition", "float32"): 5 * 16 * 9,
    }
    assert last.operations == {
        ("multiplication", "float32"): 5,
        ("addition", "float32"): 5 * 4,
    }


def test_shifts_are_moves_and_no_arithmetic():
    shifts = np.tile([[1, 0], [0, -1]], (3, 1))
    moved, fused = of_layers(
        nn.Shift(shifts), nn.ShiftConv(shifts, 4, rng, stride=2), channels=6, size=8
    )
    assert (moved.moves, moved.operations, moved.parameters) == (6 * 64, {}, 0)
    assert fused.moves == 6 * 16
    assert counts.number(fused.operations, "multiplication") == 6 * 4 * 16


@pytest.mark.parametrize("scale", [True, False])
def test_signs_are_bits_and_a_filter_has_a_factor(scale):
    layer = nn.BinaryConv(5, 7, 3, rng, padding=1, scale=scale)
    (row,) = of_layers(layer, channels=5, size=4)
    terms, answers = 5 * 9 * 7 * 16, 7 * 16
    wanted = {("xnor", "bit"): terms, ("addition", "bit"): terms}
    if scale:
        wanted["multiplication", "float32"] = answers
    assert row.operations == wanted
    assert row.weight_bytes == -(-5 * 9 * 7 // 8) + (4 * 7 if scale else 0)


def test_a_quantized_network_adds_small_integers():
    train, _ = data.load("digits")
    network = network_of(models.build("adder-lenet", size=8), 1, 8, mean=5.0, std=6.0)
    whole = count(quantize(network, train.images[:100]).network)
    floats = count(network)
    adders = sum(c.direct for c in whole.convolutions if c.dtype == "uint8")
    assert adders == sum(c.direct for c in floats.convolutions)
    operations = whole.operations()
    assert operations["addition", "int8"] == operations["addition", "int32"] == adders
    assert whole.weight_bytes < floats.weight_bytes / 3
    assert whole.energy < floats.energy / 5


def test_every_operation_of_a_network_is_counted():
    assert counts.OTHERS.keys() == OPERATIONS.keys()


@given(st.sampled_from(["product", "difference", "xnor"]), st.sampled_from(["float32", "uint8"]))
@settings(max_examples=10, deadline=None)
def test_a_term_is_two_operations(term, dtype):
    assert operations_of(term, dtype).total() == 2


def test_terms_of_each_form():
    cost = {
        form: Convolution("c", 64, 64, 8, form=form).operations
        for form in ("dense", "adder", "binary")
    }
    n = 64 * 64 * 9 * 64
    assert cost["dense"] == {("multiplication", "float32"): n, ("addition", "float32"): n}
    assert cost["adder"] == {("addition", "float32"): 2 * n}
    assert cost["binary"] == {("xnor", "bit"): n, ("addition", "bit"): n}
    joules = [energy.arithmetic(cost[form]) / n for form in cost]
    assert joules == pytest.approx([4.6e-12, 1.8e-12, 0.0075e-12])


def test_energy_of_what_the_table_lacks_is_no_number():
    assert np.isnan(energy.arithmetic(Counter({("addition", "float64"): 1})))
    assert energy.arithmetic(Counter()) == 0
    assert energy.memory(800) == pytest.approx(1e-9)


def test_there_are_two_rules():
    with pytest.raises(ValueError, match="rule must be one of everything, papers, got 'all'"):
        counted("conv-lenet").operations("all")


class TestCommand:
    def test_it_prints_a_line_a_network(self, capsys):
        assert cli.main(["count", "adder-lenet", "conv-lenet", "--size", "8"]) == 0
        _, _, adder, conv = capsys.readouterr().out.splitlines()
        assert adder.split()[1:4] == ["adder-lenet", "|", "44,662"]
        assert conv.split()[1] == "conv-lenet"

    def test_it_prints_layers_by_the_rule_of_the_papers(self, capsys):
        arguments = ["count", "adder-lenet", "--size", "8", "--layers", "--rule", "papers"]
        assert cli.main(arguments) == 0
        name, _, _, first, *_ = capsys.readouterr().out.splitlines()
        assert name == "adder-lenet"
        cells = [cell.strip() for cell in first.split("|")[1:-1]]
        assert cells == [
            "conv1 + bn1", "6 x 8 x 8", "162", "0.6", "1.5", "0", "19,200", "0", "0", "0.017",
        ]  # fmt: skip

    def test_it_writes_a_csv(self, tmp_path, capsys):
        path = tmp_path / "counts.csv"
        assert cli.main(["count", "conv-lenet", "adder-lenet", "--csv", str(path)]) == 0
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["network"] for row in rows} == {"conv-lenet", "adder-lenet"}
        total = sum(int(row["addition"]) for row in rows if row["network"] == "conv-lenet")
        assert total == counted("conv-lenet").number("addition")

    def test_it_knows_no_other_network(self, capsys):
        assert cli.main(["count", "adder-alexnet"]) == 1
        assert "no model named 'adder-alexnet'" in capsys.readouterr().err
