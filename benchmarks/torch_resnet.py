"""ResNet-20 in PyTorch: with nn.Conv2d, and with AdderNet's published formula on broadcasts.

Also ShiftResNet-20 with 3x3 depthwise convolutions in the shifts' place.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional


class BroadcastAdder(torch.autograd.Function):
    """-sum |w - x| over unfolded windows, every difference stored, with the surrogate gradients."""

    @staticmethod
    def forward(context, w, cols):
        """w (K, L), cols (L, P) -> (K, P)."""
        context.save_for_backward(w, cols)
        return -(w[:, :, None] - cols[None]).abs().sum(1)

    @staticmethod
    def backward(context, grad):
        w, cols = context.saved_tensors
        grad_w = ((cols[None] - w[:, :, None]) * grad[:, None]).sum(2)
        scale = w.numel() ** 0.5 / 5 / grad_w.norm().clamp(min=1e-12)
        grad_cols = ((w[:, :, None] - cols[None]).clamp(-1, 1) * grad[:, None]).sum(0)
        return grad_w * scale, grad_cols


class AdderConv2d(nn.Module):
    """AdderNet's layer as it was published: unfold, then broadcast."""

    def __init__(self, channels, filters, kernel_size, stride=1, padding=0, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(filters, channels, kernel_size, kernel_size))
        self.window = dict(kernel_size=kernel_size, stride=stride, padding=padding)

    def forward(self, x):
        n, _, height, width = x.shape
        cols = functional.unfold(x, **self.window).permute(1, 2, 0).flatten(1)
        y = BroadcastAdder.apply(self.weight.flatten(1), cols)
        stride = self.window["stride"]
        size = -(-height // stride), -(-width // stride)
        return y.reshape(len(self.weight), *size, n).permute(3, 0, 1, 2).contiguous()


class Block(nn.Module):
    """Two 3x3 layers and a shortcut."""

    def __init__(self, layer, before, width, stride):
        super().__init__()
        self.conv1 = layer(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = layer(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(
                layer(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DepthwiseBlock(nn.Module):
    """1x1, 3x3 depthwise and 1x1 convolutions and a shortcut."""

    def __init__(self, expansion, before, width, stride):
        super().__init__()
        middle = width * expansion
        self.conv1 = nn.Conv2d(before, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False),
            nn.Conv2d(middle, width, 1, bias=False),
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y))) + self.shortcut(x)


class ResNet20(nn.Module):
    """As mulfree_cupy.models has it: first and last layer ordinary."""

    def __init__(self, block, normalised_logits):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, before = [], 16
        for width in (16, 32, 64):
            for i in range(3):
                blocks.append(block(before, width, 2 if i == 0 and width > 16 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, 10, bias=not normalised_logits)
        self.bn2 = nn.BatchNorm1d(10) if normalised_logits else nn.Identity()

    def forward(self, x):
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        return self.bn2(self.fc(x.mean(dim=(2, 3))))


NETWORKS = {
    "conv": partial(ResNet20, partial(Block, nn.Conv2d), normalised_logits=True),
    "adder": partial(ResNet20, partial(Block, AdderConv2d), normalised_logits=True),
    "depthwise": partial(ResNet20, partial(DepthwiseBlock, 3), normalised_logits=False),
}
