import os
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
    renamed = replace(train, classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="trained on other classes than those of digits"):
        Training.resume(path, renamed, test)
    wider = replace(train, images=np.repeat(np.repeat(train.images, 2, 2), 2, 3))
    with pytest.raises(ValueError, match=r"trained on images of .*'size': 8.*'size': 16"):
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
    history = History([1.0, 0.5], [0.5, 0.7], [0.4, 0.6], [1.0, 1.0])
    curves.write(tmp_path / "curve.png", {"one": history, "two": history})
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curve.csv").read_text().splitlines()[2] == "one,2,0.5,0.7,0.6,1"


def test_the_command_trains_evaluates_and_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--epochs", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "adder-lenet" in printed and "Test accuracy" in printed.splitlines()[-1]
    assert {"checkpoint.npz", "curve.png", "curve.csv"} == set(os.listdir(out))
    assert cli.main(["train", "--epochs", "1", "--out", str(out)]) == 1
    assert f"go on with it by --resume {out / 'checkpoint.npz'}" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(out / "checkpoint.npz"), "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "from epoch 2" in printed and f"Checkpoint {out / 'checkpoint.npz'}" in printed
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
    assert "'size': 8, 'classes': 2" in capsys.readouterr().err


def test_runs_without_a_folder_get_one_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert cli.main(["train", "--epochs", "1"]) == 0
    assert set(os.listdir()) == {"mulfree-run", "mulfree-run-2", "mulfree-run-3"}
    assert "mulfree-run-3/checkpoint.npz" in capsys.readouterr().out


def test_the_ablation_compares_four_runs(tmp_path, capsys):
    assert (
        cli.main(["ablation", "--epochs", "1", "--batch-size", "256", "--out", str(tmp_path)]) == 0
    )
    printed = capsys.readouterr().out
    for gradient in ("full", "sign"):
        for rate in ("adaptive", "100 x"):
            assert f"{gradient} gradient, {rate} rate" in printed
    assert (tmp_path / "ablation.png").exists() and (tmp_path / "ablation.csv").exists()


def test_a_diverged_run_of_the_ablation_keeps_its_curve(tmp_path, capsys, monkeypatch):
    def step(run, images, labels):
        if run.recipe.adder == "fixed" and run.epoch == 1:
            raise FloatingPointError("the loss is nan")
        return 1.0, 0

    monkeypatch.setattr(Training, "_train_step", step)
    assert cli.main(["ablation", "--epochs", "2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("diverged in epoch 2") == 2
    assert (tmp_path / "ablation.csv").read_text().count(",2,") == 2


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
    assert "go on with: mulfree train --resume" in printed and "Traceback" not in errors
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "adder-alexnet"], "no model named 'adder-alexnet'"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--device", "cuda"], "device 'cuda' needs"),
        (["train", "--batch-size", "0"], "batch_size must be at least 1"),
        (["train", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["ablation", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["count", "adder-vggsmall", "--size", "0"], "size must be at least 1, got 0"),
        (["evaluate", "nowhere.npz"], "there is no checkpoint nowhere.npz"),
    ],
)
def test_the_command_explains_what_it_cannot_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_model_has_a_place_in_a_checkpoint(name):
    shape = {"size": 32, "channels": 3, "classes": 10}
    model = models.build(name, **shape)
    model.load_state_dict(models.build(name, seed=1, **shape).state_dict())
