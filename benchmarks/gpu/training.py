"""Training on a GPU: time of a replayed and of a launched step, and as many epochs as time
allows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.devices import Cuda
from benchmarks.timing import cell, table
from mulfree_cupy import data

MODELS = {"adder-resnet20": 0.58, "conv-resnet20": 0.42}  # and their shares of the time
STEPS = 50
BATCH = 256


def rows(device: Cuda, folder: Path, seconds: float) -> Iterator[dict]:
    """A row a model with the time of a step, then one an epoch of a run planned to fit."""
    from mulfree_cupy.train import Recipe, Training  # needs tqdm, which `document` does not

    train, test = data.load(folder)
    for model, share in MODELS.items():
        end = time.perf_counter() + share * seconds
        trial = Training(Recipe(model, epochs=1, batch_size=BATCH), train, test, device="cuda")
        trial._run_epoch(False, [])  # compiles, and captures the step
        start = time.perf_counter()
        trial._run_epoch(False, [])
        epoch = time.perf_counter() - start
        facts = {"model": model, "data": train.name, "images": len(train), "batch": BATCH}
        facts |= _step_seconds(device, trial)
        epochs = max(1, int((end - time.perf_counter()) / (1.03 * epoch)) - 1)
        yield {"training": facts | {"epochs": epochs, "history": []}}
        run = Training(Recipe(model, epochs=epochs, batch_size=BATCH), train, test, device="cuda")
        for _ in range(epochs):
            run._run_epoch(False, [])
            done = {name: numbers[-1] for name, numbers in vars(run.history).items()}
            yield {"epoch": {"model": model, **done}}
        del trial, run
        device.forget()


def _step_seconds(device: Cuda, run: Any) -> dict:
    """Seconds of a step as a graph and launch by launch, and of the host's part of the latter."""
    steps, synchronize = run.device_steps, device.synchronize
    run.model.train()  # an epoch ends with an evaluation
    facts: dict = {"obstacle": steps.replay.obstacle, "replayed": steps.replay.replayed}
    with steps.replay.stream:
        graph, launches = lambda: steps._whole(lambda: None), lambda: steps._step(BATCH)
        for name, step in (("graph", graph), ("launches", launches)):
            steps.feed.start(0)
            step()
            synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            host = time.perf_counter() - start
            synchronize()
            facts[name] = {"seconds": (time.perf_counter() - start) / STEPS, "host": host / STEPS}
    facts["memory_bytes"] = steps.replay._pool.total_bytes()
    return facts


def document(record: dict) -> list[str]:
    """What a step takes, and where the runs ended; nothing without runs."""
    runs = list(record.get("training", {}).values())
    if not runs:
        return []
    body = []
    for run in runs:
        last = run["history"][-1] if run["history"] else {}
        seconds = [epoch["seconds"] for epoch in run["history"]]
        each = sorted(seconds)[len(seconds) // 2] if seconds else None
        body.append(
            [
                run["model"],
                cell(1e3 * run["graph"]["seconds"]),
                cell(1e3 * run["launches"]["seconds"]),
                cell(1e3 * run["launches"]["host"]),
                cell(run["memory_bytes"] / 2**20, ".0f"),
                f"{len(seconds)} of {run['epochs']}",
                cell(each),
                cell(sum(seconds), ".0f"),
                cell(last.get("train_loss"), ".3f"),
                cell(last.get("train_accuracy"), ".2%"),
                cell(last.get("test_accuracy"), ".2%"),
            ]
        )
    heads = [
        *("batches of 256", "ms a step, graph", "launched", "of it host", "MiB"),
        *("epochs", "s per epoch", "s in all", "loss", "training accuracy", "test accuracy"),
    ]
    name, images = runs[0]["data"], runs[0]["images"]
    return [f"Training on {name}, {images} images, cosine schedule:", table(heads, body)]
