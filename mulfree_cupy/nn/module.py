"""Base class of layers: named parameters, training and evaluation mode, call."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mulfree_cupy import arrays
from mulfree_cupy.arrays import Array
from mulfree_cupy.autograd import Tensor

_observer = contextvars.ContextVar("observer", default=None)


@contextlib.contextmanager
def observed(callback: Callable[[Module, Tensor, float], None]) -> Iterator[None]:
    """Inside it, `callback` is called with every module that runs, its output and its seconds."""
    token = _observer.set(callback)
    try:
        yield
    finally:
        _observer.reset(token)


class Parameter(Tensor):
    """A tensor that an optimiser updates.

    Parameters
    ----------
    data : array
    adder : bool
        Whether it holds the filters of an adder convolution, whose gradient the optimiser scales by
        AdderNet's adaptive rate.
    decays : bool
        Whether the optimiser's weight decay applies.
    """

    __slots__ = ("adder", "decays")

    def __init__(self, data: Any, adder: bool = False, decays: bool = True):
        super().__init__(data, requires_grad=True)
        self.adder, self.decays = adder, decays


class Module:
    """A layer or network, defined by the Parameters, arrays and Modules among its attributes.

    Subclasses define ``forward``. Parameters and Modules are found in lists, tuples and dicts too.
    Attributes that are NumPy or CuPy arrays are buffers, saved but not trained; scalars such as
    ``np.float32(0.1)`` are not.
    """

    training = True

    def __call__(self, *inputs: Any) -> Tensor:
        callback = _observer.get()
        if callback is None:
            return self.forward(*inputs)
        start = time.perf_counter()
        answer = self.forward(*inputs)
        callback(self, answer, time.perf_counter() - start)
        return answer

    def __repr__(self) -> str:
        contents = _contents(
            {k: v for k, v in vars(self).items() if k[0] != "_" and k != "training"}
        )
        settings = [
            f"{name.removeprefix('options.')}={text}"
            for name, value in contents
            if (text := _short(value))
        ]
        lines = [f"{name}: {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        inside = "".join(f"\n  {line}" for line in lines) + "\n" * bool(lines)
        return f"{type(self).__name__}({', '.join(settings)}{inside})"

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly inside, in the order they were assigned."""
        return ((name, v) for name, v in _contents(vars(self)) if isinstance(v, Module))

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module and all inside it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, Parameter), such as ``("stages.0.conv1.weight", ...)``."""
        for name, _, _, value in self.named_state():
            if isinstance(value, Parameter):
                yield name, value

    def parameters(self) -> list[Parameter]:
        """All Parameters, in order."""
        return [parameter for _, parameter in self.named_parameters()]

    def _state_by_name(self) -> dict[str, tuple[Module, str, Any]]:
        by_name = {}
        for name, *where in self.named_state():
            if name in by_name:
                raise ValueError(
                    f"{type(self).__name__}: two parameters or buffers have the name {name!r}, and "
                    "one of them would not be saved; rename an attribute or a key of a dict"
                )
            by_name[name] = where
        return by_name

    def named_state(self) -> Iterator[tuple[str, Module, str, Any]]:
        """(dotted name, module, attribute, value) of every parameter and buffer."""
        for prefix, module in self.modules():
            for name, value in _contents(vars(module)):
                buffer = name in vars(module) and _is_array(value)
                if buffer or isinstance(value, Parameter):
                    yield f"{prefix}.{name}" if prefix else name, module, name, value

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers as NumPy arrays, by dotted name.

        Raises
        ------
        ValueError
            If two have the same name, as in a dict with the keys 1 and "1".
        """
        return {
            name: _to_numpy(value.data if isinstance(value, Parameter) else value)
            for name, (_, _, value) in self._state_by_name().items()
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Load parameters and buffers.

        Raises
        ------
        TypeError
            If `state` is no mapping.
        ValueError
            If a name is missing or unknown (the message lists them), an array's shape differs from
            the one it replaces, or two have the same name.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                "load_state_dict: state must be a mapping from names to arrays, as state_dict() "
                f"returns it, got {type(state).__name__}; a checkpoint is read by train.load_model"
            )
        own = self._state_by_name()
        missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unknown:
            raise ValueError(
                f"load_state_dict: missing {sorted(missing) or 'nothing'}, "
                f"unknown {sorted(unknown) or 'nothing'}"
            )
        for name, (_, _, value) in own.items():
            if tuple(state[name].shape) != value.shape:
                raise ValueError(
                    f"load_state_dict: {name} must have shape {value.shape}, "
                    f"got {tuple(state[name].shape)}"
                )
        for name, (module, attribute, value) in own.items():
            old = value.data if isinstance(value, Parameter) else value
            with arrays.device_of(old):
                new = arrays.namespace(old).array(state[name], dtype=old.dtype)
            if isinstance(value, Parameter):
                value.data = new
            else:
                setattr(module, attribute, new)

    def train(self, training: bool = True) -> Module:
        """Training mode (batch statistics, dropout), or evaluation mode with ``train(False)``."""
        for _, module in self.modules():
            module.training = training
        return self

    def eval(self) -> Module:
        """Evaluation mode: running statistics, no dropout."""
        return self.train(False)

    def to(self, xp: Any) -> Module:
        """Move parameters and buffers to NumPy or CuPy arrays, in place.

        Integer buffers, the tables of shifts, stay NumPy arrays: the host reads them.
        """
        for _, module, attribute, value in self.named_state():
            if isinstance(value, Parameter):
                value.data = _to(xp, value.data)
                value.grad = None if value.grad is None else _to(xp, value.grad)
            elif value.dtype.kind not in "iu":
                setattr(module, attribute, _to(xp, value))
        return self


def check_floats(layer: Module, x: Any) -> None:
    """Refuse integers, such as the pixels of images that have not been normalised.

    Raises
    ------
    TypeError
    """
    dtype = getattr(x, "dtype", None)
    if dtype is not None and dtype.kind in "biu":
        raise TypeError(
            f"{type(layer).__name__}: x must be of floats, got {dtype} of shape {x.shape}; images "
            "are normalised as in training: by a data.Loader with its mean and std, or by "
            "mulfree_cupy.load(path), which takes raw pixels"
        )


def _contents(container: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of its items, recursively through lists, tuples and dicts."""
    for name, value in container.items():
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", v) for inner, v in _contents(value))
        else:
            yield str(name), value


def _short(value: Any) -> str:
    """A parameter or buffer by its shape, a setting by its value, nothing of all else."""
    if isinstance(value, Parameter) or _is_array(value):
        return str(tuple(value.shape))
    return repr(value) if isinstance(value, (bool, int, float, str, tuple)) else ""


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or arrays.namespace(value) is not np


def _to(xp: Any, array: Array) -> Array:
    return _to_numpy(array) if xp is np else xp.asarray(array)


def _to_numpy(array: Array) -> np.ndarray:
    return array.copy() if isinstance(array, np.ndarray) else array.get()
