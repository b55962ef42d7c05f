"""The answer and a bounded workspace: im2col is never stored."""

import subprocess
import sys

import pytest

MIB = 1 << 20
CODE = """
import re
import numpy as np
import mulfree_cupy as mf

def peak():
    # The high-water mark; ru_maxrss would begin with that of the process that started this one.
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024

def run(batch, size):
    x = np.ones((batch, 64, size, size), {dtype!r})[:, :, :, {columns}]
    w = np.ones((64, 64, 3, 3), {dtype!r})
    weights = mf.WinogradWeights.from_spatial(w.astype(np.float32))
    grad = np.ones(mf.conv(x, w, padding=1).shape if {backward} else 0, {dtype!r})
    before = peak()
    answer = {call}
    assert peak() - before > answer[0].nbytes  # the mark does rise
    return peak() - before - sum(a.nbytes for a in (answer if {backward} else [answer]))

run(1, 8)
print(run(8, 112))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("columns", ["slice(None)", "slice(None, None, -1)"])
@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        ("mf.adder_conv(x, w, padding=1)", "float32"),
        ("mf.adder_conv(x, w, padding=1)", "uint8"),
        ("mf.conv(x, w, padding=1)", "float32"),
        ("mf.adder_conv_backward(grad, x, w, padding=1)", "float32"),
        ("mf.conv_backward(grad, x, w, padding=1)", "float32"),
        ("mf.winograd_conv(x, weights, kernel='sparse')", "float32"),
        ("mf.winograd_conv(x, weights, kernel='scipy')", "float32"),
        ("mf.winograd_conv_backward(grad, x, weights)", "float32"),
    ],
)
def test_workspace_is_at_most_64_mib(call, dtype, columns):
    code = CODE.format(call=call, dtype=dtype, columns=columns, backward="backward" in call)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 64 * MIB
