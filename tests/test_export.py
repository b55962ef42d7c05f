"""Trained networks for other programs: the command, and files that a stranger can read."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_inference import FAMILIES, predictor_of, settled
from test_onnx import TOLERANCE, assert_close, exact, quantised

import mulfree_cupy as mf
from mulfree_cupy import cli, data, files, inference, train
from mulfree_cupy.inference.file import as_json
from mulfree_cupy.report import export as comparison

DOCS = Path(__file__).parents[1] / "docs"

# ---- plain arrays -----------------------------------------------------------------------------


def script(name):
    """A file that the docs show."""
    shown = re.search(
        f"<!-- {name} -->\n```python\n(.*?)```", (DOCS / "inference.md").read_text(), re.S
    )
    return shown[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for name in ("network.py", "more.py"):
        (folder / name).write_text(script(name))
    return folder


@pytest.fixture(scope="module")
def stranger(folder):
    """The function of the scripts that computes a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module("more")
        yield sys.modules["network"].run
    for name in ("network", "more"):
        del sys.modules[name]


def test_a_stranger_reads_a_network_in_fifty_lines(folder, tmp_path):
    assert sum(bool(line.strip()) for line in script("network.py").splitlines()) <= 50
    predictor = predictor_of(*settled("shift-adder-resnet20-e1", 8))
    images = np.random.default_rng(0).integers(0, 256, (2, *predictor.network.image), np.uint8)
    inference.save_npz(tmp_path / "net.npz", predictor.network)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "network.py", tmp_path / "net.npz", tmp_path / "images.npy"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    found = np.array(re.findall(r"-?[\d.]+(?:e[+-]\d+)?", done.stdout), float).reshape(2, 10)
    assert_close(found, predictor(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_its_numbers_are_ours(name, stranger, tmp_path):
    network = predictor_of(*settled(name, FAMILIES[name])).network
    images = np.random.default_rng(0).integers(0, 256, (2, *network.image), np.uint8)
    inference.save_npz(tmp_path / "net.npz", network)
    assert_close(stranger(tmp_path / "net.npz", images), exact(network, images))


@pytest.mark.parametrize("padding", [1, [0, 2], [[0, 1], [2, 0]]])
@pytest.mark.parametrize("op", ["conv", "adder_conv", "binary_conv", "winograd_conv"])
def test_paddings_of_all_forms(op, padding, stranger, tmp_path):
    winograd = op == "winograd_conv"
    rng, shape = np.random.default_rng(0), (4, 4, 5, 3) if winograd else (5, 3, 2, 3)
    options = {"padding": padding} | ({"points": "lavin"} if winograd else {})
    layers = (
        inference.Layer(op, "a", ("images",), {"weight": "w"}, options),
        inference.Layer("global_average_pool", "b", ("a",)),
    )
    weights = {"w": rng.normal(size=shape).astype("f")}
    classes, zeros = tuple("abcde"), np.zeros(3)
    network = inference.Network(layers, weights, (3, 6, 7), classes, zeros, zeros + 1)
    images = rng.integers(0, 256, (2, 3, 6, 7), np.uint8)
    inference.save_npz(tmp_path / "net.npz", network)
    assert_close(stranger(tmp_path / "net.npz", images), inference.Predictor(network)(images))


@pytest.mark.parametrize("bits", [None, 4, 2])
def test_its_numbers_are_ours_in_few_bits(stranger, tmp_path, bits):
    network = quantised(np.random.default_rng(0))
    if bits is not None:
        layers = [
            replace(layer, options={**layer.options, "bits": bits})
            if layer.op == "adder_conv"
            else layer
            for layer in network.layers
        ]
        network = replace(network, layers=tuple(layers))
    images = np.random.default_rng(1).integers(0, 256, (64, *network.image), np.uint8)
    inference.save_npz(tmp_path / "net.npz", network)
    found, expected = (
        stranger(tmp_path / "net.npz", images),
        inference.Predictor(network)(images),
    )
    assert np.abs(found - expected).max() <= 1  # float32 may round to the other neighbour
    assert (found != expected).mean() < 1e-3


# ---- damaged files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return predictor_of(*settled("conv-lenet", 16)).network


def _first(**entries):
    return lambda whole, arrays: whole["layers"][0].update(entries)


FAULTS = {  # what is done to the description and the arrays, or a text in its place; what is said
    "a later format": (lambda whole, _: whole.update(format=99), "format 99; this version reads"),
    "no format": (lambda whole, _: whole.pop("format") and None, "no 'format'"),
    "an unknown operation": (_first(op="magic"), "no operation 'magic'"),
    "an unknown option": (_first(options={"x": 1}), "no option 'x'"),
    "an unknown array": (_first(arrays={"weight": "conv1.weight", "x": "y"}), "no array 'x'"),
    "a missing option": (_first(op="winograd_conv"), "needs the option 'points'"),
    "a lost layer": (lambda whole, _: whole["layers"].pop(0) and None, "no layer before it"),
    "no layers": (lambda whole, _: whole.update(layers=[]), "must have layers"),
    "layers of another kind": (lambda whole, _: whole.update(layers=3), "layers must be a list"),
    "classes of another kind": (lambda whole, _: whole.update(classes=[1]), "must be names"),
    "images of another rank": (lambda whole, _: whole.update(image=[1, 16]), "image must be"),
    "images without pixels": (lambda whole, _: whole.update(image=[1, 0, 16]), "image must be"),
    "no JSON": (lambda *_: "{", "Expecting"),
    "JSON of another kind": (lambda *_: "[1]", "must have entries"),
    "JSON that is too deep": (lambda *_: "[" * 100_000, "damaged"),
    "a missing array": (lambda _, arrays: arrays.pop("conv1.weight")[:0], "is missing"),
    "no mean": (lambda _, arrays: arrays.pop("mean")[:0], "no 'mean'"),
    "a wrong shape": (lambda _, arrays: arrays.update(fill(arrays, (6, 9, 5, 5), 1)), "shape"),
    "NaN": (lambda _, arrays: arrays.update(fill(arrays, (6, 1, 5, 5), np.nan)), "not finite"),
    "no deviation": (lambda _, arrays: arrays.update(std=np.zeros(1)), "std must be positive"),
}


def fill(arrays, shape, value):
    return {"conv1.weight": np.full(shape, value, arrays["conv1.weight"].dtype)}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_hold_is_named(fault, suffix, network, tmp_path):
    damage, says = FAULTS[fault]
    whole = json.loads(as_json(network))
    arrays = {**network.arrays, "mean": network.mean, "std": network.std}
    text = damage(whole, arrays)
    description = text if isinstance(text, str) else json.dumps(whole)
    path = tmp_path / f"cat.{suffix}"
    if suffix == "npz":
        np.savez(path, network=np.array(description), **arrays)
    else:
        numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra 'export'")
        numpy.save_file(arrays, path, {"network": description})
    with pytest.raises(ValueError, match=f"cat.{suffix} .*{re.escape(says)}"):
        mf.load(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "C64", "STRING"])
def test_numbers_that_numpy_lacks(dtype, network, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra 'export'")
    path = tmp_path / "cat.safetensors"
    inference.save_safetensors(path, network)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    head["conv1.weight"]["dtype"] = dtype
    head = json.dumps(head).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + size :])
    with pytest.raises(ValueError, match="cat.safetensors holds no network"):
        mf.load(path)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, 3000, -1])
def test_a_cut_safetensors_file_is_named(cut, network, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra 'export'")
    path = tmp_path / "cat.safetensors"
    inference.save_safetensors(path, network)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cat.safetensors holds no network"):
        mf.load(path)


def test_other_safetensors_files_are_named(network, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra 'export'")
    path = tmp_path / "cat.safetensors"
    for content in (b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cat.safetensors holds no network"):
            mf.load(path)
    for metadata in (None, {"format": "pt"}):
        numpy.save_file({"x": np.zeros(3)}, path, metadata)
        with pytest.raises(ValueError, match="cat.safetensors holds no network.* no 'network'"):
            mf.load(path)


# ---- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint.npz"
    recipe = train.Recipe(model="adder-lenet", epochs=1, augment="none")
    train.Training(recipe, *data.load("digits"), path=path).run(progress=False)
    return path


@pytest.fixture
def checkpoint(run, tmp_path):
    return shutil.copy(run, tmp_path / "checkpoint.npz")


def export(*arguments):
    return cli.main(["export", *map(str, arguments)])


NEEDS = {"npz": (), "safetensors": ("safetensors",), "onnx": ("onnx",)}


def skip_without(suffix):
    for package in NEEDS[suffix]:
        pytest.importorskip(package, reason="needs the extra 'export': pip install .[export]")


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("npz", "checkpoint-network.npz"),
        ("safetensors", "checkpoint.safetensors"),
        ("onnx", "checkpoint.onnx"),
    ],
)
def test_a_checkpoint_is_exported_beside_itself(suffix, name, checkpoint, capsys):
    skip_without(suffix)
    before = checkpoint.read_bytes()
    assert export(checkpoint, "--to", suffix) == 0
    path, said = checkpoint.with_name(name), capsys.readouterr().out
    assert said.startswith(f"{path}: {path.stat().st_size:,} bytes")
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([checkpoint.name, name])
    assert checkpoint.read_bytes() == before
    if suffix != "onnx":
        images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
        assert_array_equal(mf.load(path)(images), mf.load(checkpoint)(images))
        assert export(path, "--to", "npz", "--out", path.with_name("again.npz")) == 0
        assert_array_equal(mf.load(path.with_name("again.npz"))(images), mf.load(path)(images))


def test_onnx_runtime_is_compared(checkpoint, capsys):
    skip_without("onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    assert export(checkpoint, "--to", "onnx") == 0
    said = capsys.readouterr().out
    assert "opset 17" in said
    rows = re.findall(r"^ +(\d+) +([\d.e+-]+) +([\d.]+) +([\d.]+)$", said, re.M)
    assert [int(images) for images, *_ in rows] == [1, 32]
    for _, difference, ours, theirs in rows:
        assert float(difference) < TOLERANCE and float(ours) > 0 and float(theirs) > 0


def test_a_large_batch_is_left_out_where_it_would_take_long(checkpoint, monkeypatch):
    skip_without("onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    network, path = inference.read(checkpoint), checkpoint.with_suffix(".onnx")
    inference.save_onnx(path, network)
    monkeypatch.setattr(comparison, "_TOO_LONG", 0.0)
    assert [row.images for row in comparison.compare(path, network)] == [1]


@pytest.mark.parametrize("version", [1, 2])
def test_checkpoints_of_older_formats(version, checkpoint):
    with np.load(checkpoint) as file:
        arrays = dict(file)
    facts = {
        "format": version,
        **{
            k: v
            for k, v in json.loads(str(arrays["facts"])).items()
            if k not in ("format", "data", "network")
        },
    }
    if version == 1:
        del facts["recipe"]["first_epoch"]
    old = checkpoint.with_name("old.npz")
    np.savez(old, **{**arrays, "facts": np.array(json.dumps(facts))})
    assert export(old, "--to", "npz") == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
    assert_array_equal(
        mf.load(old.with_name("old-network.npz"))(images), mf.load(checkpoint)(images)
    )


def refused(capsys, *arguments):
    """What it says, in one line."""
    assert export(*arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    path = tmp_path / "cat.png"
    assert f"there is no file {path}" in refused(capsys, path, "--to", "npz")
    assert f"{tmp_path} is a folder, no file" in refused(capsys, tmp_path, "--to", "npz")
    for name, content, says in (
        ("cat.png", b"\x89PNG\r\n\x1a\n", "cat.png holds no network of mulfree"),
        ("net.pth", b"PK\x03\x04" * 9, "net.pth is PyTorch's"),
    ):
        (tmp_path / name).write_bytes(content)
        for suffix in NEEDS:
            said = refused(capsys, tmp_path / name, "--to", suffix)
            assert says in said and "pickle" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat.png", "net.pth"]


def test_places_that_will_not_do(checkpoint, tmp_path, capsys):
    before = checkpoint.read_bytes()
    (tmp_path / "folder.npz").mkdir()
    for out, says in (
        (checkpoint, "would be overwritten"),
        (tmp_path / "net.onnx", "--out must end in .npz"),
        (tmp_path / "net", "--out must end in .npz"),
        (tmp_path / "folder.npz", "cannot be written"),
        (checkpoint / "net.npz", "cannot be written"),
    ):
        assert says in refused(capsys, checkpoint, "--to", "npz", "--out", out)
    own = tmp_path / "a-network.npz"
    inference.save_npz(own, inference.read(checkpoint))
    assert "would be overwritten" in refused(capsys, own, "--to", "npz")
    assert checkpoint.read_bytes() == before


def test_a_file_is_replaced_as_a_whole(checkpoint, monkeypatch, capsys):
    out = checkpoint.with_name("net.npz")
    out.write_text("before")

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        said = refused(capsys, checkpoint, "--to", "npz", "--out", out)
    assert "net.npz cannot be written, and is as it was: No space left" in said
    assert out.read_text() == "before"
    assert export(checkpoint, "--to", "npz", "--out", out) == 0
    assert mf.load(out).classes == mf.load(checkpoint).classes
    assert sorted(p.name for p in out.parent.iterdir()) == ["checkpoint.npz", "net.npz"]


@pytest.mark.parametrize("suffix", ["npz", "onnx", "safetensors"])
def test_what_a_killed_export_leaves_is_known(suffix, tmp_path):
    with files.replaced(tmp_path / f"net.{suffix}"):
        (left,) = tmp_path.iterdir()
    assert files.UNFINISHED.fullmatch(left.name)


def test_without_onnx_runtime_there_is_no_comparison(checkpoint, monkeypatch, capsys):
    skip_without("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(checkpoint, "--to", "onnx") == 0
    assert "pip install onnxruntime" in capsys.readouterr().out
