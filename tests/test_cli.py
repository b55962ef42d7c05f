import pytest

import mulfree_cupy as mf
from mulfree_cupy import cli


def test_kernels_are_listed_with_their_costs(capsys):
    assert cli.main(["kernels"]) == 0
    printed = capsys.readouterr().out
    for kernel in mf.kernels():
        assert f"{kernel.operation}/{kernel.name}: {kernel.idea}" in printed
    assert "cost" in printed


@pytest.mark.parametrize("arguments", [["--help"], ["kernels", "--help"], ["--version"]])
def test_help_helps(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "mulfree" in capsys.readouterr().out


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
