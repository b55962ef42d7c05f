"""Stochastic gradient descent, with AdderNet's adaptive rate for the adder filters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mulfree_cupy import arrays, launch
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.geometry import number
from mulfree_cupy.launch.sgd import sgd
from mulfree_cupy.nn.module import Parameter
from mulfree_cupy.ops.adder import adaptive_rate

ADDER_RATES = ("adaptive", "adaptive in backward", "fixed")


class SGD:
    """Gradient descent with momentum, Nesterov's form, weight decay and the adaptive rate.

    Parameters
    ----------
    parameters : iterable of Parameter
        Duplicates are ignored.
    rate : float
        Learning rate; assign `rate` to follow a schedule.
    momentum, weight_decay : float
        Decay is for the parameters with `decays`.
    nesterov : bool
    adder : {"adaptive", "adaptive in backward", "fixed"}
        How the gradient of adder filters is scaled. ``"adaptive"``: by `adaptive_rate` in `step`,
        after accumulation and after any all-reduce. ``"adaptive in backward"``: the reference's
        order, in which each backward pass scales its gradient before accumulation. ``"fixed"``: by
        the number `adder_scale`.
    eta : float
        Root mean square of a scaled gradient.
    adder_scale : float
        For ``adder="fixed"``; 100 in the AdderNet paper's ablation.

    Raises
    ------
    ValueError
        If a number is out of range or `adder` is unknown.

    Notes
    -----
    ``g = scaled gradient + weight_decay * w``, ``v = momentum * v + g``,
    ``w -= rate * (g + momentum * v if nesterov else v)``.

    On a GPU a step is two launches for up to 120 tensors, without synchronisation. The first step
    copies every parameter to a new array, which later steps update in place: references to
    ``parameter.data`` taken after that see the updates. The rate is stored on the device, where
    assigning to `rate` writes it. So a captured CUDA graph of a step can be replayed, and follows a
    schedule; the other settings are part of the graph.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.nn import Parameter
    >>> from mulfree_cupy.optim import SGD
    >>> w = Parameter(np.array([1.0]))
    >>> optimiser = SGD([w], rate=0.5)
    >>> (w * w).sum().backward()
    >>> optimiser.step()
    >>> w.data
    array([0.])
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        rate: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        adder: str = "adaptive",
        eta: float = 0.2,
        adder_scale: float = 1.0,
    ):
        if adder not in ADDER_RATES:
            raise ValueError(
                f"SGD: adder must be 'adaptive', 'adaptive in backward' or 'fixed', got {adder!r}"
            )
        if nesterov and momentum == 0:
            raise ValueError("SGD: nesterov needs momentum > 0")
        self.parameters = list({id(p): p for p in parameters}.values())
        self._rate, self._rate_on_device = number("SGD", "rate", rate), None
        self.momentum, self.nesterov = number("SGD", "momentum", momentum), nesterov
        self.weight_decay, self.adder = number("SGD", "weight_decay", weight_decay), adder
        self.eta = number("SGD", "eta", eta)
        self.adder_scale = number("SGD", "adder_scale", adder_scale)
        self.velocities: list[Array | None] = [None] * len(self.parameters)
        self._own: list[Array | None] = [None] * len(self.parameters)  # updated in place
        in_backward = (lambda g: adaptive_rate(g, eta)) if adder == "adaptive in backward" else None
        for parameter in self.parameters:
            if parameter.adder:
                parameter.on_gradient = in_backward

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        rate = number("SGD", "rate", rate)
        if rate != self._rate and self._rate_on_device is not None:
            with arrays.device_of(self._rate_on_device):
                self._rate_on_device.fill(rate)
        self._rate = rate

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        in_place: dict[tuple[np.dtype, bool], list[int]] = {}
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            if launch.device_for(parameter.data) and parameter.dtype in (np.float32, np.float64):
                in_place.setdefault((parameter.dtype, parameter.decays), []).append(i)
            else:
                with arrays.device_of(parameter.data):
                    self._step(i)
        for chosen in in_place.values():
            with arrays.device_of(self.parameters[chosen[0]].data):
                self._step_in_place(chosen)

    def _step(self, i: int) -> None:
        parameter = self.parameters[i]
        xp = namespace(parameter.data)  # asarray: NumPy's 0-d results are scalars
        gradient = self._scaled(parameter)
        if self.weight_decay and parameter.decays:
            gradient = gradient + parameter.dtype.type(self.weight_decay) * parameter.data
        if self.momentum:
            velocity = self.velocities[i]
            share = parameter.dtype.type(self.momentum)
            velocity = gradient if velocity is None else share * velocity + gradient
            self.velocities[i] = xp.asarray(velocity)
            gradient = gradient + share * velocity if self.nesterov else velocity
        parameter.data = xp.asarray(parameter.data - parameter.dtype.type(self.rate) * gradient)

    def _step_in_place(self, chosen: list[int]) -> None:
        chosen = sorted(chosen, key=lambda i: not self.parameters[i].adder)
        parameters = [self.parameters[i] for i in chosen]
        if not all(map(self._is_owned, chosen)):
            self._take_over(chosen)
        gradients = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient.shape != parameter.shape or gradient.dtype != parameter.dtype:
                raise ValueError(
                    f"SGD.step: the gradient of a parameter of shape {parameter.shape} and dtype "
                    f"{parameter.dtype} must have these too, got {gradient.shape} and "
                    f"{gradient.dtype}"
                )
            gradients.append(arrays.contiguous(gradient))
        sgd(
            launch.device_for(self._rate_on_device),
            self._rate_on_device,
            gradients,
            [parameter.data for parameter in parameters],
            [self.velocities[i] for i in chosen],
            adders=sum(parameter.adder for parameter in parameters),
            adaptive=self.adder == "adaptive",
            factor={"adaptive": self.eta, "fixed": self.adder_scale}.get(self.adder, 1.0),
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay * parameters[0].decays,
        )

    def _is_owned(self, i: int) -> bool:
        """Whether a parameter's array and its velocity are those that a step updates in place."""
        own, velocity = self._own[i], self.velocities[i]
        if own is not self.parameters[i].data:
            return False
        return not self.momentum or (
            velocity is not None and velocity.dtype == own.dtype and velocity.shape == own.shape
        )

    def _take_over(self, chosen: list[int]) -> None:
        """Copy these parameters to arrays of their own, and the rate to their device."""
        first, *_ = given = [self.parameters[i].data for i in chosen]
        arrays.take("SGD.step", **{f"parameter {i}": a for i, a in zip(chosen, given, strict=True)})
        xp = namespace(first)
        with arrays.device_of(first):
            for i, array in zip(chosen, given, strict=True):
                if self._is_owned(i):
                    continue
                if self._own[i] is not array:
                    self.parameters[i].data = self._own[i] = xp.array(array, order="C")
                if self.momentum:
                    self.velocities[i] = self._velocity(i, xp)
            self._rate_on_device = xp.full(1, self._rate, np.float64)

    def _velocity(self, i: int, xp: Any) -> Array:
        """A copy of the parameter's velocity, or zeros."""
        own, kept = self._own[i], self.velocities[i]
        if kept is None:
            return xp.zeros_like(own)
        if kept.shape != own.shape:
            raise ValueError(
                f"SGD.step: the velocity of a parameter of shape {own.shape} must have it too, got "
                f"{kept.shape}"
            )
        return xp.array(kept, dtype=own.dtype, order="C")

    def _scaled(self, parameter: Parameter) -> Array:
        if parameter.adder and self.adder == "adaptive":
            return adaptive_rate(parameter.grad, self.eta)
        if parameter.adder and self.adder == "fixed":
            return parameter.grad * parameter.dtype.type(self.adder_scale)
        return parameter.grad

    def state_dict(self) -> dict[str, np.ndarray]:
        """The velocities by the position of their parameter."""
        return {
            f"velocity.{i}": np.asarray(v if isinstance(v, np.ndarray) else v.get()).copy()
            for i, v in enumerate(self.velocities)
            if v is not None
        }

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Load the velocities of `state_dict`."""
        for i, parameter in enumerate(self.parameters):
            saved = state.get(f"velocity.{i}")
            if saved is not None and tuple(saved.shape) != parameter.shape:
                raise ValueError(
                    f"SGD.load_state_dict: velocity.{i} must have shape {parameter.shape}, "
                    f"got {tuple(saved.shape)}"
                )
            velocity = self.velocities[i]
            if saved is None:
                self.velocities[i] = None
            elif velocity is not None and self._own[i] is parameter.data:
                with arrays.device_of(velocity):
                    velocity[...] = namespace(velocity).asarray(saved)
            else:
                with arrays.device_of(parameter.data):
                    xp = namespace(parameter.data)
                    self.velocities[i] = xp.array(saved, dtype=parameter.dtype, order="C")
