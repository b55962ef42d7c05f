"""Training steps on a GPU: the loader's batches, nothing waited for, the same bits as a graph."""

import gc
import os
import signal
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import rehearsal
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import data, models, optim
from mulfree_cupy.data.feed import Progress
from mulfree_cupy.train import CrossEntropy, Interrupted, Recipe, Training, evaluate
from mulfree_cupy.train.device import DeviceSteps, right_answers
from mulfree_cupy.train.replay import Replay

RECIPE = Recipe("adder-lenet", epochs=3, batch_size=40, augment="crop and flip", seed=4)


@pytest.fixture(scope="module")
def digits():
    train, test = data.load("digits")
    return replace(train, images=train.images[:190], labels=train.labels[:190]), test


def loader(digits):
    mean, std = data.statistics(digits[0])
    augment = data.Compose(data.RandomCrop(), data.RandomFlip())
    return data.Loader(digits[0], 40, shuffle=True, augment=augment, mean=mean, std=std, seed=4)


def test_a_device_learns_as_the_host_does(digits):
    """Emulated: the same batches and the same formulas, summed in another order."""
    host = Training(RECIPE, *digits)
    for _ in host._host_steps():
        pass
    model = models.build("adder-lenet", seed=4, channels=1, size=8, classes=10)
    optimiser = optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    with mf.emulated_cuda(check=False):
        steps = DeviceSteps([model], CrossEntropy(model), optimiser, loader(digits), np)
        for _ in steps.epoch(0, Progress(), lambda: None):
            pass
        done = steps.progress()
    assert (done.step, done.fault) == (5, -1)
    assert_allclose(done.loss, host.sums["loss"], rtol=1e-3)
    assert abs(done.right - host.sums["right"]) <= 2
    for name, array in host.model.state_dict().items():
        assert_allclose(model.state_dict()[name], array, rtol=2e-2, atol=2e-3, err_msg=name)


def test_a_device_goes_on_inside_an_epoch(digits):
    """From the place in images, the last batch being short."""
    run = Training(Recipe("adder-lenet", batch_size=60), *digits)
    run.xp, run.step, run.sums = np, 2, {"loss": 7.0, "right": 3, "seen": 120}
    with mf.emulated_cuda():
        steps = run._device_steps()
        next(steps)
        steps.close()
        assert run.sums["seen"] == 180
        steps = run._device_steps()
        assert len(list(steps)) == 1 and run.sums["seen"] == 190


def test_a_device_counts_the_right_answers_of_the_host(digits):
    run = Training(replace(RECIPE, epochs=1, augment="none"), *digits)
    run.run(progress=False)
    plain = data.Loader(digits[1], 100, shuffle=False, mean=run.mean, std=run.std, seed=0)
    with mf.emulated_cuda(check=False):
        right = right_answers(run.model.eval(), data.Feed(plain, np))
    assert abs(right - run.evaluate() * len(digits[1])) <= 1


# On a GPU.


def finished(digits, path=None, *, graph=True, replayed=None, **changes):
    """A run on the GPU, whose steps are replayed as a graph or not."""
    run = Training(replace(RECIPE, **changes), *digits, device="cuda", path=path)
    run.device_steps = DeviceSteps(run.networks, run.objective, run.optimiser, run.loader, run.xp)
    if not graph:
        run.device_steps.replay.obstacle = "none is wanted"
    run.run(progress=False)
    assert run.device_steps.replay.replayed is (graph if replayed is None else replayed)
    return run


def assert_same(one, other):
    for name, array in one.model.state_dict().items():
        assert_array_equal(array, other.model.state_dict()[name], err_msg=name)
    assert one.history.train_loss == other.history.train_loss
    assert one.history.test_accuracy == other.history.test_accuracy
    assert one.history.running_accuracy == other.history.running_accuracy


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["adder-lenet", "conv-lenet"])
def test_a_graph_does_what_its_steps_do(digits, cupy, model):
    """Bit for bit, also where the rate changes from epoch to epoch and the last batch is short."""
    assert_same(finished(digits, model=model), finished(digits, model=model, graph=False))


@pytest.mark.gpu
def test_an_interrupted_run_resumes_on_the_gpu(digits, cupy, tmp_path, monkeypatch):
    whole, path, steps = finished(digits), tmp_path / "checkpoint.npz", set()
    seed = Training._seed_dropout

    def interrupted(self):
        seed(self)
        steps.add((self.epoch, self.step))
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Training, "_seed_dropout", interrupted)
    with pytest.raises(Interrupted):
        finished(digits, path)
    monkeypatch.undo()
    resumed = Training.resume(path, *digits, device="cuda")
    assert (resumed.epoch, resumed.step, resumed.sums["seen"]) == (1, 2, 80)
    resumed.run(progress=False)
    assert_same(resumed, whole)


@pytest.mark.gpu
def test_a_loss_that_is_not_finite_is_noticed_later(digits, cupy):
    if rehearsal.active():
        pytest.skip("a rehearsal computes no loss")
    run = Training(RECIPE, *digits, device="cuda")
    run.model.conv2.weight.data[0, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 1, step 1; .*resume"):
        run.run(progress=False)


@pytest.mark.gpu
def test_what_cannot_be_replayed_is_launched(digits, cupy):
    """The run continues, with a warning that says why."""
    run = Training(RECIPE, *digits, device="cuda")
    forward = type(run.model).forward

    class Copying(type(run.model)):
        def forward(self, x):
            cupy.asarray(np.ones(3))
            return forward(self, x)

    run.model.__class__ = Copying
    with pytest.warns(RuntimeWarning, match="not replayed as a CUDA graph: .*copies from the host"):
        run.run(progress=False)
    assert run.device_steps.replay.obstacle and len(run.history.train_loss) == 3


@pytest.mark.gpu
def test_arrays_that_are_replaced_get_another_graph(digits, cupy):
    run = finished(digits, epochs=1)
    run.model.load_state_dict(run.model.state_dict())
    run.device_steps.replay.start_anew(run.device_steps._state)
    assert not run.device_steps.replay.replayed


CHANGES = {
    "momentum": lambda run: setattr(run.optimiser, "momentum", 0.5),
    "no momentum": lambda run: setattr(run.optimiser, "momentum", 0.0),
    "weight decay": lambda run: setattr(run.optimiser, "weight_decay", 0.1),
    "eta": lambda run: setattr(run.optimiser, "eta", 0.5),
    "scale": lambda run: vars(run.optimiser).update(adder="fixed", adder_scale=3.0),
    "options": lambda run: run.model.conv2.options.update(dilation=2, padding=4),
    "statistics": lambda run: setattr(run.model.bn1, "momentum", 0.5),
}


@pytest.mark.gpu
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_numbers_that_change_after_a_capture_take_effect(digits, cupy, change, monkeypatch):
    captures, capture, runs = [], Replay._capture, []
    monkeypatch.setattr(Replay, "_capture", lambda *a: (captures.append(a), capture(*a)))
    for graph in (True, False):
        run = finished(digits, epochs=2, graph=graph)
        change(run)
        run.recipe = replace(run.recipe, epochs=4)
        run.run(progress=False)
        runs.append(run)
    assert_same(*runs)
    assert len(captures) == 2  # of the run with a graph, before the change and after it


@pytest.mark.gpu
def test_the_rate_changes_without_another_graph(digits, cupy, monkeypatch):
    captures, capture = [], Replay._capture
    monkeypatch.setattr(Replay, "_capture", lambda *a: (captures.append(a), capture(*a)))
    run = finished(digits, epochs=3)
    assert run.optimiser.rate != run.recipe.rate_in(0) and len(captures) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("whose", ["CuPy's pool", "another pool", "none", "a function"])
def test_the_allocator_of_pinned_memory_is_put_back(digits, cupy, whose):
    """Or left unchanged, if it is unknown."""
    usual, pool = cupy.get_default_pinned_memory_pool(), cupy.cuda.PinnedMemoryPool()
    asked = []

    class Memory(cupy.cuda.PinnedMemory):
        pass

    def function(size):
        asked.append(size)
        return cupy.cuda.PinnedMemoryPointer(Memory(size), 0)

    set_allocator = cupy.cuda.set_pinned_memory_allocator
    allocators = [usual.malloc, pool.malloc, None, function]
    which = ["CuPy's pool", "another pool", "none", "a function"].index(whose)
    set_allocator(allocators[which])
    try:
        if whose == "a function":
            with pytest.warns(RuntimeWarning, match="pinned memory has an allocator that could"):
                finished(digits, epochs=1, replayed=False)
            asked.clear()
        else:
            finished(digits, epochs=1)
        memory = cupy.cuda.alloc_pinned_memory(3).mem
    finally:
        set_allocator(usual.malloc)
    origin = memory.pool() if hasattr(memory, "pool") else type(memory)
    assert origin is [usual, pool, cupy.cuda.PinnedMemory, Memory][which]
    assert asked == ([3] if whose == "a function" else [])


def test_steps_are_freed_with_their_last_reference(digits):
    with mf.emulated_cuda(check=False):
        assert_freed(digits, np)


@pytest.mark.gpu
def test_steps_and_their_graph_are_freed_with_their_last_reference(digits, cupy):
    assert_freed(digits, cupy)


def assert_freed(digits, xp):
    """Without the garbage collector: memory of a GPU would wait for it."""
    model = models.build("adder-lenet", seed=4, channels=1, size=8, classes=10).to(xp)
    optimiser = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps = DeviceSteps([model], CrossEntropy(model), optimiser, loader(digits), xp)
    for _ in steps.epoch(0, Progress(), lambda: None):
        pass
    assert xp is np or steps.replay.replayed
    freed = weakref.ref(steps), weakref.ref(steps.feed)
    gc.collect()
    gc.disable()
    try:
        del steps
        assert [reference() for reference in freed] == [None, None]
    finally:
        gc.enable()


@pytest.mark.gpu
def test_evaluation_of_any_data_set(digits, cupy):
    run = finished(digits, epochs=1)
    assert run.evaluate() == run.evaluate(digits[1])
    assert run.evaluate() == evaluate(run.model, digits[1], run.mean, run.std, cupy, batch_size=33)


REHEARSED = """
import numpy as np
from mulfree_cupy import data
from mulfree_cupy.train import Recipe, Training
images = np.random.default_rng(0).integers(0, 256, (256 * 7 + 40, 3, 32, 32), np.uint8)
train = data.Dataset(images, np.arange(len(images)) % 10, tuple("abcdefghij"), "toy")
run = Training(Recipe({model!r}, epochs=1, batch_size=256), train, train, device="cuda")
for _ in run._device_steps():
    pass
print(run.device_steps.replay.obstacle)
"""


@pytest.mark.skipif(rehearsal.missing() is not None, reason=str(rehearsal.missing()))
@pytest.mark.parametrize(("model", "launches"), [("adder-resnet20", 180), ("conv-resnet20", 180)])
def test_a_step_is_few_launches_and_no_waiting(model, launches):
    done = rehearsal.rehearse(sys.executable, "-c", REHEARSED.format(model=model))
    assert done.status == 0, done.output
    assert done.output.splitlines()[-1] == "None", done.output
    calls = [record["call"] for record in done.log]
    begin, end = calls.index("streamBeginCapture"), calls.index("streamEndCapture")
    step = done.log[begin + 1 : end]
    assert {record["call"] for record in step} <= {"launch", "memsetAsync"}
    assert sum(record["call"] == "launch" for record in step) <= launches
    assert not any("refused" in record for record in done.log)
    graphs = done.calls("graphLaunch")
    assert len(graphs) == 4 and all(record["nodes"] == len(step) for record in graphs)
