"""Network files: plain arrays, and a JSON description."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mulfree_cupy import files
from mulfree_cupy.inference.network import Layer, Network
from mulfree_cupy.inference.predictor import Predictor

FORMAT = 1

# Names of the facts in a training checkpoint and in its recipe. Only names are checked here;
# `train.checkpoint` checks the values.
CHECKPOINT_FORMAT = 5
CHECKPOINT_FACTS = {
    *("format", "recipe", "history", "epoch", "sums", "shape", "classes", "data", "network"),
}
RECIPE_SINCE_5 = {
    *("teacher", "teacher_learns", "temperature", "teacher_share", "teacher_features"),
}
CHECKPOINT_RECIPE = RECIPE_SINCE_5 | {
    *("model", "epochs", "batch_size", "rate", "momentum", "nesterov", "weight_decay"),
    *("adder", "adder_scale", "eta", "augment", "seed", "first_epoch", "calibration"),
}
ENTRY = "network"  # the array, or the metadata, that holds the description
_MISSING = "safetensors files need the package safetensors: pip install 'mulfree_cupy[export]'"


def load(path: str | os.PathLike) -> Predictor:
    """Read a trained network, to be called with images.

    Parameters
    ----------
    path : str or path
        A checkpoint of ``mulfree train`` or ``mulfree prune``, or what ``mulfree export`` or
        ``mulfree quantize`` wrote, in npz or safetensors.

    Returns
    -------
    Predictor

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no such file, or it is a folder.
    ValueError
        If it holds no network, is damaged, of a later format, or inconsistent; the message names
        the file. Nothing in a file is ever executed.
    ImportError
        If it is a safetensors file, and the package safetensors is not installed.

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> predictor = mf.load("mulfree-run/checkpoint.npz")            # doctest: +SKIP
    >>> predictor.predict(images)                                    # doctest: +SKIP
    array(['cat', 'ship'], dtype='<U10')
    """
    return _read(path, Predictor)


def read(path: str | os.PathLike) -> Network:
    """The network of a file that `load` accepts."""
    return _read(path, lambda network: network)


def _read(path: str | os.PathLike, make: Callable[[Network], Any]) -> Any:
    path = files.existing(path, "file")
    if path.suffix in (".pth", ".pt"):
        raise ValueError(f"{path} is PyTorch's; mulfree import makes a checkpoint of one")
    with _naming(path):
        network = _network_in(path)
        if network is not None:
            return make(network)
    from mulfree_cupy.train import checkpoint  # an old file without description: built by name

    return make(checkpoint.load(path).network)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn errors in reading a file into a one-line ValueError that names it."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} holds no network of mulfree: it has no {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path} needs more memory than there is: {error}") from error
    except (
        *(TypeError, ValueError, FloatingPointError, RecursionError, IndexError, OverflowError),
    ) as error:
        what = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{path} holds no network of mulfree, or is damaged: {what}") from error


def _network_in(path: Path) -> Network | None:
    """None for a checkpoint that does not describe its layers."""
    if path.suffix == ".safetensors":
        return _described(*_safetensors(path))
    arrays = files.read_npz(path)
    if ENTRY in arrays:
        return _described(json.loads(str(arrays.pop(ENTRY))), arrays)
    facts = json.loads(str(arrays["facts"]))
    if not isinstance(facts, dict):
        raise TypeError("facts must have entries")
    return _checkpoint(facts, arrays) if ENTRY in facts else None


def is_described(path: str | os.PathLike) -> bool:
    """Whether a file holds only a network, as `save_npz` writes it, and not a training run."""
    if Path(path).suffix == ".safetensors":
        return True
    try:
        return Path(path).is_file() and ENTRY in files.read_npz(path)
    except (OSError, ValueError):  # the reader reports what is wrong
        return False


def save_npz(path: str | os.PathLike, network: Network) -> None:
    """Write a network atomically."""
    with files.replaced(path) as file:
        np.savez(file, **_all_arrays(network), **{ENTRY: np.array(as_json(network))})


def save_safetensors(path: str | os.PathLike, network: Network) -> None:
    """The same as safetensors, with the description among the metadata.

    Raises
    ------
    ImportError
        If the package safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise ImportError(_MISSING) from None
    arrays = {name: np.ascontiguousarray(a) for name, a in _all_arrays(network).items()}
    with files.replaced(path) as file:
        file.write(save(arrays, {ENTRY: as_json(network)}))


def _all_arrays(network: Network) -> dict[str, np.ndarray]:
    return {**network.arrays, "mean": network.mean, "std": network.std}


def as_json(network: Network) -> str:
    """The description of a network, without its arrays."""
    return json.dumps(
        {
            "format": FORMAT,
            "image": list(network.image),
            "classes": list(network.classes),
            "layers": [layer.described() for layer in network.layers],
        }
    )


def _safetensors(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(_MISSING) from None
    try:
        with safe_open(path, framework="np") as file:
            description = json.loads((file.metadata() or {})[ENTRY])
            return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _described(description: Any, arrays: dict[str, np.ndarray]) -> Network:
    """Of what `save_npz` and `save_safetensors` write."""
    if not isinstance(description, dict):
        raise TypeError("its description must have entries")
    _check_format(description, FORMAT)
    image = description["image"]
    if not isinstance(image, list) or len(image) != 3:
        raise TypeError(f"image must be channels, height and width, got {image!r:.50}")
    mean, std = arrays.pop("mean"), arrays.pop("std")
    return _network(description["layers"], arrays, image, description["classes"], mean, std)


def _checkpoint(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Network:
    """The network of a training run, whose arrays have a prefix, among other arrays."""
    _check_format(facts, CHECKPOINT_FORMAT)
    recipe = CHECKPOINT_RECIPE - (set() if facts["format"] >= 5 else RECIPE_SINCE_5)
    for what, given, known in (
        ("facts", facts, CHECKPOINT_FACTS),
        ("recipe", facts["recipe"], recipe),
    ):
        if not isinstance(given, dict):
            raise TypeError(f"{what} must have entries, got {given!r:.50}")
        for fault, names in (("missing", known - given.keys()), ("unknown", given.keys() - known)):
            if names:
                raise ValueError(f"{what}: {', '.join(sorted(names)[:3])} {fault}")
    prefix, shape = "model/", facts["shape"]
    image = [shape["channels"], shape["size"], shape["size"]]
    weights = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    statistics = arrays["mean"], arrays["std"]
    return _network(facts[ENTRY], weights, image, facts["classes"], *statistics)


def _check_format(description: dict[str, Any], latest: int) -> None:
    version = description["format"]
    if type(version) is not int or version < 1:
        raise ValueError(f"format must be a whole number from 1, got {version!r:.50}")
    if version > latest:
        raise ValueError(f"it has format {version}; this version reads up to {latest}")


def _network(layers: Any, arrays: dict, image: list, classes: Any, *statistics) -> Network:
    if not all(type(size) is int and size > 0 for size in image):
        raise ValueError(f"image must be whole numbers from 1, got {image}")
    for what, value in (("layers", layers), ("classes", classes)):
        if not isinstance(value, list):
            raise TypeError(f"{what} must be a list, got {value!r:.50}")
    if not all(isinstance(name, str) for name in classes):
        raise TypeError("classes must be names")
    return Network(
        tuple(Layer.from_description(layer) for layer in layers),
        arrays,
        tuple(image),
        tuple(classes),
        *statistics,
    )
