"""Cost of a network's plan, step by step, with times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mulfree_cupy.inference.folding import Step, title
from mulfree_cupy.inference.plan import Plan
from mulfree_cupy.inference.predictor import Predictor

REPEATS = 9


@dataclass(frozen=True)
class StepCost:
    """Cost per image, except `seconds`, the median for a whole batch, None if not timed.

    `terms` are the products or differences summed; `nbytes` are read and written, without weights.
    """

    layers: tuple[str, ...]
    op: str
    shape: tuple[int, ...]
    dtype: np.dtype
    terms: int
    nbytes: int
    weights: int
    seconds: float | None = None


@dataclass(frozen=True)
class Profile:
    """The costs of all steps; `images` is the size of the timed batch, `seconds` its time."""

    steps: list[StepCost]
    memory: int
    images: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        widest = max(len(title(step.layers)) for step in self.steps)
        timed = self.seconds is not None
        lines = [
            f"{'step':{widest}} {'kernel':17} {'answer':>16} {'dtype':>8} {'terms':>12} "
            f"{'bytes':>10} {'weights':>10}" + (f" {'ms':>8} {'share':>6}" if timed else "")
        ]
        for step in self.steps:
            shape = " x ".join(map(str, step.shape))
            line = (
                f"{title(step.layers):{widest}} {step.op:17} {shape:>16} {step.dtype!s:>8} "
                f"{step.terms:12,} {step.nbytes:10,} {step.weights:10,}"
            )
            if timed:
                line += f" {1e3 * step.seconds:8.3f} {step.seconds / self.seconds:6.1%}"
            lines.append(line)
        terms, weights = (sum(getattr(s, n) for s in self.steps) for n in ("terms", "weights"))
        lines.append(f"per image: {terms:,} terms; weights: {weights:,} bytes")
        lines.append(f"memory for one image: {self.memory:,} bytes")
        if timed:
            lines.append(f"{self.images} images: {1e3 * self.seconds:.3f} ms")
        return "\n".join(lines)


def costs(plan: Plan) -> Profile:
    """The steps of a plan, not timed."""
    return Profile([_cost(plan, step) for step in plan.steps], plan.nbytes)


def profile(predictor: Predictor, images: np.ndarray) -> Profile:
    """Time a predictor on a batch, step by step.

    Parameters
    ----------
    predictor : Predictor
    images : array, shape (N, C, H, W)

    Returns
    -------
    Profile

    Raises
    ------
    ValueError
        If the predictor has no plan, because there are no compiled kernels.

    Examples
    --------
    >>> import mulfree_cupy as mf, numpy as np
    >>> from mulfree_cupy.inference import profile
    >>> predictor = mf.load("mulfree-run/checkpoint.npz")               # doctest: +SKIP
    >>> print(profile(predictor, np.zeros((128, 3, 32, 32), np.uint8))) # doctest: +SKIP
    """
    plan = predictor.plan
    if plan is None:
        raise ValueError("profile: there is no plan without the compiled CPU kernels")
    predictor(images)
    memory = plan.memory()
    parts = [images[i : i + plan.images] for i in range(0, len(images), plan.images)]
    programs = {len(part): plan.bind(memory, len(part)) for part in parts}
    runs = []
    for _ in range(REPEATS):
        total = np.zeros(2 + len(plan.steps))
        for part in parts:
            program = programs[len(part)]
            np.copyto(program.images, part, casting="unsafe")
            total += program.timed()
        runs.append(total)
    seconds = np.median(runs, axis=0)
    steps = [
        StepCost(
            ("images",),
            "normalise",
            plan.places["images"].shape,
            plan.places["images"].dtype,
            0,
            0,
            0,
            float(seconds[:2].sum()),
        )
    ]
    for step, each in zip(plan.steps, seconds[2:], strict=True):
        steps.append(_cost(plan, step, float(each)))
    whole = float(np.median([run.sum() for run in runs]))
    return Profile(steps, plan.nbytes, len(images), whole)


def _cost(plan: Plan, step: Step, seconds: float | None = None) -> StepCost:
    place = plan.places[step.output]
    weight = step.arrays.get("weight")
    terms = 0
    if step.op == "winograd_conv":
        tile = len(weight) - 2
        tiles = math.prod(-(-size // tile) for size in place.shape[1:])
        terms = tiles * int(np.count_nonzero(weight * step.arrays.get("mask", 1)))
    elif weight is not None and step.op != "batch_norm":
        terms = math.prod(place.shape) * weight[0].size
    moved = 0 if step.op == "flatten" else place.nbytes
    moved += sum(plan.places[name].nbytes for name in step.sources) if moved else 0
    weights = sum(a.nbytes for a in step.arrays.values())
    return StepCost(step.layers, step.op, place.shape, place.dtype, terms, moved, weights, seconds)
