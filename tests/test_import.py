"""Networks of others: their names, and files in which nothing is executed."""

import builtins
import io
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from mulfree_cupy import cli, data, models
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.foreign import imported, read
from mulfree_cupy.train import Training, checkpoint

# Files made by hand, one instruction of a pickle after another.


def text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def whole(number):
    body = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(body)]) + body


def together(*items):
    return b"(" + b"".join(items) + b"t"


def name_of(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


ORDERED_DICT = name_of("collections", "OrderedDict") + b")R"


def storage(kind="Float", key="0", count=6, *more):
    word, place = text("storage"), text("cpu")
    return together(word, name_of("torch", f"{kind}Storage"), text(key), place, whole(count), *more)


def tensor(stored=None, offset=0, shape=(2, 3), strides=(3, 1), rebuild="_rebuild_tensor_v2"):
    sizes = [together(*(whole(n) for n in numbers)) for numbers in (shape, strides)]
    stored = storage() if stored is None else stored
    arguments = together(stored + b"Q", whole(offset), *sizes, b"\x89", ORDERED_DICT)
    return name_of("torch._utils", rebuild) + arguments + b"R"


def a_dict(**entries):
    items = b"".join(text(name) + value for name, value in entries.items())
    return ORDERED_DICT + b"(" + items + b"u"


def described(value, protocol=b"\x80\x02"):
    return protocol + value + b"."


SIX = np.arange(6, dtype=np.float32)


def zipped(description, entries=None, *, order=b"little", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/byteorder", order)
        for key, numbers in ({"0": SIX} if entries is None else entries).items():
            archive.writestr(f"archive/data/{key}", bytes(numbers))
    return file.getvalue()


def in_a_row(description, entries=None, *, little=True):
    entries = {"0": SIX} if entries is None else entries
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system)]
    keys = pickle.dumps(list(entries), 2)
    bodies = [struct.pack("<q", numbers.size) + numbers.tobytes() for numbers in entries.values()]
    return b"".join([*head, description, keys, *bodies])


def saved(path, state):
    """A state dict of arrays as the zip that torch.save would write."""
    entries, tensors = {}, {}
    for i, (name, array) in enumerate(state.items()):
        kind = {"float32": "Float", "float64": "Double", "int64": "Long"}[str(array.dtype)]
        array = np.ascontiguousarray(array)
        entries[str(i)] = array.tobytes()
        strides = [stride // array.itemsize for stride in array.strides]
        tensors[name] = tensor(storage(kind, str(i), array.size), 0, array.shape, strides)
    path.write_bytes(zipped(described(a_dict(**tensors)), entries))
    return path


@pytest.fixture
def file(tmp_path):
    def written(content):
        path = tmp_path / "net.pth"
        path.write_bytes(content)
        return path

    return written


def refusal(path):
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be imported: ")
    assert "\n" not in message and len(message) < 1000
    return message


FORMS = {"zip": zipped, "row": lambda pickled, *a: in_a_row(pickled.replace(b"tQ", b"NtQ"), *a)}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_read(file, form):
    """Views, transposed ones, scalars and empty ones; parameters; dicts with attributes."""
    parameter = name_of("torch._utils", "_rebuild_parameter") + together(
        tensor(), b"\x88", ORDERED_DICT
    )
    tensors = {
        "plain": tensor(),
        "turned": tensor(shape=(3, 2), strides=(1, 3)),
        "part": tensor(offset=4, shape=(2,), strides=(1,)),
        "one": tensor(offset=5, shape=(), strides=()),
        "none": tensor(offset=6, shape=(0, 4), strides=(4, 1)),
        "weight": parameter + b"R",
    }
    versions = b"}" + text("_metadata") + ORDERED_DICT + b"sb"
    for top in (a_dict(**tensors), a_dict(**tensors) + versions):
        for content in (top, a_dict(epoch=whole(3), state_dict=top)):
            found = read(file(FORMS[form](described(content))))
            assert found.keys() == tensors.keys()
            assert_array_equal(found["plain"], SIX.reshape(2, 3))
            assert_array_equal(found["turned"], SIX.reshape(2, 3).T)
            assert_array_equal(found["part"], [4, 5])
            assert found["one"].shape == () and found["one"] == 5
            assert found["none"].shape == (0, 4)
            assert_array_equal(found["weight"], SIX.reshape(2, 3))
            assert not found["plain"].flags.writeable


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("Double", "f8"), ("Half", "f2"), ("Long", "i8"), ("Byte", "u1"), ("Bool", "?")],
)
def test_numbers_of_every_kind(file, kind, dtype):
    numbers = SIX.astype(dtype)
    content = described(a_dict(x=tensor(storage(kind))))
    for form in FORMS.values():
        found = read(file(form(content, {"0": numbers})))["x"]
        assert found.dtype == dtype
        assert_array_equal(found, numbers.reshape(2, 3))


class Reducing:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def touching(place):
    command = f"touch {place}"
    code = f"open({str(place)!r}, 'w')"
    return {
        "posix.system": Reducing(os.system, (command,)),
        "builtins.eval": Reducing(eval, (code,)),
        "builtins.exec": Reducing(exec, (code,)),
        "builtins.getattr": Reducing(getattr, ("", "format")),
        "builtins.__import__": Reducing(builtins.__import__, ("os",)),
        "pickle.loads": Reducing(pickle.loads, (b"N.",)),
        "functools.partial": Reducing(__import__("functools").partial, (print,)),
        "numpy.dtype": np.dtype("f4"),
    }


@pytest.mark.parametrize("name", touching(""))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_name_that_numbers_do_not_need_is_refused(tmp_path, file, name, protocol):
    place = tmp_path / "touched"
    hostile = touching(place)[name]
    for value in (hostile, {"x": hostile}, [hostile], {"state_dict": {"x": hostile}}):
        description = pickle.dumps(value, protocol)
        for form in (zipped, in_a_row):
            told = refusal(file(form(description)))
            asked = name if protocol > 2 else name.replace("builtins", "__builtin__")
            assert asked.split(".")[-1] in told and "does not need" in told
        refusal(file(description))
    assert not place.exists()


HOSTILE = {
    "a whole network": (
        name_of("torch.nn.parallel.data_parallel", "DataParallel") + b")\x81",
        "asks for 'torch.nn.parallel.data_parallel.DataParallel'",
    ),
    "bytes of another pickle": (
        name_of("torch.storage", "_load_from_bytes") + b")R",
        "asks for 'torch.storage._load_from_bytes'",
    ),
    "a name inside a name": (
        name_of("collections", "OrderedDict.fromkeys"),
        "OrderedDict.fromkeys",
    ),
    "an instance": (b"(S'touch x'\nios\nsystem\n", "INST 'os system'"),
    "an object": (b"(" + name_of("collections", "OrderedDict") + b"o", "the instruction OBJ"),
    "a new object": (name_of("collections", "OrderedDict") + b")\x81", "the instruction NEWOBJ"),
    "an extension": (b"\x82\x01", "the instruction EXT1 1"),
    "a place in words": (b"Pos\n", "the instruction PERSID 'os'"),
    "a buffer": (b"\x97", "the instruction NEXT_BUFFER"),
    "a name made of numbers": (whole(1) + whole(2) + b"\x93", "a int where a str should be"),
    "a type called": (name_of("torch", "FloatStorage") + b")R", "where a function should be"),
    "a function changed": (
        name_of("torch._utils", "_rebuild_tensor_v2") + b"}b",
        "a function where a dict should be",
    ),
    "pairs in an ordered dict": (
        name_of("collections", "OrderedDict") + b"(]tR",
        "_ordered_dict() takes 0 positional arguments",
    ),
    "a tensor of too little": (name_of("torch._utils", "_rebuild_tensor_v2") + b")R", "missing"),
    "nothing on the stack": (b"R", "its pickle is damaged"),
    "no mark": (b"t", "its pickle is damaged"),
    "an unknown memo": (b"h\x07", "its pickle is damaged"),
    "half a pair": (b"}(" + text("a") + b"u", "its pickle is damaged"),
    "a list": (b"]", "holds no state dict but a list"),
    "a tensor": (tensor(), "holds no state dict but a tensor"),
    "nothing": (b"}", "holds no state dict but a dict"),
    "a number for a tensor": (a_dict(lr=whole(1)), "its entry 'lr' is no tensor but a int"),
    "a deep key": (b"}" + b")" + b"\x85" * 10**6 + b"Ns", "a key is neither text nor a whole"),
    "a deep value": (a_dict(x=b")" + b"\x85" * 10**6), "its entry 'x' is no tensor but a tuple"),
    "a huge memo": (b"}r\xff\xff\xff\xff", "holds no state dict but a dict"),
    "a huge text": (b"\x8d" + b"\xff" * 7 + b"\x7f", ""),
    "laughs": (
        b"]" + b"".join(b"q%c(h%ch%cl" % (i, i, i) for i in range(200)) + b"Q",
        "that is no storage",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, file, name):
    monkeypatch.chdir(tmp_path)
    value, told = HOSTILE[name]
    entries = {"0": SIX} if b"storage" in value else {}
    for form in (zipped, in_a_row):
        assert told in refusal(file(form(described(value), entries)))
    assert os.listdir() == ["net.pth"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (tensor(storage(count=2**40)), "has 24 bytes, 4398046511104 were announced"),
        (tensor(storage(count=5), shape=(5,), strides=(1,)), "24 bytes, 20 were announced"),
        (tensor(storage(count=-6)), "its storage 0 has a length or a view that is none"),
        (tensor(storage(key="../0")), "it has no entry data/../0"),
        (tensor(storage("Float", "0", 6, b"}")), "a length or a view that is none"),
        (tensor(storage("BFloat16")), "it asks for 'torch.BFloat16Storage'"),
        (tensor(together(text("module"), b"N", b"N", b"N", b"N")), "that is no storage"),
        (tensor(b"N"), "that is no storage"),
        (tensor(offset=1), "strides (3, 1) and offset 1 in it goes beyond its 6 numbers"),
        (tensor(offset=6, shape=(), strides=()), "goes beyond its 6 numbers"),
        (tensor(offset=-1), "a size, a stride or an offset that is none"),
        (tensor(offset=2**70), "a size, a stride or an offset that is none"),
        (tensor(shape=(3, 3)), "goes beyond its 6 numbers"),
        (tensor(strides=(4, 1)), "goes beyond its 6 numbers"),
        (tensor(strides=(-3, 1)), "a size, a stride or an offset that is none"),
        (tensor(shape=(10**9,), strides=(0,)), "goes beyond its 6 numbers"),
        (tensor(shape=(2**62, 2**62), strides=(0, 0)), "goes beyond its 6 numbers"),
        (tensor(shape=(2, 3), strides=(1,)), "has 2 dimensions"),
        (tensor(shape=(1,) * 9, strides=(1,) * 9), "has 9 dimensions"),
        (tensor(storage(count=0), shape=(), strides=()), "goes beyond its 0 numbers"),
    ],
)
def test_tensors_beyond_their_numbers_are_refused(file, value, told):
    assert told in refusal(file(zipped(described(a_dict(x=value)))))


def test_storages_in_a_row_that_do_not_hold(file):
    good = described(a_dict(x=tensor()))
    assert read(file(in_a_row(good)))["x"].shape == (2, 3)
    content = in_a_row(good)
    for cut in (4, 24, 30):
        assert "storage 0 is cut short" in refusal(file(content[:-cut]))
    assert "list of storages is damaged" in refusal(file(in_a_row(good, {"0": SIX, "1": SIX})))
    assert "has no storage 0" in refusal(file(in_a_row(good, {})))
    assert "cut short or damaged" in refusal(file(in_a_row(good, {"0": SIX[:5]})))
    twice = a_dict(x=tensor(), y=tensor(storage("Int")))
    assert "described twice, and differently" in refusal(file(in_a_row(described(twice))))
    assert "on a big-endian machine" in refusal(file(in_a_row(good, little=False)))


def test_zips_that_do_not_hold(file):
    good = described(a_dict(x=tensor()))
    assert "on a big-endian machine" in refusal(file(zipped(good, order=b"big")))
    assert "it has no entry data/0" in refusal(file(zipped(good, {})))
    deflated = zipped(good, compression=zipfile.ZIP_DEFLATED)
    assert "compressed, which torch.save never does" in refusal(file(deflated))
    several = io.BytesIO(zipped(good))
    with zipfile.ZipFile(several, "a") as archive:
        archive.writestr("other/data.pkl", good)
    assert "no data.pkl, or several" in refusal(file(several.getvalue()))
    changed = zipped(good).replace(SIX.tobytes(), SIX[::-1].tobytes())
    assert "entry data/0 is damaged" in refusal(file(changed))


def test_other_files_are_refused(tmp_path, file):
    for content in (b"", b"\x80", b"no", b"\x89PNG\r\n\x1a\n" + bytes(50), pickle.dumps({}, 0)):
        refusal(file(content))
    with (tmp_path / "net.pth").open("wb") as npz:
        np.savez(npz, x=SIX)
    assert "is a zip, but not of torch.save" in refusal(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError, match="there is no file .*none.pth"):
        read(tmp_path / "none.pth")


@pytest.mark.parametrize("form", [zipped, in_a_row])
def test_damage_anywhere_is_refused_or_does_no_harm(file, form):
    content = form(described(a_dict(x=tensor(), y=tensor(offset=3, shape=(3,), strides=(1,)))))
    for length in range(0, len(content), 7):
        refusal(file(content[:length]))
    rng = random.Random(0)
    for _ in range(500):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            found = read(file(bytes(damaged)))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(array, np.ndarray) for array in found.values())


def test_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"x": SIX.reshape(2, 3)}, path)
    assert_array_equal(read(path)["x"], SIX.reshape(2, 3))
    whole_file = path.read_bytes()
    for length in range(9, len(whole_file), 5):
        path.write_bytes(whole_file[:length])
        assert "safetensors says: " in refusal(path)


def test_safetensors_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ImportError, match=r"pip install 'mulfree_cupy\[import\]'"):
        read(path)


# Networks.

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905


def published(depths, *, widths=(16, 32, 64), deep=False, weight="adder", classes=10, bias=False):
    """The names and shapes of a published residual network."""
    shapes = {"conv1.weight": (widths[0], 3, 7, 7) if bias else (16, 3, 3, 3)}

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", widths[0])
    before = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for i in range(depth):
            block, after = f"layer{stage}.{i}", 4 * width if deep else width
            sides = (1, 3, 1) if deep else (3, 3)
            channels = [before, width, width, after] if deep else [before, width, after]
            for number, side in enumerate(sides, 1):
                filters, seen = channels[number], channels[number - 1]
                shapes[f"{block}.conv{number}.{weight}"] = (filters, seen, side, side)
                norm(f"{block}.bn{number}", filters)
            if i == 0 and (stage > 1 or before != after):
                shapes[f"{block}.downsample.0.{weight}"] = (after, before, 1, 1)
                norm(f"{block}.downsample.1", after)
            before = after
    shapes["fc.weight"] = (classes, before, 1, 1) if weight == "adder" else (classes, before)
    if bias:
        shapes["fc.bias"] = (classes,)
    if weight == "adder":
        norm("bn2", classes)
    rng = np.random.default_rng(0)
    return {
        name: np.array(7)
        if name.endswith("tracked")
        else rng.uniform(0.5, 1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


IMAGENET = {"widths": (64, 128, 256, 512), "bias": True, "classes": 12}
NETWORKS = {
    "adder-resnet20": published((3, 3, 3)),
    "adder-resnet32": published((5, 5, 5), classes=100),
    "adder-resnet18": published((2, 2, 2, 2), **IMAGENET),
    "adder-resnet50": published((3, 4, 6, 3), deep=True, **IMAGENET),
    "conv-resnet18": published((2, 2, 2, 2), weight="weight", **IMAGENET),
    "conv-resnet50": published((3, 4, 6, 3), deep=True, weight="weight", **IMAGENET),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_array_finds_its_place(tmp_path, name):
    state = NETWORKS[name]
    for prefix in ("", "module."):
        path = saved(tmp_path / "net.pth", {prefix + key: a for key, a in state.items()})
        found = imported(path, name)
        ours = found.weights
        kind = "adder" if name.startswith("adder") else "weight"
        second = state[f"layer2.0.downsample.0.{kind}"]
        block = [k for k in ours if np.array_equal(ours[k], second)]
        assert len(block) == 1 and block[0].endswith("shortcut.layers.0.weight")
        numbers = sorted(float(a.sum()) for k, a in state.items() if not k.endswith("tracked"))
        if name.startswith("adder"):
            assert numbers == sorted(float(a.sum()) for a in ours.values())
        for key in ("conv1.weight", "bn1.running_var", "fc.weight"):
            assert_array_equal(ours[key], state[key].reshape(ours[key].shape))
        last = max((k for k in state if k.startswith("layer") and f".{kind}" in k), key=str)
        assert any(np.array_equal(a, state[last]) for a in ours.values())
    assert found.shape == models.default_shape(name) | {"classes": len(state["fc.weight"])}
    mean = data.CIFAR_MEAN if found.shape["size"] == 32 else (123.675, 116.28, 103.53)
    assert_allclose(found.mean, mean)
    assert found.classes == tuple(CIFAR10) if "20" in name else found.classes[:2] == ("0", "1")


def test_logits_that_are_not_normalised_stay(tmp_path):
    """torchvision's have no bn2."""
    network = imported(
        saved(tmp_path / "net.pth", NETWORKS["conv-resnet18"]), "conv-resnet18"
    ).model
    logits = Tensor(np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32))
    assert_allclose(network.eval().bn2(logits).data, logits.data, rtol=1e-6)


def test_what_does_not_fit_is_listed(tmp_path, capsys):
    state = dict(NETWORKS["adder-resnet20"])
    state["conv1.weight"] = np.ones((16, 1, 3, 3), np.float32)
    state["layer3.2.conv2.adder"] = state["layer3.2.conv2.adder"].astype(np.int64)
    state["bn2.bias"] = np.full(10, np.nan, np.float32)
    state["bn2.weight"] = np.full(10, 1e300)
    del state["layer1.0.bn1.running_var"]
    state["extra\n"] = SIX
    path, out = saved(tmp_path / "net.pth", state), tmp_path / "net.npz"
    arguments = ["import", str(path), "--model", "adder-resnet20", "--out", str(out)]
    assert cli.main(arguments) == 1 and not out.exists()
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == f"mulfree: {path} does not fit adder-resnet20:"
    assert lines == [
        "  other: conv1.weight is float32 (16, 1, 3, 3), not float (16, 3, 3, 3)",
        "  missing: layer1.0.bn1.running_var (16,)",
        "  other: layer3.2.conv2.adder is int64 (64, 64, 3, 3), not float (64, 64, 3, 3)",
        "  not finite: bn2.weight (10,)",
        "  not finite: bn2.bias (10,)",
        r"  unknown: 'extra\n' (6,)",
    ]
    for model, told in (("adder-resnet32", "missing: layer1.3.conv1.adder"), ("lenet", "not amon")):
        assert cli.main([*arguments[:3], model, *arguments[4:]]) == 1
        assert told in capsys.readouterr().err
    state = {"fc.weight": np.zeros((10**5, 1), np.float32)}
    with pytest.raises(ValueError, match="net.pth cannot be imported: .*classes must be at most"):
        imported(saved(path, state), "adder-resnet20")


@pytest.fixture
def pictures(tmp_path):
    """Pictures of CIFAR-10's classes."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name in CIFAR10:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_the_command_writes_what_evaluate_reads(tmp_path, pictures, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "net.pth", NETWORKS["adder-resnet20"])
    command = ["import", str(path), "--model", "adder-resnet20"]
    assert cli.main(command) == 0
    assert "adder-resnet20, 272,484 parameters, 10 classes" in capsys.readouterr().out
    assert cli.main(command) == 1
    assert "net.npz exists already; choose another --out" in capsys.readouterr().err
    found = checkpoint.load("net.npz")
    assert (found.data, found.epoch, found.history.seconds) == (None, 0, [])
    assert_allclose(found.std, data.CIFAR_STD)
    assert cli.main(["evaluate", "net.npz", "--data", str(pictures)]) == 0
    assert cli.main(["calibrate", "net.npz", "--data", str(pictures), "--images", "40"]) == 0
    assert "of 10 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was trained on other images"):
        Training.resume("net.npz", *data.load(pictures))
    (tmp_path / "names.txt").write_text("".join(f"{i}th\n" for i in range(10)))
    named = [*command, "--classes", "names.txt", "--out", "named/net.npz"]
    assert cli.main(named) == 0 and os.listdir("named") == ["net.npz"]
    assert checkpoint.load("named/net.npz").classes[3] == "3th"
    (tmp_path / "names.txt").write_text("one\n")
    assert cli.main([*command, "--classes", "names.txt", "--out", "other.npz"]) == 1
    assert "classes must be 10 names, got 1" in capsys.readouterr().err


# With PyTorch, where it is installed.


def twin(torch):
    """A ResNet-20 as AdderNet's is published: the same modules by the same names."""
    from torch import nn
    from torch.nn import functional

    class Adder(nn.Module):
        def __init__(self, before, after, side, stride=1, padding=0):
            super().__init__()
            self.adder = nn.Parameter(torch.randn(after, before, side, side))
            self.window = {"kernel_size": side, "stride": stride, "padding": padding}

        def forward(self, x):
            side = (x.shape[2] + 2 * self.window["padding"] - self.window["kernel_size"]) // (
                self.window["stride"]
            ) + 1
            columns = functional.unfold(x, **self.window)[:, None]
            weight = self.adder.flatten(1)[None, :, :, None]
            return -(columns - weight).abs().sum(2).unflatten(2, (side, side))

    class Block(nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.conv1, self.bn1 = Adder(before, after, 3, stride, 1), nn.BatchNorm2d(after)
            self.conv2, self.bn2 = Adder(after, after, 3, 1, 1), nn.BatchNorm2d(after)
            self.downsample = None
            if stride > 1:
                self.downsample = nn.Sequential(
                    Adder(before, after, 1, stride), nn.BatchNorm2d(after)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            before = 16
            for stage, width in enumerate((16, 32, 64), 1):
                blocks = [Block(before, width, 1 if stage == 1 else 2)]
                blocks += [Block(width, width, 1) for _ in range(2)]
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
                before = width
            self.fc, self.bn2 = nn.Conv2d(64, 10, 1, bias=False), nn.BatchNorm2d(10)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.bn2(self.fc(functional.avg_pool2d(x, 8))).flatten(1)

    torch.manual_seed(0)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the running statistics are those of the one batch
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.mark.parametrize("zipping", [True, False])
@pytest.mark.parametrize("parallel", [False, True])
def test_the_published_network_computes_the_same(tmp_path, zipping, parallel):
    torch = pytest.importorskip("torch")
    network = twin(torch)
    path = tmp_path / "net.pth"
    whole_network = torch.nn.DataParallel(network) if parallel else network
    state = whole_network.state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=zipping)
    images = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    with torch.no_grad(), no_grad():
        theirs = network(torch.from_numpy(images)).numpy()
        ours = imported(path, "adder-resnet20").model.eval()(Tensor(images)).data
    assert np.abs(theirs).max() > 0.5
    assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    # As many programs for ImageNet save it, and the whole network, which is code.
    torch.save({"epoch": 3, "state_dict": state, "best": 0.5}, path)
    assert imported(path, "adder-resnet20").weights.keys()
    torch.save(torch.nn.Linear(2, 3), path, _use_new_zipfile_serialization=zipping)
    assert "asks for 'torch.nn.modules.linear.Linear'" in refusal(path)


def test_dtypes_and_views_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    numbers = torch.arange(24).reshape(2, 3, 4)
    state = {str(d)[6:]: numbers.to(d) for d in (torch.half, torch.double, torch.uint8, torch.bool)}
    state |= {"turned": numbers.float().transpose(0, 2), "part": numbers.float()[1, :, 1:3]}
    state |= {"images": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
        torch.save(state, tmp_path / "net.pth", **options)
        found = read(tmp_path / "net.pth")
        assert found.keys() == state.keys()
        for name, array in found.items():
            assert_array_equal(array, state[name].numpy())
            assert array.dtype == state[name].numpy().dtype
