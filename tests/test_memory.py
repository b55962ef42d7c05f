"""The answer and a bounded workspace: im2col is never stored."""

import subprocess
import sys

import pytest

MIB = 1 << 20
PEAK = """
import re
import numpy as np
import mulfree_cupy as mf

def peak():
    # The high-water mark; ru_maxrss would begin with that of the process that started this one.
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
"""
CODE = """
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
    assert printed(PEAK + code) < 64 * MIB


def printed(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("columns", ["slice(None)", "slice(None, None, 2)"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("call", ["mf.pairwise_l1(a, b)", "mf.nearest_l1(a, b, 4)[0]"])
def test_distances_take_their_answer_and_little_more(call, dtype, columns):
    """All distances would be 160 MiB."""
    code = f"""
a, b = (np.ones((n, 200), {dtype!r})[:, {columns}] for n in (20_000, 2_000))
before = peak()
answer = {call}
print(peak() - before - answer.nbytes)
"""
    assert printed(PEAK + code) < 64 * MIB
