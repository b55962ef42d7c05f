"""The layers of the papers' networks."""

from __future__ import annotations

import math

import numpy as np

from mulfree_cupy.arrays import Array, device_of, namespace
from mulfree_cupy.autograd import Tensor, apply
from mulfree_cupy.communicator import ALONE, Communicator
from mulfree_cupy.geometry import PaddingLike, integer, number, pair
from mulfree_cupy.nn.module import Module, Parameter, check_floats
from mulfree_cupy.ops.packing import PackedWeights, pack


class Packing(Module):
    """A layer that packs its weight once for evaluation on the CPU.

    Meanwhile ``weight.data`` is a read-only copy: assign to it to change it.
    """

    weight: Parameter
    _packed: tuple[Array, PackedWeights] | None = None
    _training = True

    @property
    def training(self) -> bool:
        return self._training

    @training.setter
    def training(self, training: bool) -> None:
        self._training = training
        if training and self._packed is not None:
            self._packed[0].flags.writeable = True
            self._packed = None

    def packed(self, op: str, *others: Tensor, groups: int = 1) -> dict[str, PackedWeights]:
        """The option ``packed`` of the layer's operation for these other inputs; none in training.

        `op` is that of `pack`.
        """
        data = self.weight.data
        floats = data.dtype in (np.float32, np.float64)
        if self.training or not floats or namespace(data) is not np:
            return {}
        if any(getattr(t, "dtype", None) != data.dtype for t in others):
            return {}  # the sums may be of another dtype than the weight
        kept = self._packed
        if kept is None or kept[0] is not data or data.flags.writeable or not kept[1].is_current:
            if data.flags.writeable:  # there may be writeable views of it
                self.weight.data = data = data.copy()
                data.flags.writeable = False
            kept = data, pack(data, op, groups=groups)
            self._packed = kept
        return {"packed": kept[1]}

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_packed"}


class _Windowed(Packing):
    """Base of the convolutions: a weight (K, C/groups, kh, kw)."""

    operation: str
    op: str  # for `pack`
    choices: tuple[str, ...] = ("stride", "padding", "dilation")  # options of the operation

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel_size: int | tuple[int, int],
        rng: np.random.Generator,
        *,
        bias: bool = False,
        groups: int = 1,
        **options: object,
    ):
        layer = type(self).__name__
        for name in options.keys() - self.choices:
            known = ", ".join(("bias",) * (self.op != "binary") + ("groups", *self.choices))
            raise TypeError(f"{layer}: there is no option {name}; there are {known}")
        kernel = pair(layer, "kernel_size", kernel_size, 1)
        groups = integer(layer, "groups", groups)
        channels = integer(layer, "channels", channels)
        filters = integer(layer, "filters", filters)
        for name, size in {"channels": channels, "filters": filters}.items():
            if size % groups:
                raise ValueError(f"{layer}: groups={groups} must divide {name}, got {size}")
        shape = filters, channels // groups, *kernel
        fan_out = filters * math.prod(kernel) / groups
        self.weight = Parameter(
            self.draw_weight(rng, shape, fan_out).astype(np.float32),
            adder=self.op == "adder",
            decays=self.op != "binary",
        )
        if bias:
            self.bias = Parameter(self.draw_bias(rng, filters).astype(np.float32))
        self.options = {"groups": groups, **options}

    def forward(self, x: Tensor) -> Tensor:
        check_floats(self, x)
        bias = [self.bias] if hasattr(self, "bias") else []
        packed = self.packed(self.op, x, *bias, groups=self.options["groups"])
        return apply(self.operation, x, self.weight, *bias, **packed, **self.options)


class Conv(_Windowed):
    """Ordinary convolution.

    Parameters
    ----------
    channels, filters : int
    kernel_size : int or pair of ints
    rng : numpy.random.Generator
        Draws the weights: normal, variance 2 / (K*kh*kw/groups).
    bias : bool
        Initialised to zero.
    stride, padding, dilation, groups
        As in `mulfree_cupy.conv`.

    Attributes
    ----------
    weight : Parameter, shape (filters, channels/groups, kh, kw)
        Packed for evaluation on the CPU, and then a read-only copy until `train`: assign to
        ``weight.data`` to change it.
    """

    operation, op = "conv", "conv"

    @staticmethod
    def draw_weight(rng: np.random.Generator, shape: tuple, fan_out: float) -> np.ndarray:
        return rng.normal(0, np.sqrt(2 / fan_out), shape)

    @staticmethod
    def draw_bias(rng: np.random.Generator, filters: int) -> np.ndarray:
        return np.zeros(filters)


class AdderConv(_Windowed):
    """AdderNet's convolution; must be followed by a `BatchNorm`, without which it does not train.

    Parameters
    ----------
    channels, filters : int
    kernel_size : int or pair of ints
    rng : numpy.random.Generator
        Draws the weights, normal with variance 1, and biases, uniform in [0, 1), as in the
        reference.
    bias : bool
    stride, padding, dilation, groups
        As in `mulfree_cupy.adder_conv`.
    sign : bool
        Train the filters with the true derivative, a sign, for comparison.

    Attributes
    ----------
    weight : Parameter, shape (filters, channels/groups, kh, kw)
        As in `Conv`.
    """

    operation, op = "adder_conv", "adder"
    choices = (*_Windowed.choices, "sign")

    @staticmethod
    def draw_weight(rng: np.random.Generator, shape: tuple, fan_out: float) -> np.ndarray:
        return rng.normal(size=shape)

    @staticmethod
    def draw_bias(rng: np.random.Generator, filters: int) -> np.ndarray:
        return rng.uniform(size=filters)


class BinaryConv(_Windowed):
    """XNOR-Net's convolution of signs; the input must have both signs.

    So it must not follow a ReLU, whose outputs all have the same sign.

    Parameters
    ----------
    channels, filters : int
    kernel_size : int or pair of ints
    rng : numpy.random.Generator
        Draws the weights as for `Conv`, but a tenth as large. Their signs are used in the
        convolution; the real-valued weights are trained.
    groups : int
    stride, padding, dilation, scale
        As in `mulfree_cupy.binary_conv`.

    Attributes
    ----------
    weight : Parameter, shape (filters, channels/groups, kh, kw)
        As in `Conv`. The size of a weight whose sign is used decides how easily the sign changes,
        as a step of training has one size whatever theirs; the scale of a filter is removed by
        the `BatchNorm` after it. So they are drawn small, and weight decay, which would let signs
        change ever more often, does not apply.
    """

    operation, op = "binary_conv", "binary"
    choices = (*_Windowed.choices, "scale")

    @staticmethod
    def draw_weight(rng: np.random.Generator, shape: tuple, fan_out: float) -> np.ndarray:
        return Conv.draw_weight(rng, shape, fan_out) / 10

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel_size: int | tuple[int, int],
        rng: np.random.Generator,
        *,
        groups: int = 1,
        **options: object,
    ):
        if options.get("bias"):
            raise ValueError("BinaryConv: there is no bias; the BatchNorm after it has one")
        super().__init__(channels, filters, kernel_size, rng, groups=groups, **options)


class Linear(Module):
    """``x @ weight.T + bias`` with weight (out_features, in_features)."""

    def __init__(
        self, in_features: int, out_features: int, rng: np.random.Generator, *, bias: bool = True
    ):
        in_features = integer("Linear", "in_features", in_features)
        out_features = integer("Linear", "out_features", out_features)
        bound = 1 / np.sqrt(in_features)
        draw = lambda *shape: rng.uniform(-bound, bound, shape).astype(np.float32)  # noqa: E731
        self.weight = Parameter(draw(out_features, in_features))
        if bias:
            self.bias = Parameter(draw(out_features))

    def forward(self, x: Tensor) -> Tensor:
        check_floats(self, x)
        features = self.weight.shape[1]
        if x.shape[-1] != features:
            raise ValueError(f"Linear: x must have shape (N, {features}), got {x.shape}")
        y = x @ self.weight.transpose()
        return y + self.bias if hasattr(self, "bias") else y


class BatchNorm(Module):
    """Batch normalisation of (N, C, H, W) or, as on AdderNet's logits, (N, C).

    The residual addition and ReLU that follow it in every network are fused: ``y = relu((x - mean)
    / sqrt(variance + eps) * weight + bias + residual)``.

    Parameters
    ----------
    channels : int
    relu : bool
        Whether a ReLU follows.
    decays : bool
        Whether weight decay applies to weight and bias.
    eps, momentum : float
        ``running = (1 - momentum) * running + momentum * batch``, the batch's variance unbiased;
        in place.

    Attributes
    ----------
    communicator : Communicator
        In training the batch is that of all its ranks; `train.Training` sets it.
    """

    communicator: Communicator = ALONE

    def __init__(
        self,
        channels: int,
        *,
        relu: bool = False,
        decays: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        channels = integer("BatchNorm", "channels", channels)
        self.relu = relu
        self.eps = number("BatchNorm", "eps", eps)
        self.momentum = number("BatchNorm", "momentum", momentum)
        self.weight = Parameter(np.ones(channels, np.float32), decays=decays)
        self.bias = Parameter(np.zeros(channels, np.float32), decays=decays)
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.training:
            running = self.running_mean, self.running_var
            statistics = {"running": running, "momentum": self.momentum}
            statistics["communicator"] = self.communicator
        else:
            statistics = {"mean": self.running_mean, "variance": self.running_var}
        inputs = [x, self.weight, self.bias] + ([] if residual is None else [residual])
        return apply("batch_norm", *inputs, relu=self.relu, eps=self.eps, **statistics)


class ReLU(Module):
    """``max(x, 0)``."""

    def forward(self, x: Tensor) -> Tensor:
        return apply("relu", x)


class _Pool(Module):
    """Base of MaxPool and AvgPool."""

    operation: str

    def __init__(self, kernel_size: int, *, stride: int | None = None, padding: PaddingLike = 0):
        self.options = {
            "kernel_size": kernel_size,
            "stride": kernel_size if stride is None else stride,
            "padding": padding,
        }

    def forward(self, x: Tensor) -> Tensor:
        return apply(self.operation, x, **self.options)


class MaxPool(_Pool):
    """Largest value of each window; padding must be smaller than kernel_size."""

    operation = "max_pool"


class AvgPool(_Pool):
    """Mean of each window, zero padding included; float64 for integers."""

    operation = "avg_pool"


class GlobalAveragePool(Module):
    """Mean of each plane: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(axis=(2, 3))


class Flatten(Module):
    """(N, C, H, W) -> (N, C*H*W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


class Dropout(Module):
    """Zero a fraction of the values in training and scale up the rest; float64 for integers.

    Parameters
    ----------
    share : float
        Fraction of the values to drop.
    rng : numpy.random.Generator
        Draws the masks.
    """

    def __init__(self, share: float, rng: np.random.Generator):
        share = number("Dropout", "share", share)
        if share >= 1:
            raise ValueError(f"Dropout: share must be in [0, 1), got {share}")
        self.share, self.rng = share, rng

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        kept = self.rng.random(x.shape, dtype=np.float32) >= self.share
        with device_of(x.data):
            dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
            mask = namespace(x.data).asarray(kept.astype(dtype) / dtype.type(1 - self.share))
        return apply("dropout", x, mask=mask)


class Sequential(Module):
    """Layers one after another."""

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
