"""AdderNet's ablation: gradient and learning rate of the filters."""

from __future__ import annotations

import contextlib

from mulfree_cupy import data
from mulfree_cupy.progress import progress
from mulfree_cupy.train.recipe import History, Recipe
from mulfree_cupy.train.trainer import Training

RUNS = {
    "full gradient, adaptive rate": {"model": "adder-lenet", "adder": "adaptive"},
    "full gradient, 100 x rate": {"model": "adder-lenet", "adder": "fixed", "adder_scale": 100.0},
    "sign gradient, adaptive rate": {"model": "sign-adder-lenet", "adder": "adaptive"},
    "sign gradient, 100 x rate": {
        "model": "sign-adder-lenet",
        "adder": "fixed",
        "adder_scale": 100.0,
    },
}


def ablation(
    train: data.Dataset,
    test: data.Dataset,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, History]:
    """Train LeNet-5-BN four times: full or sign gradient, adaptive or fixed larger rate.

    Parameters
    ----------
    train, test : data.Dataset
    epochs, batch_size, seed : int
    device : {"cpu", "cuda"}

    Returns
    -------
    dict of str to History
        One for each of `RUNS`.

    References
    ----------
    .. [1] H. Chen et al., "AdderNet: Do We Really Need Multiplications in Deep Learning?",
       CVPR 2020, section 4.4.
    """
    histories = {}
    for name, changes in progress(RUNS.items(), "runs", "run"):
        recipe = Recipe(**changes, epochs=epochs, batch_size=batch_size, augment="none", seed=seed)
        run = Training(recipe, train, test, device=device)
        # Too large a rate diverges: a curve that ends early is a result too.
        with contextlib.suppress(FloatingPointError):
            run.run(progress=False)
        histories[name] = run.history
    return histories
