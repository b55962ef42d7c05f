"""An ONNX model in ONNX Runtime, compared with the network it was exported from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mulfree_cupy.config import get_num_threads
from mulfree_cupy.inference import Network, Predictor
from mulfree_cupy.inference.onnx import IMAGES

_REPEATS, _ENOUGH = 9, 1.0  # most runs, and seconds after which to stop
_TOO_LONG = 60.0  # limit for the expected seconds of a batch


@dataclass(frozen=True)
class Comparison:
    """Results for a batch of `images`; the seconds are medians.

    `difference` is the largest between two logits, relative to the largest logit.
    """

    images: int
    difference: float
    ours: float
    theirs: float

    HEAD = f"{'images':>6} {'difference':>10} {'ours ms':>9} {'ONNX Runtime ms':>15}"

    def __str__(self) -> str:
        return (
            f"{self.images:6} {self.difference:10.1e} {1e3 * self.ours:9.2f} "
            f"{1e3 * self.theirs:15.2f}"
        )


def compare(
    path: str | Path, network: Network, batches: tuple[int, ...] = (1, 32)
) -> Iterator[Comparison]:
    """Run a model on random images, with the same number of threads for both.

    Parameters
    ----------
    path : str or path
        Of the model.
    network : Network
        The network it was exported from.
    batches : tuple of int
        Batch sizes; those that would take ONNX Runtime more than a minute are skipped.

    Yields
    ------
    Comparison
        As soon as it is measured.

    Raises
    ------
    ImportError
        If ONNX Runtime is not installed.
    ValueError
        If ONNX Runtime cannot run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:  # of its own classes
        raise ValueError(f"ONNX Runtime does not take {path}: {error}") from error
    predictor, rng, an_image = Predictor(network), np.random.default_rng(0), 0.0
    for count in batches:
        if count * an_image > _TOO_LONG:
            continue
        images = rng.integers(0, 256, (count, *network.image)).astype(np.float32)
        theirs, seconds = _timed(lambda images=images: session.run(None, {IMAGES: images})[0])
        ours, own_seconds = _timed(lambda images=images: predictor(images))
        an_image = seconds / count
        difference = abs(theirs - ours).max() / (abs(ours).max() or 1)
        yield Comparison(count, float(difference), own_seconds, seconds)


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The output, and the median of the seconds after a warm-up run."""
    answer, seconds = run(), []
    while len(seconds) < _REPEATS and sum(seconds) < _ENOUGH:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return answer, statistics.median(seconds)
