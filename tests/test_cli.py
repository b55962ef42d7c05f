import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy import cli, data, inference, models
from mulfree_cupy.report import curves
from mulfree_cupy.train import Recipe, Training
from mulfree_cupy.train.pruning import prunable


def test_kernels_are_listed_with_their_costs(capsys):
    assert cli.main(["kernels"]) == 0
    printed = capsys.readouterr().out
    for kernel in mf.kernels():
        assert f"{kernel.operation}/{kernel.name}: {kernel.idea}" in printed
    assert "cost" in printed


def test_resources_are_tabled():
    """In a separate process: the first import of NVIDIA's packages happens there."""
    pytest.importorskip("cuda.core", reason="needs the extra 'static': pip install .[static]")
    command = [
        sys.executable,
        "-m",
        "mulfree_cupy.cli",
        "kernels",
        "--resources",
        "--arch",
        "sm_90",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {k.path for k in mf.kernels()} <= {row.split()[0] for row in result.stdout.splitlines()}


def test_unknown_architectures_are_refused(capsys):
    assert cli.main(["kernels", "--resources", "--arch", "sm_1"]) == 1
    assert "architectures must be among sm_75" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["kernels", "--help"], ["--version"]])
def test_help_helps(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "mulfree" in capsys.readouterr().out


def test_networks_are_listed(capsys):
    assert cli.main(["models", "resnet20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {n for n in models.MODELS if "resnet20" in n}
    assert all(line.endswith("3x32x32, 10 classes") for line in lines)
    assert cli.main(["models"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(models.MODELS)
    assert cli.main(["models", "alexnet"]) == 1
    assert "no network's name contains 'alexnet'" in capsys.readouterr().err


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "unknown"),
    [
        ("train --imagesize 32", "train", "--imagesize 32"),
        ("profile net.npz", "profile", "net.npz"),
        ("compare --models a b", "compare", "b"),
        ("kernels run adder --devise cuda", "kernels run", "--devise cuda"),
    ],
)
def test_an_unknown_argument_is_told_with_the_usage_of_its_command(
    arguments, usage, unknown, capsys
):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: mulfree {usage} [-h]")
    assert told.endswith(f"mulfree {usage}: error: unrecognized arguments: {unknown}\n")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "--out", ""], "out"),
        (["train", "--resume="], "resume"),
        (["train", "--teacher="], "teacher"),
        (["prune", "net.npz", "--out="], "out"),
        (["evaluate", "net.npz", "--data="], "data"),
        (["evaluate", ""], "checkpoint"),
        (["count", "conv-lenet", "--csv="], "csv"),
    ],
)
def test_an_empty_path_is_refused(arguments, name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert (
        f"mulfree {arguments[0]}: error: argument {name}: must not be empty\n"
        in capsys.readouterr().err
    )


PLAIN = """
import sys
for name in ("tqdm", "matplotlib", "sklearn", "scipy", "PIL", "cuda", "nvidia", "cupy", "torch",
             "onnx", "onnxruntime", "safetensors"):
    sys.modules[name] = None
from mulfree_cupy import cli
status = cli.main(sys.argv[1:])
sys.exit(status)
"""
TRAIN, STATIC, CUDA, EXPORT = (
    f"pip install 'mulfree_cupy[{extra}]'" for extra in ("train", "static", "cuda13", "export")
)


@pytest.fixture
def idx(tmp_path):
    """A data set that needs no package, and a network trained on it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    for part in ("train", "t10k"):
        head = np.array([0x803, 20, 8, 8], ">i4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = np.array([0x801, 20], ">i4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(range(10)) * 2)
    train, test = data.load(tmp_path)
    recipe = Recipe("conv-lenet", epochs=1, batch_size=10, augment="none")
    Training(recipe, train, test, path=tmp_path / "net.npz").run(progress=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        ("kernels", 0),
        ("kernels --resources", STATIC),
        ("count adder-lenet", 0),
        ("count net.npz", 0),
        ("count winograd-vgg-nagadomi-8 --picture p", TRAIN),
        ("profile --model adder-lenet --size 8 --batch-size 4", 0),
        ("profile --device cuda", CUDA),
        ("evaluate net.npz --data .", 0),
        ("calibrate net.npz --data .", 0),
        ("evaluate net.npz --data . --device cuda", CUDA),
        ("evaluate net.npz", TRAIN),
        ("evaluate net.npz --data pictures", TRAIN),
        ("train --data .", TRAIN),
        ("prune net.npz --data .", TRAIN),
        ("ablation --data .", TRAIN),
        ("compare --data .", TRAIN),
        ("export net.npz --to npz", 0),
        ("export net.npz --to onnx", EXPORT),
        ("export net.npz --to safetensors", EXPORT),
        ("export pictures/net.safetensors --to npz", EXPORT),
    ],
)
def test_a_plain_install_does_it_or_names_the_extra(arguments, outcome, idx):
    for name in "ab":
        (idx / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            (idx / "pictures" / name / f"{i}.png").write_bytes(b"\x89PNG")
    (idx / "pictures" / "net.safetensors").write_bytes(bytes(8))
    command = [sys.executable, "-c", PLAIN, *arguments.split()]
    done = subprocess.run(command, cwd=idx, capture_output=True, text=True)
    if outcome == 0:
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    else:
        assert done.returncode == 1 and outcome in done.stderr and done.stderr.count("\n") == 1
        assert not done.stdout


def test_training_needs_no_bar(idx):
    code = PLAIN.replace(
        "status = cli.main(sys.argv[1:])",
        "from mulfree_cupy import data, train; "
        "status = len(train.Training(train.Recipe('conv-lenet', epochs=1, batch_size=10, "
        "augment='none'), *data.load('.')).run().seconds)",
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=idx, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"conv-lenet, epoch 1/1: loss .* in the test, .* s\n", done.stderr)


@pytest.mark.parametrize("name", ["$x^$", r"$\q$", "\xfc\u65e5", "\udcff"])
def test_a_name_of_data_ends_no_run(name, idx, tmp_path_factory):
    """Mathematics that Matplotlib cannot parse, unprintable characters, and undecodable bytes."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copytree(idx, folder / name)
    command = [sys.executable, "-W", "ignore", "-m", "mulfree_cupy.cli", "train", "--epochs", "1"]
    command += ["--model", "conv-lenet", "--data", folder / name, "--out", folder / "run"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1)
    assert (folder / "run" / "curve.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "train --data .",
        "train --data . --out new/run",
        "train --data ../{} --out .",
        "train --data . --resume net.npz",
        "prune net.npz --data .",
        "ablation --data .",
    ],
)
def test_no_run_is_written_among_class_folders(arguments, idx, monkeypatch, capsys):
    monkeypatch.chdir(idx)
    before = sorted(idx.iterdir())
    assert cli.main(arguments.format(idx.name).split()) == 1
    said = capsys.readouterr().err
    assert "inside --data" in said and "choose an --out elsewhere" in said
    assert said.count("\n") == 1 and sorted(idx.iterdir()) == before


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders of oblong and of square pictures, and runs on the former at 8x8 pixels."""
    image = pytest.importorskip("PIL.Image")
    place = tmp_path_factory.mktemp("pictures")
    for kind, size in {"oblong": (10, 12), "square": (12, 12)}.items():
        for name in ("cat", "dog"):
            (place / kind / name).mkdir(parents=True)
            for i in range(5):
                image.new("RGB", size, (i, 2 * i, 9 - i)).save(place / kind / name / f"{i}.png")
    train, test = data.load(place / "oblong", image_size=8)
    recipe = Recipe("spatial-vgg-nagadomi-8", epochs=1, batch_size=4, augment="none")
    run = Training(recipe, train, test, path=place / "run" / "checkpoint.npz")
    run.run(progress=False)
    inference.save_npz(place / "network.npz", inference.read(run.path))
    return place


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train --data oblong", "square images, got 12 x 10; resize them with --image-size PIXELS"),
        ("ablation --data oblong", "square images, got 12 x 10; resize them with --image-size PIX"),
        ("compare --data oblong", "square images, got 12 x 10; resize them with --image-size PIX"),
        ("evaluate run/checkpoint.npz --data oblong", "3 x 12 x 10 in 2 classes; resize {}"),
        ("evaluate run/checkpoint.npz --data square", "3 x 12 x 12 in 2 classes; resize {}"),
        ("evaluate network.npz --data square", "3 x 12 x 12 in 2 classes; resize {}"),
        ("evaluate network.npz --data square --image-size 9", "3 x 9 x 9 in 2 classes; resize {}"),
        ("train --resume run/checkpoint.npz --data oblong", "2 classes; resize {}"),
        ("train --teacher run/checkpoint.npz --data square", "2 classes; resize {}"),
        ("prune run/checkpoint.npz --data oblong", "2 classes; resize {}"),
        ("calibrate run/checkpoint.npz --data oblong", "2 classes; resize {}"),
        ("quantize run/checkpoint.npz --data oblong", "2 classes; resize {}"),
        ("count run/checkpoint.npz --data oblong", "2 classes; resize {}"),
        ("evaluate run/checkpoint.npz", "1 x 8 x 8 in 10 classes; choose the data set with --data"),
        ("train --data oblong --image-size 2", "CifarResNet: --image-size must be at least 4, got"),
        ("compare --data oblong --image-size 2", "mulfree: CifarResNet: --image-size must be at"),
    ],
)
def test_pictures_of_another_size_are_to_be_resized(
    arguments, says, pictures, monkeypatch, tmp_path, capsys
):
    for name in ("oblong", "square", "run", "network.npz"):
        (tmp_path / name).symlink_to(pictures / name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments.split()) == 1
    assert says.format("them with --image-size 8\n") in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["evaluate", "train --resume", "prune", "calibrate", "export --to npz", "quantize"]
)
def test_the_folder_of_a_run_is_no_checkpoint_but_holds_one(command, pictures, capsys):
    run = pictures / "run"
    assert cli.main([*command.split(), str(run)]) == 1
    told = capsys.readouterr().err
    assert told == f"mulfree: {run} is a folder; the checkpoint in it is {run / 'checkpoint.npz'}\n"
    assert cli.main([*command.split(), str(pictures)]) == 1
    assert f"{pictures} is a folder, no " in capsys.readouterr().err


def test_data_may_have_too_few_images_to_quantise(pictures, capsys):
    arguments = ["--data", str(pictures / "oblong"), "--image-size", "8"]
    assert cli.main(["quantize", str(pictures / "network.npz"), *arguments]) == 1
    assert "oblong has too few training images, 8: " in capsys.readouterr().err


def test_the_folder_of_a_run_is_not_loaded(pictures):
    with pytest.raises(IsADirectoryError, match="is a folder; the checkpoint in it is .*run/check"):
        mf.load(pictures / "run")


def test_the_commands_of_the_first_page_follow_from_one_another():
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    commands = re.search(r"### Train and compare\n\n```sh\n(.*?)```", page, re.DOTALL)[1]
    models_of = {}
    for line in commands.splitlines():
        _, words = line.split("mulfree ", 1)
        chosen = cli._parser().parse_args(shlex.split(words, comments=True))
        if "checkpoint" in chosen:
            folder, name = Path(chosen.checkpoint).parts
            assert name == "checkpoint.npz" and folder in models_of
            if words.startswith("prune"):
                assert prunable(models.build(models_of[folder]))
        elif words.startswith("train"):
            models_of[chosen.out] = chosen.model


def test_images_that_are_no_pictures_are_not_to_be_resized(idx, monkeypatch, capsys):
    small, square = data.load(idx)[0], np.zeros((20, 1, 9, 9), np.uint8)
    monkeypatch.chdir(idx)
    monkeypatch.setattr(data, "load", lambda *_, **__: (replace(small, images=square),) * 2)
    assert cli.main(["evaluate", "net.npz", "--data", "."]) == 1
    told = capsys.readouterr().err
    assert "has 1 x 9 x 9 in 10 classes; choose the data set with --data\n" in told


def test_an_ablation_is_printed_before_the_disk_may_be_full(idx, tmp_path_factory, monkeypatch):
    def full(*arguments, **options):
        raise OSError("no space")

    monkeypatch.setattr(curves, "write", full)
    printed = io.StringIO()
    out = tmp_path_factory.mktemp("elsewhere") / "out"
    with contextlib.redirect_stdout(printed):
        assert cli.main(f"ablation --data {idx} --epochs 1 --out {out}".split()) == 1
    assert len(printed.getvalue().splitlines()) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes_is_no_traceback(unbuffered):
    command = [sys.executable, "-m", "mulfree_cupy.cli", "kernels"]
    options = {"stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, **options)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"No space left on device" in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, **options)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_shell_completes_the_commands(tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "net.npz").touch()
    code = (
        'eval "$({} -m mulfree_cupy.cli completion bash)"\n'
        "complete -p mulfree\n"
        "COMP_WORDS=(mulfree {}); COMP_CWORD={}\n"
        "$(complete -p mulfree | sed 's/.*-F //; s/ .*//')\n"
        'echo "${{COMPREPLY[@]}}"'
    )
    for words, place, reply in (("ev", 1, "evaluate"), ("export --to on", 3, "onnx")):
        script = code.format(sys.executable, words, place)
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1].split() == [reply], done
