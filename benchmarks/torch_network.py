"""Any network of ordinary convolutions as PyTorch computes it in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from mulfree_cupy.inference import Network


def torch_network(network: Network, layout: torch.memory_format) -> Callable[[np.ndarray], object]:
    """From raw images to logits, layer by layer, in a memory format."""
    arrays = {name: torch.from_numpy(np.array(a)) for name, a in network.arrays.items()}
    for name, a in arrays.items():
        if a.ndim == 4:
            arrays[name] = a.contiguous(memory_format=layout)
    mean, std = (
        torch.from_numpy(a.astype(np.float32)[:, None, None]) for a in (network.mean, network.std)
    )

    @torch.inference_mode()
    def run(images: np.ndarray) -> torch.Tensor:
        x = (torch.from_numpy(images).to(torch.float32) - mean) / std
        answers = {"images": x.contiguous(memory_format=layout)}
        for layer in network.layers:
            inputs = [answers[name] for name in layer.inputs]
            given = {role: arrays[name] for role, name in layer.arrays.items()}
            answers[layer.name] = _LAYERS[layer.op](*inputs, **given, **layer.options)
        return answers[network.layers[-1].name]

    return run


def _conv(x, weight, bias=None, mask=None, **options):
    return functional.conv2d(x, weight, bias, **options)


def _batch_norm(x, residual=None, *, weight, bias, mean, variance, eps, relu):
    y = functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
    if residual is not None:
        y += residual
    return functional.relu_(y) if relu else y


_LAYERS = {
    "conv": _conv,
    "linear": functional.linear,
    "batch_norm": _batch_norm,
    "relu": functional.relu,
    "add": torch.add,
    "max_pool": lambda x, **options: functional.max_pool2d(x, **options),
    "global_average_pool": lambda x: x.mean(dim=(2, 3)),
    "flatten": lambda x: x.flatten(1),
}
