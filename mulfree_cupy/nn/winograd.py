"""Convolutions with prunable weights, in the Winograd domain and ordinary ones."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import launch
from mulfree_cupy.arrays import Array, device_of, namespace
from mulfree_cupy.autograd import Tensor, apply
from mulfree_cupy.geometry import PaddingLike, integer
from mulfree_cupy.nn.layers import Conv
from mulfree_cupy.nn.module import Module, Parameter, check_floats
from mulfree_cupy.ops.winograd import (
    WinogradWeights,
    importance,
    initial_variance,
    precondition,
)
from mulfree_cupy.ops.winograd.matrices import checked
from mulfree_cupy.ops.winograd.pruning import highest

GRADIENTS = ("plain", "preconditioned", "importance")


class WinogradConv(Module):
    """3x3 convolution of stride 1 with weights in the Winograd domain, or a Winograd-ReLU layer.

    Parameters
    ----------
    channels, filters : int
    rng : numpy.random.Generator
        Draws the weights. With `relu`: normal with variance `initial_variance`. Without: the
        transform of spatial weights drawn as for `Conv`.
    bias : bool
        Initialised to zero.
    padding
        As in `mulfree_cupy.winograd_conv`.
    relu : bool
        Apply a ReLU to the transformed input: then no ReLU belongs before or after the layer.
    m : int
        Of F(m x m, 3 x 3), 2 or 4.
    points : str
        As in `mulfree_cupy.winograd_matrices`.
    gradient : {"plain", "preconditioned", "importance"}
        How the gradient of `weight` is scaled. ``"preconditioned"``: so that a step equals a step
        on the underlying spatial weights. ``"importance"``: divided by ``(I / min(I))**1.5`` with
        the factors I of `importance`. With the plain one a layer without `relu`, or with m = 4,
        learns slowly, or diverges at learning rates for spatial weights.

    Attributes
    ----------
    weight : Parameter, shape (t, t, K, C)
        Read-only once the layer has run; assign to ``weight.data`` to change it.
    mask : array of bool, shape (t, t, K, C)
        What is left after `prune`; a buffer. Entries of `weight` outside it have no effect.

    Raises
    ------
    ValueError
        If there is no such gradient or transform.

    References
    ----------
    .. [1] X. Liu et al., "Efficient Sparse-Winograd Convolutional Neural Networks", ICLR 2018.
    .. [2] J. Yu, J. Park, M. Naumov, "Spatial-Winograd Pruning Enabling Sparse Winograd
       Convolution", arXiv 1901.02132: both scaled gradients.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        rng: np.random.Generator,
        *,
        bias: bool = False,
        padding: PaddingLike = 1,
        relu: bool = False,
        m: int = 2,
        points: str = "lavin",
        gradient: str = "plain",
    ):
        if gradient not in GRADIENTS:
            raise ValueError(
                f"WinogradConv: gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}"
            )
        checked("WinogradConv", m, points)
        channels = integer("WinogradConv", "channels", channels)
        filters = integer("WinogradConv", "filters", filters)
        self.m, self.points, self.gradient = m, points, gradient
        self.options = {"padding": padding, "relu": relu}
        if relu:
            variance = initial_variance(channels, m, relu=True, points=points)
            deviation = np.sqrt(variance)[:, :, None, None]
            u = rng.normal(size=(*variance.shape, filters, channels)) * deviation
        else:
            w = Conv.draw_weight(rng, (filters, channels, 3, 3), 9 * filters)
            u = WinogradWeights.from_spatial(w, m, points=points).dense
        self.weight = Parameter(u.astype(np.float32))
        self.weight.on_gradient = self._scaled
        self.mask = np.ones(u.shape, bool)
        if bias:
            self.bias = Parameter(np.zeros(filters, np.float32))
        self._packed: tuple[WinogradWeights, ...] = ()

    @property
    def relu(self) -> bool:
        return self.options["relu"]

    @property
    def weights(self) -> WinogradWeights:
        """Weight and mask, repacked only after one of them changed."""
        if self._packed:
            (kept,) = self._packed
            if kept.dense is self.weight.data and kept.mask is self.mask:
                return kept
        weights = WinogradWeights.from_dense(self.weight.data, self.mask, points=self.points)
        self._take(weights)
        return weights

    @property
    def density(self) -> float:
        """Share of the weights that are left."""
        with device_of(self.mask):
            return float(self.mask.mean())

    def prune(self, density: float, score: str = "magnitude", *, block: int = 1) -> None:
        """Prune the weights to this density, as `WinogradWeights.prune` does."""
        self._take(self.weights.prune(density, score, block=block))

    def freeze(self) -> None:
        """`WinogradWeights.freeze` for this layer, until its weights or mask change."""
        self._take(self.weights.freeze())

    def forward(self, x: Tensor) -> Tensor:
        check_floats(self, x)
        bias = [self.bias] if hasattr(self, "bias") else []
        kernel = None
        if self.training:
            # In training the weights change in every step, so sparse packing does not pay.
            kernel = "dense" if launch.device_for(x.data) is None else "1_dense"
        options = {"weights": self.weights, "kernel": kernel, **self.options}
        return apply("winograd_conv", x, self.weight, *bias, **options)

    def _take(self, weights: WinogradWeights) -> None:
        # Arrays shared with `weights` are read-only, so that the packed form cannot become stale.
        self.weight.data, self.mask, self._packed = weights.dense, weights.mask, (weights,)

    def _scaled(self, gradient: Array) -> Array:
        if self.gradient == "preconditioned":
            return precondition(gradient, points=self.points) * self.mask
        if self.gradient == "importance":
            factors = importance(self.m, points=self.points)
            scale = (factors / factors.min()) ** -1.5
            xp = namespace(gradient)
            return gradient * xp.asarray(scale, dtype=gradient.dtype)[:, :, None, None]
        return gradient


class MaskedConv(Conv):
    """Ordinary convolution with pruned weights.

    Parameters
    ----------
    *arguments, **options
        As in `Conv`.

    Attributes
    ----------
    mask : array of bool, shape of weight
        What is left after `prune`; a buffer. Entries of `weight` outside it have no effect.
    """

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        self.mask = np.ones(self.weight.shape, bool)

    @property
    def density(self) -> float:
        """Share of the weights that are left."""
        with device_of(self.mask):
            return float(self.mask.mean())

    def prune(self, density: float, score: str = "magnitude", *, block: int = 1) -> None:
        """Prune to this density by magnitude; pruned weights stay pruned."""
        if score != "magnitude" or block != 1:
            raise ValueError(
                f"MaskedConv.prune: score must be 'magnitude' and block 1, got {score!r} and "
                f"{block}; others are for Winograd weights"
            )
        with device_of(self.mask):
            xp, w = namespace(self.mask), self.weight.data
            # Pruned entries rank below zeros.
            scores = xp.where(self.mask, abs(w), -1)
            self.mask = highest("MaskedConv.prune", scores, density) & self.mask
            self.weight.data = xp.where(self.mask, w, w.dtype.type(0))

    def forward(self, x: Tensor) -> Tensor:
        check_floats(self, x)
        bias = [self.bias] if hasattr(self, "bias") else []
        with device_of(self.mask):
            kept = apply("masked", self.weight, mask=self.mask)
        return apply("conv", x, kept, *bias, **self.options)
