"""The threads of the CPU kernels: how many, the same bits, forks, many callers, none left."""

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy import inference, models
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.ops import convolution

_cpu = pytest.importorskip("mulfree_cupy._cpu")
ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(20)
X = RNG.normal(size=(16, 24, 20, 20)).astype("f")  # large enough for several threads
W = RNG.normal(size=(24, 24, 3, 3)).astype("f")
MATRIX = X.reshape(640, 240)
WEIGHT = MATRIX[:128]
SHIFTS = mf.modulo_shifts(24)
WINOGRAD = mf.WinogradWeights.from_spatial(W)


@pytest.fixture(autouse=True)
def number_of_threads():
    before = mf.get_num_threads()
    yield
    mf.set_num_threads(before)


def answers():
    """Every kind of loop over threads: pixels, gradients, planes, matrices, Winograd's tiles."""
    y = mf.adder_conv(X, W, padding=1)
    return (
        y,
        *mf.adder_conv_backward(y, X, W, padding=1),
        *mf.conv_backward(y, X, W, padding=1),
        mf.adder_conv((X * 40 + 128).astype(np.uint8), (W * 40 + 128).astype(np.uint8)),
        mf.adder_conv((X * 2 + 2).astype(np.uint8), (W * 2 + 2).astype(np.uint8), bits=2),
        mf.binary_conv(X, W, padding=1),
        mf.binary_conv(X, W[:, :, :1, :1].copy(), stride=2),
        mf.shift(X, SHIFTS),
        mf.shift_backward(y, SHIFTS, X.shape),
        mf.im2col(X, 3),
        mf.winograd_conv(X, WINOGRAD, padding=1),
        *mf.winograd_conv_backward(y, X, WINOGRAD, padding=1),
        convolution.matmul(MATRIX, WEIGHT.T),
        convolution.matmul(MATRIX[:9], WEIGHT.T),
        *convolution.matmul_backward(MATRIX[:, :128], MATRIX, WEIGHT.T),
    )


def in_a_child(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if "NUM_THREADS" not in k} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_may_end_while_a_daemon_thread_computes():
    in_a_child("""
import threading, time
import numpy as np
import mulfree_cupy as mf

x, w = np.ones((8, 16, 40, 40), "f"), np.ones((16, 16, 3, 3), "f")

def loop():
    while True:
        mf.adder_conv(x, w)

for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.1)
""")


@pytest.mark.parametrize("threads", [2, 3, 7, 64])
def test_any_number_of_threads_gives_the_same_bits(threads):
    mf.set_num_threads(1)
    want = answers()
    mf.set_num_threads(threads)
    for _ in range(3):
        for a, b in zip(answers(), want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_environment_sets_their_number():
    code = "import mulfree_cupy as mf; print(mf.get_num_threads())"
    assert in_a_child(code, MULFREE_NUM_THREADS="3", OMP_NUM_THREADS="5") == "3"
    assert in_a_child(code, OMP_NUM_THREADS="5,2") == "5"
    available = str(len(os.sched_getaffinity(0))) if sys.platform == "linux" else None
    for many in ("1025", "9" * 30):
        assert in_a_child(code, MULFREE_NUM_THREADS=many) == "1024"
    for nonsense in ("", "many", "0", "-2"):
        got = in_a_child(code, MULFREE_NUM_THREADS=nonsense)
        assert available in (got, None)


@pytest.mark.parametrize("n", [0, -1, 1025, 2.0, "2", None])
def test_other_numbers_are_refused(n):
    before = mf.get_num_threads()
    error = ValueError if isinstance(n, int) else TypeError
    with pytest.raises(error, match="set_num_threads: n must be"):
        mf.set_num_threads(n)
    assert mf.get_num_threads() == before


COUNT = """
import os, numpy as np, mulfree_cupy as mf
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
x, w = np.ones((16, 24, 20, 20), "f"), np.ones((24, 24, 3, 3), "f")
mf.adder_conv(x[:1, :, :4, :4], w)
small = threads() - before
for _ in range(3):
    mf.adder_conv(x, w)
print(small, threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_small_call_starts_no_thread_and_others_no_more_than_allowed():
    assert in_a_child(COUNT, MULFREE_NUM_THREADS="4") == "0 3"


ASLEEP = """
import time, numpy as np, mulfree_cupy as mf
x, w = np.ones((16, 24, 20, 20), "f"), np.ones((24, 24, 3, 3), "f")
for _ in range(5):
    mf.adder_conv(x, w)
time.sleep(0.05)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


def test_no_thread_is_left_spinning():
    assert float(in_a_child(ASLEEP, MULFREE_NUM_THREADS="4")) < 0.05  # seconds of a processor


TRAIN = """
import hashlib
import numpy as np
from mulfree_cupy import models, optim
from mulfree_cupy.autograd import Tensor, apply

rng = np.random.default_rng(0)
images = rng.normal(size=(48, 3, 32, 32)).astype("f")
for name in "adder-lenet", "conv-lenet", "shiftresnet20-e1", "winograd-vgg-nagadomi-8":
    network = models.build(name, channels=3, size=32, classes=10)
    optimiser = optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(3):
        loss = apply("cross_entropy", network(Tensor(images)), labels=np.arange(48) % 10)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = b"".join(p.data.tobytes() for p in network.parameters())
    print(name, hashlib.sha256(weights).hexdigest())
"""


def test_training_with_any_number_of_threads_gives_the_same_bits():
    counts = "1", "2", "3", "7", "64"
    ends = {in_a_child(TRAIN, MULFREE_NUM_THREADS=n, OPENBLAS_NUM_THREADS=n) for n in counts}
    assert len(ends) == 1


def child_answers(connection):
    connection.send([a.tobytes() for a in answers()])


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_works_after_a_call_with_threads(method):
    mf.set_num_threads(3)
    want = [a.tobytes() for a in answers()]
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=child_answers, args=(theirs,))
    child.start()
    assert ours.poll(60), "the child hangs"
    assert ours.recv() == want
    child.join()
    assert child.exitcode == 0
    assert [a.tobytes() for a in answers()] == want  # and so does the parent


def worker_answers(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 24, 20, 20)).astype("f")
    return mf.conv(x, W), PREDICTOR(x), mf.get_num_threads()


PREDICTOR = inference.Predictor(
    network_of(models.build("conv-lenet", channels=24, size=20), 24, 20)
)


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_joblib_s_workers(backend, monkeypatch):
    joblib = pytest.importorskip("joblib")
    for name in ("MULFREE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    mf.set_num_threads(3)
    want = [worker_answers(seed) for seed in range(6)]
    call = joblib.delayed(worker_answers)
    with joblib.parallel_config(
        backend, n_jobs=2, inner_max_num_threads=1 if backend == "loky" else None
    ):
        got = joblib.Parallel(timeout=60)(map(call, range(6)))
    for (y, logits, threads), (want_y, want_logits, _) in zip(got, want, strict=True):
        np.testing.assert_array_equal(y, want_y)
        np.testing.assert_array_equal(logits, want_logits)
        # Loky tells its workers by OMP_NUM_THREADS; a fork has what its parent had.
        assert threads == (1 if backend == "loky" else 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_other_threads_calls():
    mf.set_num_threads(3)
    want = mf.adder_conv(X, W).tobytes()
    stop = threading.Event()

    def call():
        while not stop.is_set():
            mf.adder_conv(X, W)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(0 if mf.adder_conv(X, W).tobytes() == want else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def test_many_callers_at_once_get_the_same_answers():
    mf.set_num_threads(4)
    want = [a.tobytes() for a in answers()]
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda _: [a.tobytes() for a in answers()], range(12)):
            assert got == want


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_pool_has_no_race(tmp_path):
    program = tmp_path / "threads"
    built = subprocess.run(
        ["g++", "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", "-o", program,
         ROOT / "cpu/engine/threads.cpp", ROOT / "tests/threads_driver.cpp"],
        capture_output=True, text=True,
    )  # fmt: skip
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("no ThreadSanitizer here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(300 * sum(range(64)))] * 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_where_that_is_asked_for():
    code = """
import numpy as np
import mulfree_cupy as mf

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

{}
before = resident()
arrays = [np.ones(5 << 20, "f") for _ in range(10)]  # of 20 MiB
del arrays
arrays = [np.ones(5 << 20, "f") for _ in range(10)]
del arrays
print(resident() - before)
"""
    assert float(in_a_child(code.format(""))) < 100
    assert float(in_a_child(code.format("mf.keep_freed_memory()"))) > 190


def test_show_config_names_what_a_report_needs(capsys):
    mf.show_config()
    text = capsys.readouterr().out
    for part in (mf.__version__, np.__version__, _cpu.features(), "threads", "gpu"):
        assert part in text
