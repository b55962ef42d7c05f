import subprocess
import sys

import pytest

import mulfree_cupy as mf
from mulfree_cupy import cli


def test_kernels_are_listed_with_their_costs(capsys):
    assert cli.main(["kernels"]) == 0
    printed = capsys.readouterr().out
    for kernel in mf.kernels():
        assert f"{kernel.operation}/{kernel.name}: {kernel.idea}" in printed
    assert "cost" in printed


def test_resources_are_tabled():
    """In a process of its own: the first import of NVIDIA's packages happens there."""
    pytest.importorskip("cuda.core", reason="needs the extra 'static': pip install .[static]")
    command = [
        sys.executable,
        "-m",
        "mulfree_cupy.cli",
        "kernels",
        "--resources",
        "--arch",
        "sm_90",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {k.path for k in mf.kernels()} <= {row.split()[0] for row in result.stdout.splitlines()}


def test_unknown_architectures_are_refused(capsys):
    assert cli.main(["kernels", "--resources", "--arch", "sm_1"]) == 1
    assert "architectures must be among sm_75" in capsys.readouterr().err


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
