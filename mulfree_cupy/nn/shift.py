"""Shift layers: alone, and fused with an ordinary or adder 1x1 convolution."""

from __future__ import annotations

import numpy as np

from mulfree_cupy.arrays import Array
from mulfree_cupy.autograd import Tensor, apply
from mulfree_cupy.geometry import integer
from mulfree_cupy.nn.layers import AdderConv, Conv, Packing
from mulfree_cupy.nn.module import Module, Parameter, check_floats
from mulfree_cupy.ops.shift import check_table


class Shift(Module):
    """Shift every channel by a number of pixels; no parameters.

    Parameters
    ----------
    shifts : int array, shape (C, 2)
        (dh, dw) per channel, such as from `mulfree_cupy.modulo_shifts`. A buffer, so that weights
        are saved with their table.
    stride : int or pair of ints
    """

    def __init__(self, shifts: Array, *, stride: int = 1):
        self.shifts, self.stride = np.array(check_table("Shift", "shifts", shifts)), stride

    def forward(self, x: Tensor) -> Tensor:
        return apply("shift", x, shifts=self.shifts, stride=self.stride)


class _ShiftedPointwise(Packing):
    """Base of ShiftConv and ShiftAdderConv: a weight (K, C) after a table of shifts."""

    operation: str
    unshifted: type  # which draws the weights

    def __init__(
        self,
        shifts: Array,
        filters: int,
        rng: np.random.Generator,
        *,
        bias: bool = False,
        stride: int = 1,
    ):
        layer, name = self.unshifted, type(self).__name__
        self.shifts = np.array(check_table(name, "shifts", shifts))
        filters = integer(name, "filters", filters)
        self.stride = stride
        weight = layer.draw_weight(rng, (filters, len(self.shifts)), filters)
        self.weight = Parameter(weight.astype(np.float32), layer.op == "adder")
        if bias:
            self.bias = Parameter(layer.draw_bias(rng, filters).astype(np.float32))

    def forward(self, x: Tensor) -> Tensor:
        check_floats(self, x)
        bias = [self.bias] if hasattr(self, "bias") else []
        options = {"shifts": self.shifts, "stride": self.stride}
        packed = self.packed(self.unshifted.op, x, *bias)
        return apply(self.operation, x, self.weight, *bias, **packed, **options)


class ShiftConv(_ShiftedPointwise):
    """Shift and 1x1 convolution in one pass; only the input is kept for the backward pass.

    Parameters
    ----------
    shifts : int array, shape (C, 2)
        As in `Shift`.
    filters : int
    rng : numpy.random.Generator
        Draws the weights as for `Conv`.
    bias : bool
        Initialised to zero.
    stride : int or pair of ints
    """

    operation, unshifted = "shift_conv", Conv


class ShiftAdderConv(_ShiftedPointwise):
    """Shift and 1x1 adder convolution in one pass: no multiplication; needs a `BatchNorm` after it.

    Parameters
    ----------
    shifts, filters, rng, bias, stride
        As in `ShiftConv`; the weights are drawn as for `AdderConv`.
    """

    operation, unshifted = "shift_adder_conv", AdderConv
