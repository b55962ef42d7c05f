"""``mulfree export``."""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = "onnx", "npz", "safetensors"
_BESIDE_NPZ = "-network"  # tells an exported NAME-network.npz from the checkpoint NAME.npz


def add(commands) -> None:
    command = commands.add_parser(
        "export",
        help="write a trained network for other programs",
        description="Write a trained network as an ONNX model, from raw pixels to logits, or as "
        "plain arrays with a description of the layers, in npz or safetensors. An ONNX model is "
        "run in ONNX Runtime, where that is installed, and its outputs and time printed next to "
        "ours.",
    )
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="as written by mulfree train, prune, quantize or export",
    )
    command.add_argument("--to", choices=FORMATS, required=True, help="format of the file")
    command.add_argument(
        "--out",
        metavar="FILE",
        help="default: next to the checkpoint, with its name; in npz NAME-network.npz",
    )
    command.set_defaults(run=_export)


def _export(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import inference

    network = inference.read(chosen.checkpoint)
    out = _place(Path(chosen.checkpoint), chosen.to, chosen.out)
    getattr(inference, f"save_{chosen.to}")(out, network)
    size = f"{out.stat().st_size:,} bytes"
    if chosen.to == "onnx":
        print(f"{out}: {size}, opset {inference.onnx.OPSET}", flush=True)
        _compare(out, network)
    else:
        arrays = sum(array.nbytes for array in network.arrays.values())
        print(f"{out}: {size}, {len(network.layers)} layers, {arrays:,} bytes of arrays")
    return 0


def _place(checkpoint: Path, suffix: str, out: str | None) -> Path:
    """The path of the file, never that of the checkpoint."""
    end = f".{suffix}"
    if out is None:
        name = checkpoint.stem.removesuffix(_BESIDE_NPZ) + (_BESIDE_NPZ if end == ".npz" else "")
        place = checkpoint.with_name(name + end)
    else:
        place = Path(out)
    if place.suffix != end:
        raise ValueError(f"--out must end in {end}, got {out}")
    if place.resolve() == checkpoint.resolve():
        raise ValueError(f"{place} would be overwritten; choose another --out")
    return place


def _compare(path: Path, network) -> None:
    from mulfree_cupy.config import get_num_threads
    from mulfree_cupy.report.export import Comparison, compare

    try:
        import onnxruntime
    except ImportError:
        print("pip install onnxruntime to compare its outputs and time with ours")
        return
    print(f"ONNX Runtime {onnxruntime.__version__}, {get_num_threads()} threads, random images")
    print(Comparison.HEAD, flush=True)
    for row in compare(path, network):
        print(row, flush=True)
    print("difference: the largest, relative to the largest logit")
