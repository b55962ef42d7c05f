"""The NEON kernels, cross-compiled and run on an emulated processor."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = "aarch64-linux-gnu-g++", "qemu-aarch64", "apt-get", "dpkg", "git"


@pytest.mark.slow
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)
def test_the_kernels_agree_with_their_formulas_on_aarch64():
    done = subprocess.run(
        [ROOT / ".ci/aarch64", "-q", "tests/test_cpu_kernels.py", "-k", "conv and not threads"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
