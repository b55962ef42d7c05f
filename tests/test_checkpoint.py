"""Checkpoints: written atomically, and rejected in one line unless valid."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mulfree_cupy import cli, data
from mulfree_cupy.train import Interrupted, Recipe, Training, checkpoint, load_model

RECIPE = Recipe("adder-lenet", epochs=3, batch_size=40, rate=0.1, augment="crop", seed=4)


@pytest.fixture(scope="module")
def digits():
    train, test = data.load("digits")
    return replace(train, images=train.images[:190], labels=train.labels[:190]), test


@pytest.fixture(scope="module")
def stopped(digits, tmp_path_factory):
    """A run that was stopped after two batches of its second epoch, as arrays and facts."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.npz"
    run, step, steps = Training(RECIPE, *digits, path=path), Training._train_step, []

    def interrupted(*batch):
        steps.append(batch)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, *batch)

    run._train_step = interrupted
    with pytest.raises(Interrupted):
        run.run(progress=False)
    with np.load(path) as entries:
        arrays = dict(entries)
    return arrays, json.loads(str(arrays.pop("facts")))


@pytest.fixture
def write(tmp_path):
    def written(arrays, facts):
        path = tmp_path / "checkpoint.npz"
        np.savez(path, **arrays, facts=json.dumps(facts))
        return path

    return written


def refusal(path):
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 1000
    assert "pickle" not in message
    return message


def test_what_is_saved_is_loaded(stopped, write):
    saved = checkpoint.load(write(*stopped))
    assert saved.recipe == RECIPE and (saved.epoch, saved.sums["seen"]) == (1, 80)
    assert len(saved.history.test_accuracy) == 1
    for name, array in saved.weights.items():
        np.testing.assert_array_equal(array, stopped[0][f"model/{name}"])
    assert len(saved.velocities) == len(saved.model.parameters())


def test_checkpoints_of_earlier_formats(stopped, write, digits):
    arrays, facts = stopped
    old = {name: facts[name] for name in facts if name != "data"} | {"format": 3}
    old |= {part: dict(facts[part]) for part in ("recipe", "history")}
    del old["recipe"]["calibration"], old["history"]["running_accuracy"]
    assert "data must be a digest" in refusal(write(arrays, {**old, "data": None}))
    saved = checkpoint.load(write(arrays, {**old, "data": facts["data"]}))
    # No calibration before, and none after resuming.
    assert saved.recipe == replace(RECIPE, calibration=0)
    assert saved.history.running_accuracy == saved.history.test_accuracy
    Training.resume(write(arrays, {**old, "format": 2}), *digits).run(progress=False)
    del old["recipe"]["first_epoch"]
    old |= {"format": 1, "step": 2}
    assert checkpoint.load(write(arrays, old)).recipe == saved.recipe


def places(facts, inside=()):
    """The path of every entry of the facts, at any depth."""
    for name, value in facts.items():
        yield (*inside, name)
        if isinstance(value, dict):
            yield from places(value, (*inside, name))


def edited(facts, place, change):
    copy = json.loads(json.dumps(facts))
    inside = copy
    for name in place[:-1]:
        inside = inside[name]
    change(inside, place[-1])
    return copy


def test_every_fact_is_needed(stopped, write):
    arrays, facts = stopped
    for place in places(facts):
        refusal(write(arrays, edited(facts, place, lambda inside, name: inside.pop(name))))


HOSTILE = [None, "0.1", -1, 10**400, float("nan"), float("inf"), [], {}, [[]], 10**9]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:9])
def test_every_fact_is_checked(stopped, write, value):
    arrays, facts = stopped
    harmless = {"epochs", "rate", "weight_decay", "adder_scale", "eta", "momentum", "loss", "seed"}
    harmless |= {"batch_size", "seen", "calibration", "temperature", "teacher_features"}
    for place in places(facts):
        if (value == 10**9 and place[-1] in harmless) or (value == -1 and place[-1] == "loss"):
            continue  # what a number there may be
        if value is None and place == ("data",):
            continue  # of a network that was trained elsewhere
        path = write(
            arrays, edited(facts, place, lambda inside, name: inside.update({name: value}))
        )
        refusal(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("recipe", "rate"), "0.1", "Recipe: rate must be a number, got '0.1'"),
        (("recipe", "seed"), True, "Recipe: seed must be an int, got True"),
        (("recipe", "model"), "resnet", "no model named 'resnet'"),
        (("recipe", "colour"), 1, "recipe: colour unknown, 1 in all"),
        (("recipe", "augment"), "flip", "augment must be one of"),
        (("shape", "size"), 10**9, "size must be at most 4096, got 1000000000"),
        (("shape", "classes"), 10**9, "classes must be at most 65536"),
        (("shape", "size"), 11, "model: fc1.weight must be float32 of shape"),
        (("classes",), ["a"], "classes must be 10 names, got 1"),
        (("epoch",), 4, "epoch must be at most 3, got 4"),
        (("epoch",), 2, "history: train_loss must be a list of 2 numbers"),
        (("sums", "right"), 81, "right must be at most 80, got 81"),
        (("format",), 99, "has checkpoint format 99; this version reads up to 5"),
    ],
)
def test_a_fact_that_does_not_hold_is_named(stopped, write, place, value, message):
    arrays, facts = stopped
    path = write(arrays, edited(facts, place, lambda inside, name: inside.update({name: value})))
    assert message in refusal(path)


def test_every_array_is_needed_as_it_was(stopped, write):
    arrays, facts = stopped
    for name, array in arrays.items():
        others = {n: a for n, a in arrays.items() if n != name}
        assert name.split("/")[-1] in refusal(write(others, facts))
        for wrong in (
            array.astype(np.float16),
            array[:-1],
            array[None],
            np.array("text"),
            np.full_like(array, np.nan),
        ):
            assert name.split("/")[-1] in refusal(write({**arrays, name: wrong}, facts))
    assert "optim: velocity.99 unknown" in refusal(
        write({**arrays, "optim/velocity.99": np.zeros(1)}, facts)
    )


def test_velocities_are_all_there(stopped, write):
    arrays, facts = stopped
    none = {name: a for name, a in arrays.items() if not name.startswith("optim/")}
    assert "optim: velocity.0, velocity.1, velocity.10 missing" in refusal(write(none, facts))
    still = edited(facts, ("recipe", "momentum"), lambda inside, name: inside.update({name: 0}))
    assert not checkpoint.load(write(none, still)).velocities


def test_momentum_may_come_later(digits, tmp_path):
    path = tmp_path / "checkpoint.npz"
    Training(replace(RECIPE, momentum=0, epochs=1), *digits, path=path).run(progress=False)
    run = Training.resume(path, *digits, path=path, epochs=2, momentum=0.9)
    run._save()  # as a run does before its first step
    assert len(checkpoint.load(path).velocities) == len(run.model.parameters())


@pytest.mark.parametrize("seen", [10**9, 81, 189])
def test_a_place_in_an_epoch_is_after_a_batch(stopped, write, digits, seen):
    arrays, facts = stopped
    path = write(arrays, {**facts, "sums": {**facts["sums"], "seen": seen}})
    with pytest.raises(ValueError, match=f"inside an epoch, after {seen} of 190 images: .* of 40"):
        Training.resume(path, *digits)


def test_an_epoch_of_which_only_the_test_is_left(stopped, write, digits):
    arrays, facts = stopped
    path = write(arrays, {**facts, "sums": {**facts["sums"], "seen": 190}})
    run = Training.resume(path, *digits)
    run.run(progress=False)
    assert len(run.history.train_loss) == 3 and run.history.train_loss[1] < 1


@pytest.mark.parametrize(
    "name", ["no zip", "nothing", "picture", "cut", "zeros inside", "pickled", "text", "other zip"]
)
def test_damaged_files_are_refused(stopped, write, name):
    path = write(*stopped)
    whole = path.read_bytes()
    if name == "picture":
        Image.new("L", (16, 16)).save(path, format="png")
    elif name == "pickled":
        np.savez(path, **stopped[0], facts=np.array([{}], dtype=object))
    elif name == "text":
        np.savez(path, **stopped[0], facts="{")
    elif name == "other zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("facts", "{}")
    else:
        path.write_bytes(
            {
                "no zip": b"not a zip",
                "nothing": b"",
                "cut": whole[:-100],
                "zeros inside": whole[:2000] + bytes(500) + whole[2500:],
            }[name]
        )
    assert "is no checkpoint of mulfree" in refusal(path)


def test_facts_that_are_none(stopped, write):
    for facts in ([], {}, "x", 3, None, [[[[]]]]):
        refusal(write(stopped[0], facts))


def test_a_variance_below_0(stopped, write):
    arrays, facts = stopped
    below = {"model/bn1.running_var": -arrays["model/bn1.running_var"]}
    assert "bn1.running_var is a variance below 0" in refusal(write({**arrays, **below}, facts))


def test_a_command_prints_one_line(stopped, write, capsys):
    arrays, facts = stopped
    path = str(
        write({**arrays, "model/conv1.weight": arrays["model/conv1.weight"] * np.nan}, facts)
    )
    for command in ("evaluate", "count", "prune"):
        assert cli.main([command, path]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "conv1.weight holds numbers that are not finite" in line
    assert cli.main(["train", "--resume", path]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_answers_that_are_not_finite_are_no_accuracy(digits, tmp_path, capsys):
    path = tmp_path / "checkpoint.npz"
    run = Training(replace(RECIPE, epochs=1), *digits, path=path)
    run.run(progress=False)
    run.model.bn5.weight.data[:] = 3e38  # finite, and no answer of theirs is
    run._save()
    assert cli.main(["evaluate", str(path)]) == 1
    assert "first layer that is not finite is bn5 (BatchNorm)" in capsys.readouterr().err


def test_weights_that_are_not_finite_replace_no_checkpoint(digits, tmp_path):
    path = tmp_path / "checkpoint.npz"
    run = Training(replace(RECIPE, epochs=1), *digits, path=path)
    run.run(progress=False)
    before = path.read_bytes()
    weight = run.model.conv1.weight
    weight.data = np.full_like(weight.data, np.inf)
    with pytest.raises(FloatingPointError, match="conv1.weight holds numbers that are not finite"):
        run._save()
    assert path.read_bytes() == before


def test_a_file_is_whole_or_absent(stopped, write, monkeypatch):
    path = write(*stopped)
    _, saved = load_model(path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="checkpoint.npz cannot be written, and is as it was: No spa"):
        checkpoint.save(path, replace(saved, epoch=0, history=type(saved.history)()))
    assert checkpoint.load(path).epoch == 1
    assert os.listdir(path.parent) == ["checkpoint.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
@pytest.mark.parametrize("limit", [100, 50_000, 200_000])
def test_a_full_disk_leaves_the_checkpoint_that_was_there(stopped, write, limit):
    """NumPy and zipfile fail in other ways at other places of the file."""
    path = write(*stopped)
    before = path.read_bytes()
    code = f"""
import resource
from mulfree_cupy.train import checkpoint
saved = checkpoint.load({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
checkpoint.save({str(path)!r}, saved)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("OSError: ") and last.endswith("is as it was: File too large"), last
    assert path.read_bytes() == before and os.listdir(path.parent) == ["checkpoint.npz"]
