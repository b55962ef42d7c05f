"""The rehearsal of the GPU path: its checks, and the GPU tests in it."""

import sys
from pathlib import Path

import pytest
import rehearsal

pytestmark = pytest.mark.skipif(rehearsal.missing() is not None, reason=str(rehearsal.missing()))


def rehearsed(code, **options):
    """The rehearsal of some lines of Python, which must succeed."""
    start = "import cupy, numpy as np, mulfree_cupy as mf\n"
    done = rehearsal.rehearse(sys.executable, "-c", start + code, **options)
    assert done.status == 0, done.output
    return done


def test_launches_and_copies_are_logged():
    done = rehearsed("x = cupy.ones((1, 4, 8, 8), 'f'); mf.shift(x, [(0, 1)] * 4).get()")
    (launch,) = done.calls("launch", name="shift_table")
    assert launch["device"] == 0 and launch["block"][0] >= 32
    assert done.calls("memcpyAsync", direction="DtoH", bytes=1024)
    assert done.calls("streamSynchronize") and not [r for r in done.log if "refused" in r]


def test_products_of_cublas_have_their_values():
    rehearsed("""
rng = np.random.default_rng(0)
for dtype in "fd":
    a, b = rng.normal(size=(3, 4, 5)).astype(dtype), rng.normal(size=(3, 5, 6)).astype(dtype)
    x, y = cupy.asarray(a), cupy.asarray(b)
    np.testing.assert_allclose((x @ y).get(), a @ b, rtol=1e-4)
    np.testing.assert_allclose((x[0] @ y[0]).get(), a[0] @ b[0], rtol=1e-4)
    np.testing.assert_allclose((x[0] @ y[0, 0, :5]).get(), a[0] @ b[0, 0, :5], rtol=1e-4)
""")


@pytest.mark.parametrize(
    ("grid", "block", "shared", "why"),
    [
        ((1, 65536), (32,), 0, "too large a grid"),
        ((1,), (32, 33), 0, "too large a block"),
        ((1,), (256,), 0, "more threads than __launch_bounds__"),
        ((1,), (32,), 50_000, "more shared memory than was asked for"),
    ],
)
def test_launches_beyond_a_limit_are_refused(grid, block, shared, why):
    done = rehearsed(f"""
code = 'extern "C" __global__ void __launch_bounds__(128) k(float* x) {{ x[threadIdx.x] = 1; }}'
kernel = cupy.RawModule(code=code).get_function("k")
try:
    kernel({grid}, {block}, (cupy.empty(128, "f"),), shared_mem={shared})
except cupy.cuda.driver.CUDADriverError:
    pass
else:
    raise AssertionError("not refused")
""")
    assert [record["refused"] for record in done.calls("launch", name="k")] == [why]


def test_memory_of_another_gpu_is_refused():
    done = rehearsed(
        """
kernel = cupy.RawModule(code='extern "C" __global__ void k(float* x) {}').get_function("k")
with cupy.cuda.Device(1):
    x = cupy.empty(4, "f")
    kernel((1,), (1,), (x,))
    assert x.data.device_id == 1
for fault in (lambda: kernel((1,), (1,), (x,)), lambda: x + 1):
    try:
        fault()
    except (cupy.cuda.driver.CUDADriverError, ValueError) as error:
        print(error)
    else:
        raise AssertionError("not refused")
""",
        devices=2,
    )
    assert [record["device"] for record in done.calls("launch", name="k")] == [1, 0]
    assert done.calls("launch", device=0, refused="memory of another device")


CAPTURE = """
stream = cupy.cuda.Stream(non_blocking=True)
x, y, pinned = cupy.ones(8, "f"), cupy.ones((2, 2), "f"), cupy.cuda.alloc_pinned_memory(32)
x += x
runtime = cupy.cuda.runtime
with stream:
    stream.begin_capture({mode})
    x += x
    x += x
    {call}
    graph = stream.end_capture()
    graph.launch()
    graph.launch()
"""


@pytest.mark.parametrize(
    "call",
    ["pass", "x.copy()", "runtime.memcpyAsync(x.data.ptr, pinned.ptr, 32, 1, stream.ptr)"],
)
def test_a_captured_graph_counts_its_nodes(call):
    done = rehearsed(CAPTURE.format(mode="", call=call))
    nodes = 2 + (call != "pass")
    assert len([record for record in done.log if record.get("captured")]) >= nodes
    assert [record["nodes"] for record in done.calls("graphLaunch")] == [nodes, nodes]


@pytest.mark.parametrize(
    ("call", "mode"),
    [
        ("stream.synchronize()", ""),
        ("cupy.cuda.Device().synchronize()", ""),
        ("runtime.memcpy(x.data.ptr, x.data.ptr, 4, 3)", ""),
        ("runtime.memcpyAsync(x.data.ptr, np.ones(8).ctypes.data, 32, 1, stream.ptr)", ""),
        ("runtime.malloc(512)", "runtime.streamCaptureModeGlobal"),
        ("y @ y", ""),
        ("x.get()", ""),
        ("x[0].item()", ""),
        ("with cupy.cuda.Stream.null: x += x", ""),
    ],
)
def test_what_a_capture_forbids_is_refused(call, mode):
    done = rehearsal.rehearse(
        sys.executable, "-c", "import cupy, numpy as np\n" + CAPTURE.format(call=call, mode=mode)
    )
    assert done.status == 1 and not done.calls("graphLaunch"), done.output
    errors = "CUDARuntimeError: cudaErrorStreamCapture", "CUDADriverError", "current", "cuBLAS"
    assert any(error in done.output for error in errors), done.output


def test_a_capture_may_allocate_in_the_relaxed_mode_and_it_is_logged():
    done = rehearsed(CAPTURE.format(mode="", call="runtime.malloc(512)"))
    assert done.calls("malloc", captured=True, bytes=512)


def test_everything_happens_on_the_gpu_of_the_arrays():
    networks = "adder-resnet20", "shiftresnet20-e1", "winograd-relu-convpool-cnn-c-8"
    done = rehearsal.rehearse(
        sys.executable, Path(rehearsal.__file__).with_name("two_gpus.py"), *networks, devices=2
    )
    assert done.status == 0, done.output
    assert {record["device"] for record in done.calls("launch") + done.calls("malloc")} == {1}


def test_the_gpu_tests_pass_in_rehearsal():
    command = "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"
    done = rehearsal.rehearse(sys.executable, *command)
    assert done.status == 0, done.output
