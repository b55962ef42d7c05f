"""Data-parallel training: ranks that are threads, and those of mpirun."""

import contextvars
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import numpy as np
import pytest
import rehearsal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import cli, data, models, nn
from mulfree_cupy import communicator as ranks
from mulfree_cupy import formulas as spec
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.communicator import Communicator
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward
from mulfree_cupy.train import AUGMENTATIONS, Interrupted, Recipe, Training, connect, distributed
from mulfree_cupy.train import device as device_module


class Thread(Communicator):
    """A rank that is a thread of this process."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self.shared = rank, size, shared

    def gather(self, array):
        arrays, barrier = self.shared
        arrays[self.rank] = array
        barrier.wait()
        gathered = np.stack(arrays)
        barrier.wait()
        return gathered

    def exchange(self, parts):
        return self.gather(parts)[:, self.rank]


def in_ranks(size, function):
    """What the function returns on each of so many ranks, called with their communicators."""
    shared = [None] * size, threading.Barrier(size, timeout=60)
    answers, errors = [None] * size, []

    def run(rank):
        try:
            answers[rank] = function(Thread(rank, size, shared))
        except BaseException as error:
            errors.append(error)
            shared[1].abort()

    contexts = [contextvars.copy_context() for _ in range(size)]
    threads = [
        threading.Thread(target=context.run, args=(run, rank))
        for rank, context in enumerate(contexts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def values(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 3 * 2**14 + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_is_in_the_order_of_the_ranks(size, count, dtype):
    """Small arrays are gathered, larger ones exchanged in parts; the bits do not depend on it."""
    given = [values(count, dtype, seed) for seed in range(size)]
    expected = given[0].copy()
    for array in given[1:]:
        expected += array

    def summed(communicator):
        array = given[communicator.rank].copy()
        communicator.sum(array)
        return array

    for total in in_ranks(size, summed):
        assert_array_equal(total, expected)


def test_one_rank_changes_nothing():
    array = values(3)
    ranks.ALONE.sum(array)
    assert_array_equal(array, values(3))
    assert ranks.totals(ranks.ALONE, 1, 2.5) == [1, 2.5]
    assert ranks.part_of(7, ranks.ALONE) == slice(0, 7)


def test_gradients_are_summed_in_buckets(monkeypatch):
    """Of one dtype each, and limited in bytes; parameters without a gradient are left out."""
    monkeypatch.setattr(ranks, "_BUCKET", 40)
    shapes = [(2, 3), (2,), (), (100,), (3,), (4,), (1,)]
    dtypes = ["float32", "float32", "float64", "float32", "float32", "float64", "float32"]

    def summed(communicator):
        sizes = []

        class Counting(Thread):
            def sum(self, array):
                sizes.append((array.size, array.dtype.name))
                super().sum(array)

        communicator = Counting(communicator.rank, communicator.size, communicator.shared)
        parameters = [nn.Parameter(values(s, d)) for s, d in zip(shapes, dtypes, strict=True)]
        for seed, parameter in enumerate(parameters[:-1]):
            parameter.grad = values(parameter.shape, parameter.dtype, seed) * (
                1 + communicator.rank
            )
        ranks.sum_gradients(communicator, parameters)
        return [parameter.grad for parameter in parameters], sizes

    for gradients, sizes in in_ranks(2, summed):
        assert sizes == [(8, "float32"), (100, "float32"), (3, "float32"), (5, "float64")]
        for seed, gradient in enumerate(gradients[:-1]):
            expected = values(shapes[seed], dtypes[seed], seed)
            assert_array_equal(gradient, expected + 2 * expected)
        assert gradients[-1] is None


@st.composite
def batches(draw):
    """Sizes of the ranks' parts of a batch, and the shape of an image."""
    counts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shape = draw(st.integers(1, 5)), *draw(st.sampled_from([(), (1, 1), (3, 5), (4, 4)]))
    return counts, shape


def assert_normalised_together(counts, shape, dtype, residual, relu, distance=0.0, rtol=1.0):
    tolerance = rtol * {"float32": 1e-5, "float64": 1e-11}[dtype]
    x = values((sum(counts), *shape), dtype) + np.asarray(distance, dtype)
    added = values(x.shape, dtype, 1) if residual else None
    grad, channels = values(x.shape, dtype, 2), shape[0]
    weight, bias, before = values((3, channels), dtype, 3)
    ends = np.cumsum([0, *counts])

    def normalised(communicator):
        part = slice(*ends[communicator.rank :][:2])
        running = before.copy(), 1 + before**2
        here = None if added is None else added[part]
        y, mean, variance = batch_norm(
            *(x[part], weight, bias, here),
            relu=relu,
            running=running,
            momentum=0.3,
            communicator=communicator,
        )
        gradients = batch_norm_backward(
            *(grad[part], x[part], y, weight, mean, variance),
            relu=relu,
            residual=residual,
            communicator=communicator,
        )
        return y, mean, variance, *running, *gradients[:3], *([gradients[3]] if residual else [])

    answers = in_ranks(len(counts), normalised)
    for one, *others in list(zip(*answers, strict=True))[1:5]:  # the statistics
        for other in others:
            assert_array_equal(one, other)
    y, mean, variance, running_mean, running_variance, grad_x, grad_weight, grad_bias, *flow = zip(
        *answers, strict=True
    )
    expected_mean, expected_variance = spec.moments(x.astype(np.float64))
    close = lambda ours, theirs: assert_allclose(  # noqa: E731
        ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max())
    )
    close(mean[0], expected_mean)
    close(variance[0], expected_variance)
    count = x.size / channels
    unbiased = expected_variance * count / (count - 1)
    close(running_mean[0], 0.7 * before + 0.3 * expected_mean)
    close(running_variance[0], 0.7 * (1 + before**2) + 0.3 * unbiased)
    y = np.concatenate(y)
    close(y, spec.batch_norm(x, weight, bias, added if residual else 0, relu=relu))
    theirs = spec.batch_norm_backward(
        grad, x, y, weight, expected_mean, expected_variance, relu=relu
    )
    close(np.concatenate(grad_x), theirs[0])
    close(sum(grad_weight), theirs[1])
    close(sum(grad_bias), theirs[2])
    if residual:
        assert_array_equal(np.concatenate(flow[0]), theirs[3].astype(dtype))


@settings(max_examples=40, deadline=None)
@given(
    problem=batches(),
    dtype=st.sampled_from(["float32", "float64"]),
    residual=st.booleans(),
    relu=st.booleans(),
)
def test_batch_normalisation_is_that_of_the_whole_batch(problem, dtype, residual, relu):
    counts, shape = problem
    # Two equal values would be far apart after division by their deviation.
    if sum(counts) * np.prod(shape[1:]) > 4:
        assert_normalised_together(counts, shape, dtype, residual, relu, rtol=20)


@pytest.mark.parametrize("counts", [[2, 2], [1, 2], [3, 1, 2]])
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 48, 48), (5, 7, 7), (4,)])
@pytest.mark.parametrize("relu", [False, True])
def test_a_device_normalises_the_whole_batch(counts, shape, relu):
    """Emulated; (2, 48, 48) are several parts of a channel."""
    with mf.emulated_cuda():
        assert_normalised_together(counts, shape, "float32", relu, relu, rtol=20)
        assert_normalised_together(counts, shape, "float64", relu, relu, rtol=20)


def test_a_distant_mean_does_not_cancel():
    assert_normalised_together([3, 5], (2, 6, 6), "float64", False, True, distance=1e4, rtol=100)


def test_evaluation_needs_no_other_rank():
    x, communicator = values((4, 3, 2, 2)), Thread(0, 2, None)
    layer, alone = nn.BatchNorm(3, relu=True).eval(), nn.BatchNorm(3, relu=True).eval()
    layer.communicator = communicator
    answers = []
    for module in (layer, alone):
        image = Tensor(x, requires_grad=True)
        (module(image) * Tensor(values(x.shape, seed=1))).sum().backward()
        answers.append((image.grad, module.weight.grad))
    for ours, theirs in zip(*answers, strict=True):
        assert_array_equal(ours, theirs)


def test_a_single_value_on_a_rank_is_a_batch_together():
    def normalised(communicator):
        layer = nn.BatchNorm(2)
        layer.communicator = communicator
        return layer(Tensor(values((1, 2), seed=communicator.rank))).data

    assert_allclose(np.concatenate(in_ranks(2, normalised)).sum(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("augment", ["none", "crop", "crop and flip"])
def test_the_parts_of_a_batch_are_the_batch(size, augment):
    """In order, with the same augmentation; as batches, as a plan and from a device."""
    train, _ = data.load("digits")
    settings = dict(shuffle=True, augment=AUGMENTATIONS[augment], mean=3.0, std=2.0, seed=5)

    def loader(communicator):
        return data.Loader(train, 100, **settings, communicator=communicator)

    whole = list(loader(ranks.ALONE))
    parts = [list(loader(Thread(rank, size, None))) for rank in range(size)]
    for number, batch in enumerate(whole):
        for i in range(2):
            together = np.concatenate([part[number][i] for part in parts])
            assert_array_equal(together, batch[i])
    assert {len(part[-1][1]) for part in parts} == {42 // size}
    assert sum(len(loader(Thread(rank, size, None)).plan(0)) for rank in range(size)) == len(train)
    with mf.emulated_cuda(check=False):
        feed = data.Feed(loader(Thread(1, size, None)), np)
        for ours, (theirs, _) in zip(feed.first_images(0, 2), parts[1], strict=False):
            assert_array_equal(ours, theirs)


# Whole trainings.

RECIPE = Recipe("adder-lenet", epochs=1, batch_size=40, augment="crop and flip", seed=4)


@pytest.fixture(scope="module")
def digits():
    """Three batches, of which the last is of 27 images, and 31 test images."""
    train, test = data.load("digits")
    first = lambda part, n: replace(part, images=part.images[:n], labels=part.labels[:n])  # noqa: E731
    return first(train, 107), first(test, 31)


def trained_by(size, digits, path=None, **changes):
    """The finished run of each rank."""

    def run(communicator):
        recipe = replace(RECIPE, **changes)
        training = Training(recipe, *digits, path=path, communicator=communicator)
        training.run(progress=False)
        return training

    return in_ranks(size, run)


def assert_ranks_agree(runs):
    first = runs[0].model.state_dict()
    for run in runs[1:]:
        for name, array in run.model.state_dict().items():
            assert_array_equal(array, first[name], err_msg=name)
        assert run.sums == runs[0].sums
        assert run.history.train_loss == runs[0].history.train_loss
        assert run.history.test_accuracy == runs[0].history.test_accuracy


def assert_same_but_for_rounding(run, one):
    """One value that rounds to the other side of a ReLU changes more than the rest."""
    for name, array in one.model.state_dict().items():
        assert_allclose(run.model.state_dict()[name], array, rtol=1e-3, atol=1e-3, err_msg=name)
    assert_allclose(run.history.train_loss, one.history.train_loss, rtol=1e-4)
    assert abs(run.history.train_accuracy[-1] - one.history.train_accuracy[-1]) <= 1 / 107
    assert abs(run.history.test_accuracy[-1] - one.history.test_accuracy[-1]) <= 1 / 31


@pytest.mark.parametrize(
    ("size", "model"),
    [
        (2, "adder-lenet"),
        (3, "adder-lenet"),
        (2, "conv-lenet"),
        (2, "shiftresnet20-e1"),
        (3, "winograd-relu-convpool-cnn-c-8"),  # with dropout
    ],
)
def test_ranks_train_what_one_process_trains(digits, size, model):
    """With the last batch in uneven parts, and the same bits in every run."""
    runs = trained_by(size, digits, model=model)
    assert_ranks_agree([*runs, trained_by(size, digits, model=model)[1]])
    (one,) = trained_by(1, digits, model=model)
    assert_same_but_for_rounding(runs[0], one)


@pytest.mark.parametrize("learns", [False, True])
def test_ranks_learn_from_a_teacher(digits, learns):
    changes = dict(teacher="conv-lenet", teacher_learns=learns, teacher_features=0.5)

    def run(communicator):
        teacher = None if learns else models.build("conv-lenet", channels=1, size=8, classes=10)
        recipe = replace(RECIPE, **changes)
        training = Training(recipe, *digits, teacher=teacher, communicator=communicator)
        training.run(progress=False)
        return training

    runs, (one,) = in_ranks(2, run), in_ranks(1, run)
    assert_ranks_agree(runs)
    assert_same_but_for_rounding(runs[0], one)
    for name, array in one.teacher.state_dict().items():
        assert_allclose(runs[0].teacher.state_dict()[name], array, atol=1e-3, err_msg=name)


def test_devices_train_what_one_trains(digits, monkeypatch):
    """Emulated, inside an epoch; the steps and the counts on a device are of its rank's part."""
    monkeypatch.setattr(device_module, "AHEAD", 1)

    def epoch(communicator):
        run = Training(RECIPE, *digits, communicator=communicator)
        run.step, run.sums = 1, {"loss": 92.0, "right": 9, "seen": 40}
        shown = list(run._device_steps())
        return run, shown

    with mf.emulated_cuda(check=False):
        answers, ((one, alone),) = in_ranks(2, epoch), in_ranks(1, epoch)
    runs = [run for run, _ in answers]
    assert_ranks_agree(runs)
    for name, array in one.model.state_dict().items():
        ours = runs[0].model.state_dict()[name]
        assert_allclose(ours, array, rtol=1e-3, atol=1e-3, err_msg=name)
    assert_allclose(runs[1].sums["loss"], one.sums["loss"], rtol=1e-4)
    assert abs(runs[1].sums["right"] - one.sums["right"]) <= 1 and runs[1].sums["seen"] == 107
    assert [loss is None for loss in answers[0][1]] == [loss is None for loss in alone]
    assert_allclose(answers[0][1][-1], runs[0].sums["loss"] / 107, rtol=0.2)


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 3])
def test_any_number_of_ranks_resumes(digits, tmp_path, before, after):
    """The first alone writes; one that is asked to stop inside an epoch stops all."""
    path, step = tmp_path / "checkpoint.npz", Training._train_step

    def interrupted(communicator):
        asked = []

        class Asked(Training):
            def _train_step(self, *batch):
                if self.epoch == 1 and self.step == 1 and communicator.rank == before - 1:
                    asked.append(signal.SIGINT)
                return step(self, *batch)

            def _stops(self, _):
                return super()._stops(asked)

        recipe = replace(RECIPE, epochs=2)
        run = Asked(recipe, *digits, path=path, communicator=communicator)
        with pytest.raises(Interrupted):
            run.run(progress=False)
        return run

    runs = in_ranks(before, interrupted)
    assert_ranks_agree(runs)
    assert [run.path for run in runs] == [path, None][:before]

    def resumed(communicator):
        run = Training.resume(path, *digits, path=path, communicator=communicator)
        assert (run.epoch, run.step, run.sums) == (1, 2, runs[0].sums)
        run.run(progress=False)
        return run

    resumed = in_ranks(after, resumed)
    assert_ranks_agree(resumed)
    (one,) = trained_by(1, digits, epochs=2)
    assert_same_but_for_rounding(resumed[0], one)


def test_a_fault_on_one_rank_is_found_by_all(digits):
    """They name the layer together, and none waits for another."""
    told = []

    def run(communicator):
        training = Training(RECIPE, *digits, communicator=communicator)
        if communicator.rank == 1:
            take = training.loader._batch
            training.loader._batch = lambda *args: (np.nan * take(*args)[0], take(*args)[1])
        with pytest.raises(FloatingPointError, match="loss is nan in epoch 1, step 1; the first"):
            training.run(progress=False)
        told.append(communicator.rank)

    in_ranks(2, run)
    assert sorted(told) == [0, 1]


def test_ranks_must_begin_alike(digits):
    def run(communicator):
        recipe = replace(RECIPE, rate=0.1 * (1 + communicator.rank))
        training = Training(recipe, *digits, communicator=communicator)
        with pytest.raises(ValueError, match="the ranks must begin with the same recipe"):
            training.run(progress=False)

    in_ranks(2, run)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (50, {}, "batches of 40 of 107 images leave one of 27, which 50 ranks cannot divide"),
        (28, {}, "batches of 40 of 107 images leave one of 27, which 28 ranks cannot divide"),
        (32, {"batch_size": 53 * 2}, "leave one of a single image"),
        (32, {"batch_size": 53}, "leave one of 1, which 32 ranks|leave one of a single"),
        (32, {"batch_size": 107}, "32 ranks cannot divide 31 test images"),
        (2, {"adder": "adaptive in backward"}, "choose 'adaptive'"),
    ],
)
def test_what_ranks_cannot_do(digits, size, changes, message):
    with pytest.raises(ValueError, match=message):
        Training(replace(RECIPE, **changes), *digits, communicator=Thread(0, size, None))


# Starting them.


def test_the_command_explains_what_a_rank_needs(capsys, monkeypatch, tmp_path):
    out = "--out", str(tmp_path / "out")

    def told(*arguments):
        assert cli.main(["train", "--distributed", *arguments, *out]) == 1
        return capsys.readouterr().err

    assert "--distributed nccl needs --device cuda" in told("nccl")
    assert "--distributed mpi needs --device cpu" in told("mpi", "--device", "cuda")
    if importlib.util.find_spec("cupy") is None or not rehearsal.active():
        assert "device 'cuda' needs" in told("nccl", "--device", "cuda")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert "pip install 'mulfree_cupy[distributed]'" in told("mpi")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="must be 'mpi' or 'nccl', got 'ring'"), connect("ring"):
        pass


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["train"], "--distributed mpi divides the training among them"),
        (["ablation"], "it runs in one process"),
        (["compare"], "it runs in one process"),
        (["prune", "no-checkpoint.npz"], "it runs in one process"),
    ],
)
def test_several_processes_do_not_do_the_same_run(variable, command, remedy, monkeypatch, capsys):
    monkeypatch.setenv(variable, "2")
    assert cli.main(command) == 1
    assert f"MPI started 2 processes of this command; {remedy}" in capsys.readouterr().err


NCCL = """
import os, sys
from types import SimpleNamespace
sys.modules["mpi4py"] = None
import numpy as np, cupy, cupyx.distributed
from mulfree_cupy import data
from mulfree_cupy.train import NCCL, Recipe, Training, connect, distributed

class Group:
    \"\"\"The calls of cupyx's NCCLBackend, with what it demands of their arrays.\"\"\"
    def __init__(self, size, rank, use_mpi):
        print("group", size, rank, use_mpi, cupy.cuda.Device().id)
        self.size, self.rank = size, rank
    def all_gather(self, array, gathered, count):
        assert array.flags.c_contiguous and gathered.flags.c_contiguous
        assert gathered.shape == (self.size, *array.shape) and count == array.size
        assert array.dtype == gathered.dtype and array.dtype.char in "fd"
        for part in gathered:
            part[...] = array
    def all_to_all(self, parts, received):
        assert parts.flags.c_contiguous and len(parts) == self.size
        assert received.shape == parts.shape and received.dtype == parts.dtype
        received[...] = parts

cupyx.distributed.init_process_group = lambda *args, **options: Group(*args, **options)
cupy.cuda.nccl.available = True
images = np.random.default_rng(0).integers(0, 256, (64 * 3 + 41, 3, 32, 32), np.uint8)
train = data.Dataset(images, np.arange(len(images)) % 10, tuple("abcdefghij"), "toy")
os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
with connect("nccl") as communicator:
    recipe = Recipe("adder-resnet20", epochs=1, batch_size=64)
    run = Training(recipe, train, train, device="cuda", communicator=communicator)
    for _ in run._device_steps():
        cupy.cuda.runtime.deviceSynchronize()  # a mark in the log
    run._gather_statistics()
    run.evaluate()
del os.environ["WORLD_SIZE"]
world = SimpleNamespace(Get_rank=lambda: 2, Get_size=lambda: 4, Abort=lambda code: print("ended"))
distributed._mpi = lambda: SimpleNamespace(COMM_WORLD=world)
with connect("nccl") as communicator:
    assert (communicator.rank, communicator.size) == (2, 4)
os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "1"
with connect("nccl"):
    pass
os.environ["WORLD_SIZE"] = "2"
wrong = ("RANK", "2"), ("RANK", "one"), ("WORLD_SIZE", "0"), ("OMPI_COMM_WORLD_LOCAL_RANK", "one")
for name, value in wrong:
    try:
        os.environ[name] = value
        with connect("nccl"):
            pass
    except ValueError as error:
        print(error)
    os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
"""


@pytest.mark.skipif(rehearsal.missing() is not None, reason=str(rehearsal.missing()))
def test_the_calls_to_nccl_in_rehearsal():
    """On a GPU of its own; what a step launches is allowed, and waits for nothing."""
    done = rehearsal.rehearse(sys.executable, "-W", "ignore", "-c", NCCL, devices=2)
    assert done.status == 0, done.output
    lines = done.output.splitlines()
    groups = [line for line in lines if line.startswith("group")]  # and the current device
    assert groups == ["group 2 1 False 1", "group 4 2 True 0", "group 4 2 True 1"]
    assert "ended" not in lines
    calls = [record["call"] for record in done.log]
    steps = [i for i, call in enumerate(calls) if call == "deviceSynchronize"]
    assert len(steps) == 4
    for start, end in itertools.pairwise(steps):
        assert set(calls[start + 1 : end]) <= {"launch", "memcpyAsync", "memsetAsync"}
    assert lines[-4:] == [
        "RANK must be below WORLD_SIZE, 2, got 2",
        "RANK in the environment must be a whole number of at least 0, got 'one'",
        "WORLD_SIZE in the environment must be a whole number of at least 1, got '0'",
        "OMPI_COMM_WORLD_LOCAL_RANK in the environment must be a whole number of at least 0, "
        "got 'one'",
    ]
    assert not any("refused" in record for record in done.log)
    devices = {record["device"] for record in done.calls("launch")}
    assert devices == {1}


# By mpirun.

MPIRUN = shutil.which("mpirun")
mpi = pytest.mark.skipif(
    not (MPIRUN and importlib.util.find_spec("mpi4py")), reason="needs mpi4py and mpirun"
)


def mpirun(size, *command, **options):
    """Run Python in so many ranks."""
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **options.pop("env", {}),
    }
    return subprocess.run(
        [MPIRUN, "-n", str(size), "--oversubscribe", sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def train(size, *arguments, code="", **options):
    """``mulfree train --distributed mpi`` in so many ranks, after some code."""
    program = (
        textwrap.dedent(code) + "\nimport sys; from mulfree_cupy import cli; sys.exit(cli.main())"
    )
    words = "train", "--distributed", "mpi", "--batch-size", "200", "--calibration", "200"
    return mpirun(size, "-c", program, *words, *map(str, arguments), **options)


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if file[name].dtype.kind == "f"}


@mpi
def test_mpirun_trains_and_a_rank_that_dies_ends_all(tmp_path):
    """Its checkpoint resumes to the same bits."""
    done = train(2, "--epochs", 2, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Test accuracy") == 1
    assert done.stderr.count("epoch 1/2: loss") == 1

    dying = """
        from mulfree_cupy.train import Training
        step = Training._train_step
        def mortal(self, *batch):
            if self.communicator.rank == 1 and self.epoch == 1 and self.step == 3:
                raise OSError("a disk is gone")
            return step(self, *batch)
        Training._train_step = mortal
    """
    dead = train(2, "--epochs", 2, "--out", tmp_path / "dead", code=dying)
    assert dead.returncode != 0 and "mulfree: a disk is gone" in dead.stderr
    checkpoint = tmp_path / "dead" / "checkpoint.npz"
    resumed = train(2, "--resume", checkpoint)
    assert resumed.returncode == 0, resumed.stderr
    whole, again = arrays_of(tmp_path / "whole" / "checkpoint.npz"), arrays_of(checkpoint)
    assert whole.keys() == again.keys()
    for name, array in whole.items():
        assert_array_equal(again[name], array, err_msg=name)


@mpi
def test_one_rank_says_so_and_trains(tmp_path):
    done = train(1, "--epochs", 1, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "there is one rank; start several with mpirun -n RANKS" in done.stderr
    assert (tmp_path / "out" / "checkpoint.npz").exists()


@mpi
def test_sums_and_threads_of_mpi():
    """Small and large sums in the order of the ranks; the processors are divided."""
    code = """
        import os, numpy as np, mulfree_cupy as mf
        from threadpoolctl import threadpool_info
        from mulfree_cupy.train import connect
        with connect("mpi") as communicator:
            for count in (3, 100_001):
                given = [np.random.default_rng(r).standard_normal(count) for r in range(3)]
                array = given[communicator.rank].copy()
                communicator.sum(array)
                assert (array == given[0] + given[1] + given[2]).all()
            share = max(1, len(os.sched_getaffinity(0)) // 3)
            blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
            asked = int(os.environ.get("MULFREE_NUM_THREADS", share))
            assert mf.get_num_threads() == asked, mf.get_num_threads()
            assert blas <= {share}, blas
    """
    names = {*distributed._THREADS, *distributed._BLAS_THREADS}
    unset = f"import os\nfor name in {sorted(names)}: os.environ.pop(name, None)\n"
    for asked in "", "os.environ['MULFREE_NUM_THREADS'] = '5'\n":
        done = mpirun(3, "-c", unset + asked + textwrap.dedent(code))
        assert done.returncode == 0, done.stderr
