"""Other libraries on the same layer, each in its fastest form.

Distances are given the unfolded input, so their time does not include unfolding, unlike ours. Some
peers would need gigabytes or minutes for a whole batch: they run on its first images, and their
seconds are scaled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks import reference
from benchmarks.layers import Layer

SLICE_TERMS = 2**25  # of the published formula one temporary so is 128 MiB, or one image's


@dataclass(frozen=True)
class Peer:
    """One way to compute a layer, or its first `images` images.

    `rows` turns what `call` returns into one row of outputs a pixel; `expected` names whose answer
    that is ("adder_conv" or "conv"), and `tolerance` how near it must come.
    """

    name: str
    call: Callable[[], object]
    images: int
    rows: Callable[[object], np.ndarray]
    expected: str = "adder_conv"
    tolerance: float = 1e-5


def available(layer: Layer, x: np.ndarray, w: np.ndarray, threads: int) -> list[Peer]:
    """The peers that can be imported here."""
    found: list[Peer] = []
    for build in (_scipy, _faiss, _torch):
        try:
            found += build(layer, x, w, threads)
        except ImportError:
            continue
    return found


def missing() -> list[str]:
    """Names of the peers' packages that cannot be imported."""
    absent = []
    for package in ("torch", "scipy", "faiss"):
        try:
            __import__(package)
        except ImportError:
            absent.append(package)
    return absent


def _some(layer: Layer) -> int:
    """Images of the batch that hold about SLICE_TERMS terms, at least one."""
    return max(1, min(layer.batch, SLICE_TERMS * layer.batch // layer.terms))


def _scipy(layer: Layer, x: np.ndarray, w: np.ndarray, threads: int) -> Iterator[Peer]:
    from scipy.spatial.distance import cdist

    images = _some(layer)
    cols = reference.windows(layer, x[:images]).astype(np.float64)  # cdist would convert each time
    filters = w.reshape(len(w), -1).astype(np.float64)
    yield Peer("scipy cdist", lambda: cdist(cols, filters, "cityblock"), images, np.negative)


def _faiss(layer: Layer, x: np.ndarray, w: np.ndarray, threads: int) -> Iterator[Peer]:
    import faiss

    faiss.omp_set_num_threads(threads)
    cols, filters = reference.windows(layer, x), w.reshape(len(w), -1)
    yield Peer(
        "faiss",
        lambda: faiss.pairwise_distances(cols, filters, faiss.METRIC_L1),
        layer.batch,
        np.negative,
    )


def _torch(layer: Layer, x: np.ndarray, w: np.ndarray, threads: int) -> Iterator[Peer]:
    import torch

    torch.set_num_threads(threads)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    filters = tw.reshape(len(tw), -1)

    images = _some(layer)
    some = tx[:images]

    def published():
        cols = torch.nn.functional.unfold(
            some, layer.kernel, padding=layer.padding, stride=layer.stride
        )
        cols = cols.permute(1, 2, 0).reshape(layer.taps, -1)
        return -(filters[:, :, None] - cols[None]).abs().sum(1)

    def published_rows(y):
        return y.reshape(layer.filters, -1, images).permute(2, 1, 0).reshape(-1, layer.filters)

    yield Peer("published", _inference(published), images, published_rows)

    cols = torch.from_numpy(reference.windows(layer, x))
    yield Peer(
        "torch.cdist",
        _inference(lambda: torch.cdist(cols, filters, p=1)),
        layer.batch,
        torch.neg,
    )

    for layout in ("contiguous", "channels_last"):
        form = torch.contiguous_format if layout == "contiguous" else torch.channels_last
        fx, fw = tx.contiguous(memory_format=form), tw.contiguous(memory_format=form)
        yield Peer(
            f"conv2d {layout}",
            _inference(lambda fx=fx, fw=fw: torch.conv2d(fx, fw, **layer.options)),
            layer.batch,
            lambda y: reference.rows(y.numpy()),
            expected="conv",
        )
    yield from _torch_int8(layer, tx, tw)


def _torch_int8(layer: Layer, x, w) -> Iterator[Peer]:
    """int8 convolution with packed weights, answer requantised to 8 bits, as in a network."""
    import torch

    scale = 4.5 / 127  # of normal numbers one in 150 000 lies beyond
    step = 8 * layer.taps**0.5 / 127  # of the answer, whose standard deviation is sqrt(taps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated; they still are the peer
        qx = torch.quantize_per_tensor(x, scale, 128, torch.quint8)
        qx = qx.contiguous(memory_format=torch.channels_last)
        qw = torch.quantize_per_tensor(w, scale, 0, torch.qint8)
    s, p = [layer.stride] * 2, [layer.padding] * 2
    packed = torch.ops.quantized.conv2d_prepack(qw, None, s, p, [1, 1], 1)
    yield Peer(
        "conv2d int8",
        _inference(lambda: torch.ops.quantized.conv2d(qx, packed, step, 128)),
        layer.batch,
        lambda y: reference.rows(y.dequantize().numpy()),
        expected="conv",
        tolerance=0.1,  # 8 bits on every side
    )


def _inference(function: Callable[[], object]) -> Callable[[], object]:
    import torch

    return torch.inference_mode()(function)
