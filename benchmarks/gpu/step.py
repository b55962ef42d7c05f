"""The rest of a training step: batch normalisation and loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.cases import Case
from benchmarks.layers import Layer
from benchmarks.timing import cell, milliseconds, table
from mulfree_cupy.launch import select
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward
from mulfree_cupy.ops.cross_entropy import cross_entropy

RUNGS = select.names("batch_norm")

LAYERS = [Layer(256, 16, 16, 32), Layer(256, 32, 32, 16), Layer(256, 64, 64, 8)]
TINY = [Layer(3, 5, 5, 7)]
EPS = 1e-5


def cases(device: Any, quick: bool, tiny: bool) -> Iterator[Case]:
    """batch_norm with a residual and a ReLU by every rung, its gradients, and cross_entropy."""
    for layer in TINY if tiny else LAYERS:
        yield from _batch_norm(device, layer)
    yield from _cross_entropy(device, 8 if tiny else 256)


def _batch_norm(device: Any, layer: Layer) -> Iterator[Case]:
    xp, rng, axes = device.xp, np.random.default_rng(0), (0, 2, 3)
    x, residual, grad = (
        xp.asarray(rng.standard_normal(layer.x_shape, np.float32)) for _ in range(3)
    )
    weight, bias = (xp.asarray(rng.random(layer.channels, np.float32)) for _ in range(2))
    wide, scale = x.astype(np.float64), weight[:, None, None].astype(np.float64)
    inverse = 1 / xp.sqrt(wide.var(axis=axes, keepdims=True) + EPS)
    hat = (wide - wide.mean(axis=axes, keepdims=True)) * inverse
    y = xp.maximum(hat * scale + bias[:, None, None] + residual, 0)
    flow = xp.where(y > 0, grad, 0).astype(np.float64)
    average, along = ((flow * a).mean(axis=axes, keepdims=True) for a in (xp.ones_like(hat), hat))
    grad_x = scale * inverse * (flow - average - hat * along)
    right = [grad_x, (flow * hat).sum(axis=axes), flow.sum(axis=axes), flow]

    common = {"layer": layer.name, "dtype": "float32", "terms": x.size}
    for kernel in (None, *RUNGS):

        def forward(kernel=kernel):
            return batch_norm(x, weight, bias, residual, relu=True, eps=EPS, kernel=kernel)[0]

        row = {"operation": "batch_norm", "kernel": kernel or "default", "bytes": 3 * x.nbytes}
        yield Case(common | row, forward, lambda: [y], 1e-5)

    answer, mean, variance = (
        xp.asarray(a, np.float32) for a in (y, wide.mean(axis=axes), wide.var(axis=axes))
    )

    def backward():
        return batch_norm_backward(
            grad, x, answer, weight, mean, variance, relu=True, eps=EPS, residual=True
        )

    row = {"operation": "batch_norm_backward", "kernel": "default", "bytes": 5 * x.nbytes}
    yield Case(common | row, backward, lambda: right, 1e-4)


def _cross_entropy(device: Any, batch: int) -> Iterator[Case]:
    xp, rng, classes = device.xp, np.random.default_rng(0), 10
    logits = xp.asarray(rng.standard_normal((batch, classes), np.float32))
    labels = xp.asarray(rng.integers(0, classes, batch).astype(np.int32))
    shares = xp.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    wanted = labels[:, None] == xp.arange(classes)
    right = [-xp.log(shares[wanted]).mean(), (shares - wanted) / batch]

    def call():
        loss, _, gradient = cross_entropy(logits, labels)
        return [loss, gradient]

    row = {"layer": f"{batch} of {classes} classes", "operation": "cross_entropy"}
    row |= {"kernel": "default", "dtype": "float32", "bytes": 2 * logits.nbytes}
    yield Case(row | {"terms": logits.size}, call, lambda: right, 1e-5)


def document(record: dict) -> list[str]:
    """Milliseconds, and for the default the share of a device copy; nothing without rows."""
    names = "batch_norm", "batch_norm_backward", "cross_entropy"
    rows = [row for row in record["rows"] if row["operation"] in names]
    if not rows:
        return []
    copy, body = record.get("copy_bytes_per_second"), []
    for layer, operation in dict.fromkeys((r["layer"], r["operation"]) for r in rows):
        found = {r["kernel"]: r for r in rows if (r["layer"], r["operation"]) == (layer, operation)}
        rungs = [milliseconds(found.get(kernel, {})) for kernel in ("default", *RUNGS)]
        default = found.get("default", {})
        timed = copy and default.get("seconds")
        share = default["bytes"] / default["seconds"]["median"] / copy if timed else None
        body.append([layer, operation, *rungs, cell(share, ".0%")])
    heads = ["layer, ms", "operation", "default", *RUNGS, "of copy speed"]
    return ["Beside the convolutions of a training step:", table(heads, body)]
