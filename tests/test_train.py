import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from mulfree_cupy import cli, data, models
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.report import curves
from mulfree_cupy.train import History, Interrupted, Recipe, Training
from mulfree_cupy.train.folder import taken

RECIPE = Recipe("adder-lenet", epochs=3, batch_size=40, rate=0.1, augment="crop", seed=4)


@pytest.fixture(scope="module")
def digits():
    train, test = data.load("digits")
    return replace(train, images=train.images[:200], labels=train.labels[:200]), test


def finished(digits, path=None, **changes):
    run = Training(replace(RECIPE, **changes), *digits, path=path)
    run.run(progress=False)
    return run


def assert_same(one, other):
    for name, array in one.model.state_dict().items():
        assert_array_equal(array, other.model.state_dict()[name])
    assert one.history.train_loss == other.history.train_loss
    assert one.history.test_accuracy == other.history.test_accuracy
    assert one.history.running_accuracy == other.history.running_accuracy


def test_a_run_is_a_function_of_its_recipe(digits):
    run = finished(digits)
    assert_same(run, finished(digits))
    assert finished(digits, seed=5).history.train_loss != run.history.train_loss


class Killed(BaseException):
    pass


@pytest.mark.parametrize("steps", [1, 5, 7, 14])
def test_a_killed_run_resumes_bit_for_bit(digits, tmp_path, monkeypatch, steps):
    """Killed in step `steps` + 1; the checkpoint is of the last whole epoch, or of the start."""
    path = tmp_path / "checkpoint.npz"
    step, left = Training._train_step, iter(range(steps))

    def mortal(self, *batch):
        if next(left, None) is None:
            raise Killed
        return step(self, *batch)

    monkeypatch.setattr(Training, "_train_step", mortal)
    with pytest.raises(Killed):
        finished(digits, path)
    monkeypatch.undo()
    resumed = Training.resume(path, *digits)
    assert resumed.epoch == steps // 5
    resumed.run(progress=False)
    assert_same(resumed, finished(digits))


def test_an_interrupted_run_resumes_inside_its_epoch(digits, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    step = Training._train_step
    seen = []

    def interrupted(self, *batch):
        seen.append(batch)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *batch)

    monkeypatch.setattr(Training, "_train_step", interrupted)
    with pytest.raises(Interrupted):
        finished(digits, path)
    monkeypatch.undo()
    resumed = Training.resume(path, *digits)
    assert (resumed.epoch, resumed.step) == (1, 2)
    resumed.run(progress=False)
    assert_same(resumed, finished(digits))


def test_a_loss_that_is_not_finite_names_the_layer(digits):
    run = Training(RECIPE, *digits)
    run.model.conv2.weight.data[0, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 1.*conv2 \(AdderConv\)"):
        run.run(progress=False)


def test_evaluation_does_not_depend_on_the_batch(digits):
    run = finished(digits, epochs=1)
    run.model.eval()
    alone = run.model(Tensor(np.ones((1, 1, 8, 8), np.float32))).data
    both = run.model(Tensor(np.ones((2, 1, 8, 8), np.float32))).data
    np.testing.assert_allclose(both[:1], alone, rtol=1e-4, atol=1e-5)


def test_other_networks_and_images_are_refused(digits, tmp_path):
    path = tmp_path / "checkpoint.npz"
    finished(digits, path, epochs=1)
    train, test = digits
    with pytest.raises(ValueError, match="is of the network adder-lenet, not conv-lenet"):
        Training.resume(path, train, test, model="conv-lenet")
    brighter = replace(train, images=train.images + np.uint8(1))
    with pytest.raises(ValueError, match="trained on other images than those of digits"):
        Training.resume(path, brighter, test)
    # The mean and the deviation of these are the same.
    order = np.arange(len(train))[::-1]
    for others in (
        (replace(train, labels=train.labels[order]), test),
        (replace(train, images=train.images[order].copy(), labels=train.labels[order]), test),
        (replace(train, images=train.images.swapaxes(2, 3).copy()), test),
        (train, replace(test, labels=(test.labels + 1) % 10)),
        (train, replace(test, images=test.images[:-1], labels=test.labels[:-1])),
    ):
        with pytest.raises(ValueError, match="their pixels, labels or order differ"):
            Training.resume(path, *others)
    renamed = replace(train, classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="trained on other classes than those of digits"):
        Training.resume(path, renamed, test)
    wider = replace(train, images=np.repeat(np.repeat(train.images, 2, 2), 2, 3))
    with pytest.raises(
        ValueError, match=r"trained on images of 1 x 8 x 8 in 10 classes, digits has 1 x 16"
    ):
        Training.resume(path, wider, test)


def test_a_batch_of_one_image_is_refused_at_the_start(digits):
    for batch_size in (1, 199):
        with pytest.raises(ValueError, match=f"batches of {batch_size} of 200 .*a single image"):
            Training(replace(RECIPE, batch_size=batch_size), *digits)


def test_a_place_that_cannot_be_written_is_known_at_the_start(digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delattr(Training, "_train_step")
    with pytest.raises(OSError, match="file/checkpoint.npz cannot be written, and is as it was: "):
        finished(digits, tmp_path / "file" / "checkpoint.npz")


def test_curves_are_drawn_and_tabled(tmp_path):
    history = History([1.0, 0.5], [0.5, 0.7], [0.4, 0.6], [0.1, 0.55], [1.0, 1.0])
    curves.write(tmp_path / "curve.png", {"one": history, "two": history})
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curve.csv").read_text().splitlines()[2] == "one,2,0.5,0.7,0.6,0.55,1"


def test_the_command_trains_evaluates_and_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--epochs", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "adder-lenet" in printed and "Test accuracy" in printed.splitlines()[-1]
    assert {"checkpoint.npz", "curve.png", "curve.csv"} == set(os.listdir(out))
    assert cli.main(["train", "--epochs", "1", "--out", str(out)]) == 1
    assert f"resume it with --resume {out / 'checkpoint.npz'}" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(out / "checkpoint.npz"), "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert (
        "from epoch 2, 1 more, 2 in all" in printed
        and f"Checkpoint {out / 'checkpoint.npz'}" in printed
    )
    assert cli.main(["evaluate", str(out / "checkpoint.npz")]) == 0
    assert "adder-lenet on digits: test accuracy" in capsys.readouterr().out
    pictures = tmp_path / "pictures"
    for name in ("a", "b"):
        (pictures / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (16, 16), i).save(pictures / name / f"{i}.png")
    assert cli.main(["evaluate", str(out / "checkpoint.npz"), "--data", str(pictures)]) == 1
    assert "was trained on images of" in capsys.readouterr().err
    resized = ["--data", str(pictures), "--image-size", "8"]
    assert cli.main(["evaluate", str(out / "checkpoint.npz"), *resized]) == 1
    assert (
        "pictures has 1 x 8 x 8 in 2 classes; choose the data set with --data"
        in capsys.readouterr().err
    )


def test_runs_without_a_folder_get_one_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert cli.main(["train", "--epochs", "1"]) == 0
    assert set(os.listdir()) == {"mulfree-run", "mulfree-run-2", "mulfree-run-3"}
    assert "mulfree-run-3/checkpoint.npz" in capsys.readouterr().out


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Folders of two runs, of two epochs and of one."""
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    for folder, epochs in zip(folders, "21", strict=True):
        assert cli.main(["train", "--epochs", epochs, "--out", str(folder)]) == 0
    return folders


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_a_run_is_replaced_by_itself_alone(two_runs, tmp_path, capsys):
    a, b = two_runs
    backup = b / "backup.npz"
    shutil.copy(b / "checkpoint.npz", backup)
    before = contents(a, b)
    for arguments in (
        ["train", "--epochs", "1", "--out", a],
        ["train", "--resume", b / "checkpoint.npz", "--epochs", "3", "--out", a],
        ["train", "--resume", backup, "--epochs", "3"],
        ["train", "--resume", backup, "--epochs", "3", "--out", b],
        ["ablation", "--epochs", "1", "--out", a],
        ["prune", b / "checkpoint.npz", "--out", a],
        ["prune", b / "checkpoint.npz", "--out", a, "--resume"],
    ):
        assert cli.main([*map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert "holds a training run" in error or "no prunable layers" in error
        assert contents(a, b) == before
    new = tmp_path / "new"
    assert cli.main(["train", "--resume", str(backup), "--epochs", "2", "--out", str(new)]) == 0
    assert contents(a, b) == before and (new / "checkpoint.npz").exists()
    backup.unlink()


def test_a_run_that_is_going_on_is_left_alone(two_runs, capsys):
    a, _ = two_runs
    before = contents(a)
    with taken(a, resumed="checkpoint.npz"):
        for arguments in (["--out", a], ["--resume", a / "checkpoint.npz", "--epochs", "9"]):
            assert cli.main(["train", *map(str, arguments)]) == 1
            assert f"another run is active in {a}" in capsys.readouterr().err
    assert contents(a) == before


def test_what_is_done_is_not_undone(two_runs, capsys):
    a, _ = two_runs
    before, resume = contents(a), ["train", "--resume", str(a / "checkpoint.npz")]
    for changes in (["--epochs", "1"], ["--rate", "0.2"], ["--schedule", "restart"]):
        assert cli.main([*resume, *changes]) == 1
        assert "2 epochs are done, so epochs must be more to resume" in capsys.readouterr().err
    assert contents(a) == before
    assert cli.main(resume) == 0  # of which nothing is left to do
    assert "from epoch 3, 0 more, 2 in all\n" in capsys.readouterr().out
    assert (a / "checkpoint.npz").read_bytes() == before[a / "checkpoint.npz"]


@pytest.mark.parametrize(
    ("schedule", "changes", "rates"),
    [
        (None, {}, [0.1, 0.075, 0.025]),
        (None, {"rate": 0.2}, [0.1, 0.15, 0.05]),
        (None, {"epochs": 5}, [0.1, 0.075, 0.075 * 0.853553, 0.0375, 0.075 * 0.146447]),
        ("continue", {"epochs": 2}, [0.1, 0.075]),
        ("continue", {}, [0.1, 0.075, 0.0375]),
        ("restart", {}, [0.1, 0.1, 0.05]),
        ("restart", {"epochs": 5}, [0.1, 0.1, 0.0853553, 0.05, 0.0146447]),
        ("restart", {"rate": 0.2}, [0.1, 0.2, 0.1]),
        ("continue", {"rate": 0.2}, [0.1, 0.2, 0.1]),
    ],
)
def test_how_the_rate_goes_on(digits, tmp_path, monkeypatch, schedule, changes, rates):
    """After one epoch of three."""
    run = Training(RECIPE, *digits, path=tmp_path / "checkpoint.npz")
    seen = [run.recipe.rate_in(0)]
    run._run_epoch(False, [])
    run._save()
    resumed = Training.resume(run.path, *digits, schedule=schedule, **changes)
    epoch = Training._run_epoch

    def watched(self, *arguments):
        epoch(self, *arguments)
        seen.append(self.optimiser.rate)

    monkeypatch.setattr(Training, "_run_epoch", watched)
    resumed.run(progress=False)
    np.testing.assert_allclose(seen, rates, rtol=1e-5)


def test_a_finished_run_goes_on_at_its_last_rate(digits, tmp_path):
    path = tmp_path / "checkpoint.npz"
    finished(digits, path)
    resumed = Training.resume(path, *digits, epochs=5, path=path)
    assert resumed.recipe.rate_in(3) == RECIPE.rate_in(2) > resumed.recipe.rate_in(4)
    resumed.run(progress=False)
    with pytest.raises(ValueError, match="5 epochs are done, so epochs must be more .*, got 2"):
        Training.resume(path, *digits, epochs=2)
    again = Training.resume(path, *digits, epochs=7, rate=0.1, schedule="restart")
    assert (again.recipe.first_epoch, again.recipe.rate_in(5)) == (5, 0.1)
    with pytest.raises(ValueError, match=r"schedule must be one of \('continue', 'restart'\)"):
        Training.resume(path, *digits, epochs=7, schedule="cosine")


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 16), ("batch_size", 700), ("seed", 5), ("augment", "none")]
)
def test_inside_an_epoch_its_order_and_batches_stay(digits, tmp_path, name, value):
    path = tmp_path / "checkpoint.npz"
    run = Training(RECIPE, *digits, path=path)
    steps = run._host_steps()
    next(steps), next(steps)
    steps.close()
    run._save()
    message = f"{name} is {getattr(RECIPE, name)} in the current epoch, of which 80 images are"
    with pytest.raises(ValueError, match=f"{path}: {message} done, and cannot become {value} bef"):
        Training.resume(path, *digits, **{name: value})
    resumed = Training.resume(path, *digits, epochs=4)
    assert (resumed.step, resumed.sums["seen"]) == (2, 80)
    resumed._run_epoch(False, [])
    resumed.path = path
    resumed._save()
    changed = Training.resume(path, *digits, **{name: value})  # at the next epoch it may
    assert getattr(changed.recipe, name) == value


def test_the_ablation_compares_four_runs(tmp_path, capsys):
    assert (
        cli.main(["ablation", "--epochs", "1", "--batch-size", "256", "--out", str(tmp_path)]) == 0
    )
    printed = capsys.readouterr().out
    for gradient in ("full", "sign"):
        for rate in ("adaptive", "100 x"):
            assert f"{gradient} gradient, {rate} rate" in printed
    assert set(os.listdir(tmp_path)) == {"ablation.png", "ablation.csv"}
    for command in ("ablation", "train"):
        assert cli.main([command, "--out", str(tmp_path)]) == 1
        assert "holds an ablation; choose another folder" in capsys.readouterr().err


def test_a_diverged_run_of_the_ablation_keeps_its_curve(tmp_path, capsys, monkeypatch):
    def step(run, images, labels):
        if run.recipe.adder == "fixed" and run.epoch == 1:
            raise FloatingPointError("the loss is nan")
        return 1.0, 0

    monkeypatch.setattr(Training, "_train_step", step)
    assert cli.main(["ablation", "--epochs", "2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("diverged in epoch 2") == 2
    assert (tmp_path / "ablation.csv").read_text().count(",2,") == 2


def test_a_prediction_is_profiled_by_step(capsys):
    command = ["profile", "--inference", "--model", "conv-lenet", "--batch-size", "1"]
    assert cli.main([*command, "--size", "8", "--channels", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["step", "kernel", "answer", "dtype", "terms"]
    assert lines[2].startswith("conv1 + bn1") and lines[-1].startswith("1 images: ")


def test_a_step_is_profiled_by_layer(capsys):
    assert cli.main(["profile", "--model", "adder-lenet", "--batch-size", "4", "--size", "8"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows[1:3]] == [["conv1", "AdderConv"], ["bn1", "BatchNorm"]]
    assert rows[-1].startswith("step ") and rows[-1].endswith("of it convolutions")


def test_ctrl_c_saves_and_exits_cleanly(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "mulfree_cupy.cli", "train", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    while not (tmp_path / "checkpoint.npz").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "resume with: mulfree train --resume" in printed and "Traceback" not in errors
    assert printed.rstrip().endswith(f"{tmp_path}/checkpoint.npz --data digits --device cpu")


def test_ctrl_c_is_no_traceback_anywhere(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise Interrupted

    monkeypatch.setattr(Training, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ablation"]) == 130
    monkeypatch.setattr(data, "load", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "mulfree: interrupted\n" * 2


def test_arguments_are_called_as_the_command_has_them():
    options = {"out": "--out", "image_size": "--image-size", "size": "--size"}
    for message, told in (
        ("out: my/image_size: pass image_size", "--out: my/image_size: pass --image-size"),
        ("LeNet: size must be 2, and size", "LeNet: --size must be 2, and size"),
        ("my/size must be a size must be", "my/size must be a size must be"),
    ):
        assert cli._with_options(message, options) == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "adder-alexnet"], "no model named 'adder-alexnet'"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--device", "cuda"], "device 'cuda' needs"),
        (["evaluate", "nowhere.npz"], "there is no checkpoint nowhere.npz"),
        (["count", "nowhere.npz"], "there is no file nowhere.npz"),
        (["count", "nowhere"], "no model named 'nowhere'; the nearest of"),
        (["train", "--resume", "no/checkpoint.npz"], "there is no checkpoint no/checkpoint.npz"),
        (["train", "--schedule", "restart"], "--schedule is for resumed runs, and needs"),
        (["train", "--out", "file"], "--out: file cannot be the folder of a run: Not a directory"),
        (
            ["train", "--teacher", "conv-lenet", "--teacher-share", "3"],
            "--teacher-share must be at",
        ),
        (["train", "--out", "file/run"], "file/run cannot be the folder of a run: Not a dir"),
        (["compare", "--models", "conv-lenet,x"], "no model named 'x'"),
        (["compare", "--out", "file"], "file cannot be the folder of a run: Not a directory"),
        (["ablation", "--out", "file"], "file cannot be the folder of a run: Not a directory"),
        (["train", "--batch-size", "1441"], "batches of 1441 of 1442 images leave one"),
        (["train", "--epochs", str(2**63)], "epochs must be below 2**63"),
        (["count", "conv-lenet", "--size", "1"], "LeNet: --size must be from 2 to 256, got 1"),
        (["count", "conv-lenet", "--size", "100000"], "size must be at most 4096, got 100000"),
        (["profile", "--size", "1"], "--size must be at least 4, got 1"),
        (["profile", "--batch-size", str(10**12)], "there is not enough memory: "),
        (["profile", "--model", "x"], "no model named 'x'"),
        (["profile", "--batch-size", "1"], "--batch-size must be at least 2 for a training step"),
        (["profile", "--inference", "--model", "x"], "no model named 'x'"),
        (["profile", "--inference", "--model", "x.npz"], "there is no file x.npz"),
        (["profile", "--inference", "--device", "cuda"], "--inference is for the CPU"),
    ],
)
def test_the_command_explains_what_it_cannot_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert os.listdir() == ["file"]  # no folder is left behind


@pytest.mark.parametrize("command", ["train", "ablation"])
@pytest.mark.parametrize("value", ["-1", "1.5", "nan", "many", ""])
@pytest.mark.parametrize("option", ["--seed", "--epochs", "--batch-size", "--image-size"])
def test_a_number_out_of_range_is_told_with_its_option(command, option, value, capsys):
    assert_refused([command, option, value], f"{option}: must be a whole number, ", capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epochs", "0"], "--epochs: must be a whole number, at least 1, got 0"),
        (["train", "--batch-size", "1"], "--batch-size: must be a whole number, at least 2, got 1"),
        (["train", "--image-size", "4097"], "--image-size: must be a whole number, from 1 to 4096"),
        (["train", "--rate", "nan"], "--rate: must be a finite number, at least 0, got nan"),
        (["train", "--rate", "-0.1"], "--rate: must be a finite number, at least 0, got -0.1"),
        (["train", "--rate", "inf"], "--rate: must be a finite number"),
        (["train", "--rate", "fast"], "--rate: must be a finite number, at least 0, got fast"),
        (["prune", "x", "--rate", "nan"], "--rate: must be a finite number"),
        (["prune", "x", "--epochs", "0"], "--epochs: must be a whole number, at least 1, got 0"),
        (["prune", "x", "--block", "0"], "--block: must be a whole number, at least 1"),
        (["prune", "x", "--first-layer", "0"], "--first-layer: must be above 0 and at most 1"),
        (["prune", "x", "--schedule", "a,b"], "--schedule: must be decreasing densities, each abo"),
        (["prune", "x", "--schedule", "0.5,nan"], "--schedule: must be decreasing densities, each"),
        (["prune", "x", "--schedule", "0.5,0.6"], "--schedule: must be decreasing densities, each"),
        (["profile", "--batch-size", "0"], "--batch-size: must be a whole number, at least 1"),
        (["profile", "--channels", "0"], "--channels: must be a whole number, at least 1, got 0"),
        (["count", "conv-lenet", "--classes", "0"], "--classes: must be a whole number, at least"),
        (["count", "conv-lenet", "--size", "-4"], "--size: must be a whole number, at least 1"),
    ],
)
def test_a_limit_of_an_option_is_told(arguments, message, capsys):
    assert_refused(arguments, message, capsys)


def assert_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert f"argument {message}" in capsys.readouterr().err


def test_test_images_are_as_the_training_images(digits):
    train, test = digits
    for changes in ({"classes": tuple("abcdefghij")}, {"images": test.images[:, :, :6, :6].copy()}):
        with pytest.raises(ValueError, match="the test images must be as the training images, of"):
            Training(RECIPE, train, replace(test, **changes))


def test_images_and_labels_are_passed_as_a_data_set(digits, tmp_path):
    train, test = digits
    pair = test.images, test.labels
    path = tmp_path / "checkpoint.npz"
    Training(RECIPE, train, test, path=path)._save()
    for begin in (
        lambda: Training(RECIPE, pair, pair),
        lambda: Training(RECIPE, train, pair),
        lambda: Training.resume(path, pair, test),
    ):
        with pytest.raises(TypeError, match=r"passed as data.Dataset\(images, .*, got tuple"):
            begin()


def test_classes_are_two_or_more(digits):
    train, test = digits
    alone = [replace(part, labels=0 * part.labels, classes=("one",)) for part in (train, test)]
    with pytest.raises(ValueError, match="at least 2 classes, and digits has 'one'"):
        Training(RECIPE, *alone)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_model_has_a_place_in_a_checkpoint(name):
    shape = {"size": 32, "channels": 3, "classes": 10}
    model = models.build(name, **shape)
    model.load_state_dict(models.build(name, seed=1, **shape).state_dict())
