"""Derivative rules compared with finite differences along random directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mulfree_cupy import arrays
from mulfree_cupy.autograd.rules import SURROGATES
from mulfree_cupy.autograd.tensor import Tensor, no_grad, surrogates


class GradientError(AssertionError):
    """A gradient that disagrees with finite differences."""


class KinkError(ValueError):
    """The function has a kink too close to the inputs for finite differences."""


def check_gradients(
    function: Callable[..., Tensor],
    *inputs: arrays.Array,
    directions: int = 4,
    step: float = 1e-4,
    rtol: float = 1e-6,
    seed: int = 0,
) -> None:
    """Compare the gradients of a function with central differences.

    Parameters
    ----------
    function : callable
        Takes one Tensor per input and returns a Tensor of any shape.
    *inputs : arrays
        Point at which to check; differentiated in float64.
    directions : int
        Number of random directions in the joint space of all inputs.
    step : float
        Step of the finite differences.
    rtol : float
        Largest difference, relative to the magnitude of the derivative's terms.
    seed : int
        Seed of the directions.

    Raises
    ------
    GradientError
        If a directional derivative disagrees; the message shows both.
    KinkError
        If the function has a kink (``abs`` at 0, ``relu`` at 0) within a step.
    ValueError
        If the function uses an operation whose gradient is a surrogate, such as `adder_conv`: it is
        not a derivative, so finite differences cannot confirm it.

    Notes
    -----
    For the scalar ``s(t) = sum(function(inputs + t * direction) * weights)`` with random weights,
    the derivative at 0 is compared with the five-point central difference. The derivatives from
    the left and from the right must agree, which they do not at a kink.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.autograd import check_gradients
    >>> check_gradients(lambda a, b: a * b, np.ones(3), np.arange(3.0))
    """
    xp = arrays.namespace(inputs[0])
    rng = np.random.default_rng(seed)
    points = [xp.asarray(a, dtype=np.float64) for a in inputs]
    tensors = [Tensor(point, requires_grad=True) for point in points]
    answer = function(*tensors)
    if found := surrogates(answer):
        reasons = "; ".join(f"{name}: {SURROGATES[name]}" for name in sorted(found))
        raise ValueError(
            f"check_gradients: the function uses surrogate gradients, which are no derivatives "
            f"({reasons}); test them against their formula"
        )
    weights = xp.asarray(rng.normal(size=answer.shape))
    answer.backward(weights)
    gradients = [
        xp.zeros_like(point) if tensor.grad is None else tensor.grad
        for tensor, point in zip(tensors, points, strict=True)
    ]

    for _ in range(directions):
        direction = [xp.asarray(rng.choice([-1.0, 1.0], size=p.shape)) for p in points]
        terms = [g * d for g, d in zip(gradients, direction, strict=True)]
        exact = float(sum(term.sum() for term in terms))

        def along(t, direction=direction):
            with no_grad():
                moved = (Tensor(p + t * d) for p, d in zip(points, direction, strict=True))
                return float((function(*moved).data * weights).sum())

        h = step / 2
        far_left, left, here, right, far_right = (along(k * h) for k in (-2, -1, 0, 1, 2))
        difference = (8 * (right - left) - (far_right - far_left)) / (12 * h)
        from_left = (3 * here - 4 * left + far_left) / (2 * h)
        from_right = (4 * right - 3 * here - far_right) / (2 * h)
        size = float(sum(abs(term).sum() for term in terms)) + abs(difference)
        tolerance = rtol * size + 40 * np.finfo(float).eps * abs(here) / h + 1e-12
        if abs(from_right - from_left) > 100 * tolerance:
            raise KinkError(
                f"check_gradients: the derivative is {from_left:.9g} from the left and "
                f"{from_right:.9g} from the right: there is a kink near the inputs; move them away"
            )
        if abs(exact - difference) > tolerance:
            raise GradientError(
                f"check_gradients: the derivative along a direction is {exact:.9g} by the rules "
                f"and {difference:.9g} by differences"
            )
