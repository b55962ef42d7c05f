"""Operation counts of networks, held to published and hand-made figures."""

import numpy as np
import pytest

from mulfree_cupy import cli, models, nn
from mulfree_cupy.report import operations

rng = np.random.default_rng(0)


def counted(name, **shape):
    shape = {**models.default_shape(name), **shape}
    return operations.count(models.build(name, **shape), shape["channels"], shape["size"])


def test_adder_resnet20_by_hand():
    """40.37 M abs(x - w) of two additions each; the rest is the first layer and the classifier."""
    counts = counted("adder-resnet20")
    adders = [layer for layer in counts.layers if layer.kind == "AdderConv"]
    assert sum(layer.additions for layer in adders) == 2 * 40_370_176
    assert not any(layer.multiplications for layer in adders)
    first, *_, last = counts.layers
    assert (first.name, first.multiplications, first.additions) == ("conv1", 442_368, 442_368)
    assert (last.name, last.multiplications) == ("fc", 640)
    assert counts.multiplications == 442_368 + 640
    assert counts.parameters == 272_484


def test_the_conv_twin_multiplies_where_the_adder_adds():
    adder, conv = counted("adder-resnet20"), counted("conv-resnet20")
    assert conv.multiplications == conv.additions == 40_370_176 + 442_368 + 640
    assert [c.parameters for c in conv.layers] == [c.parameters for c in adder.layers]


@pytest.mark.parametrize(
    ("name", "billions"), [("conv-resnet18", 1.8), ("conv-resnet50", 3.9), ("conv-vggsmall", 0.6)]
)
def test_published_figures(name, billions):
    """AdderNet's table 2 and 3; its ResNet-50 has the stride in the 1x1, ours in the 3x3."""
    assert counted(name).multiplications / 1e9 == pytest.approx(billions, rel=0.06)


def test_groups_bias_and_stride():
    layer = nn.Conv(6, 4, 3, rng, bias=True, groups=2, stride=2, padding=1)
    (row,) = operations.count(nn.Sequential(layer), channels=6, size=7).layers
    assert row.shape == (4, 4, 4) and row.parameters == 4 * 3 * 9 + 4
    assert row.multiplications == 4 * 16 * 3 * 9


def test_the_command_prints_them(capsys):
    assert cli.main(["count", "adder-lenet", "--size", "8"]) == 0
    printed = capsys.readouterr().out
    first = " ".join(printed.splitlines()[1].split())
    assert first == "conv1 AdderConv 6 x 8 x 8 150 0 19,200"
    assert cli.main(["count", "adder-alexnet"]) == 1
    assert "no model named 'adder-alexnet'" in capsys.readouterr().err
