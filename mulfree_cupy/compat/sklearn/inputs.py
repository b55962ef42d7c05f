"""What scikit-learn's own checks of arrays would drop or compute unasked."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from mulfree_cupy import arrays

__all__ = ["taken"]


def taken(estimator: BaseEstimator, **arguments: Any) -> list[np.ndarray | None]:
    """The arguments as arrays; None stays None, and what they hold is for scikit-learn to check.

    Raises
    ------
    TypeError
        If one is masked, or not yet computed.
    """
    return arrays.take_in_place(
        type(estimator).__name__, optional=tuple(arguments), check=None, **arguments
    )
