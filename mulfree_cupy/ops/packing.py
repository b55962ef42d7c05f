"""Weights packed once, to be passed in the place of w as often as one likes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.ops.winograd.weights import WinogradWeights

__all__ = ["PackedWeights", "pack"]

_KERNELS = {"conv": "conv", "adder": "adder_conv"}  # of the CPU, by the name of the operation
OPERATIONS = (*_KERNELS, "winograd")


class PackedWeights:
    """Weights in the order in which the CPU kernels read them, made by `pack` and never changed.

    An operation takes them in the place of w and gives the same answer, bit for bit, without
    packing w in every call. Threads may share them; a pickle holds the weights, and is packed anew
    where it is opened. On a GPU, whose kernels read weights as they are, they are just these.

    Attributes
    ----------
    array : array, shape (K, C/groups, kh, kw) or (K, C)
        The weights; read-only.
    op : str
        The operation that they were packed for.
    groups : int
    nbytes : int
        Of the packed form.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> w = mf.pack(np.ones((64, 16, 3, 3), np.float32), op="conv")
    >>> w.shape, w.nbytes >= 4 * 64 * 16 * 9
    ((64, 16, 3, 3), True)
    >>> mf.conv(np.ones((1, 16, 8, 8), np.float32), w, padding=1).shape
    (1, 64, 8, 8)
    """

    def __init__(self, array: Array, op: str, groups: int):
        self._op, self._groups = op, groups
        self._features = self._packed = None  # where there is a packed form
        if arrays.namespace(array) is np:  # over bytes, which nobody can write to
            array = np.ndarray(array.shape, array.dtype, np.ascontiguousarray(array).tobytes())
            kernels = launch.cpu_kernels()
            self._features = kernels.features()
            make = getattr(kernels, f"pack_{_KERNELS[op]}", None)
            if make is not None and array.size:
                self._packed = make(array.reshape(*array.shape[:2], *self._sides(array)), groups)
        self._array = array

    @staticmethod
    def _sides(array: Array) -> tuple[int, int]:
        """Of the kernel: 1x1 where the weights are a matrix."""
        return (*array.shape[2:], 1, 1)[:2]

    @property
    def array(self) -> Array:
        return self._array

    @property
    def op(self) -> str:
        return self._op

    @property
    def groups(self) -> int:
        return self._groups

    @property
    def is_current(self) -> bool:
        """Whether it is packed for the CPU features in use."""
        return self._features in (None, launch.cpu_kernels().features())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return self.array.nbytes if self._packed is None else self._packed.nbytes

    def __repr__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"PackedWeights({self.op}, {sizes}{groups}, {self.dtype}, {_size(self.nbytes)})"

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("packed weights stand for w in a convolution alone; pass their .array")

    def __reduce__(self):
        return PackedWeights, (self.array, self.op, self.groups)

    def __copy__(self) -> PackedWeights:
        return self

    def __deepcopy__(self, memo: dict) -> PackedWeights:
        return self


@arrays.on_device_of_arguments
def pack(w: Array, op: str, *, groups: int = 1, **options: Any) -> PackedWeights | WinogradWeights:
    """Pack weights for an operation, once for many calls.

    Parameters
    ----------
    w : array, shape (K, C/groups, kh, kw), or (K, C) for the shift convolutions
        float32 or float64; for `adder_conv` integers too. It is copied.
    op : {"conv", "adder", "winograd"}
        ``"conv"``: for `conv` and `shift_conv`; ``"adder"``: for `adder_conv` and
        `shift_adder_conv`; ``"winograd"``: for `winograd_conv`.
    groups : int
        Those of the calls.
    **options
        For ``"winograd"``: those of `WinogradWeights.from_spatial`.

    Returns
    -------
    PackedWeights or WinogradWeights
        To be passed in the place of w.

    Raises
    ------
    ValueError
        If there is no such operation, or the shape or the groups do not fit.
    TypeError
        If the dtype is not served, or an option is not for this operation.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> w = mf.pack(np.full((1, 1, 2, 2), 3.0), op="adder")
    >>> mf.adder_conv(np.ones((1, 1, 2, 2)), w)
    array([[[[-8.]]]])
    """
    if op not in OPERATIONS:
        raise ValueError(f"pack: op must be one of {', '.join(OPERATIONS)}, got {op!r}")
    if op == "winograd":
        if groups != 1:
            raise ValueError(f"pack: the Winograd convolution has no groups, got groups={groups}")
        return WinogradWeights.from_spatial(w, **options)
    if options:
        raise TypeError(f"pack: {next(iter(options))} is an option for op='winograd' alone")
    groups = geometry.integer("pack", "groups", groups)
    (taken,) = arrays.take("pack", w=w)
    served = _SERVED[op]
    if taken.dtype not in served:
        names = ", ".join(np.dtype(t).name for t in served)
        raise TypeError(
            f"pack: w must be of one of {names} for op={op!r}, got {taken.dtype}; "
            f"{arrays.conversion(w)}"
        )
    if taken.ndim not in (2, 4) or (taken.ndim == 2 and groups != 1):
        raise ValueError(
            f"pack: w must have shape (K, C/groups, kh, kw), or (K, C) with groups=1, "
            f"got {taken.shape} with groups={groups}"
        )
    if taken.shape[0] % groups:
        raise ValueError(f"pack: groups={groups} must divide the {taken.shape[0]} filters of w")
    return PackedWeights(taken if isinstance(taken, np.ndarray) else taken.copy(), op, groups)


_FLOATS = np.float32, np.float64
_SERVED = {"conv": _FLOATS, "adder": (*_FLOATS, np.uint8, np.int8, np.int16)}


def unpack(function: str, w: Any, op: str, groups: int = 1) -> tuple[Any, PackedWeights | None]:
    """The weights that an operation was given, and what they are packed in, or None."""
    if isinstance(w, WinogradWeights):
        raise ValueError(
            f"{function}: w was packed for op='winograd', pack(w, op={op!r}) is needed"
        )
    if not isinstance(w, PackedWeights):
        return w, None
    if w.op != op:
        raise ValueError(f"{function}: w was packed for op={w.op!r}, pack(w, op={op!r}) is needed")
    if w.groups != groups:
        raise ValueError(
            f"{function}: w, of shape {w.shape}, was packed for groups={w.groups}, "
            f"got groups={groups}"
        )
    return w.array, w


def for_kernels(function: str, packed: PackedWeights | None, w: Array) -> Any:
    """What the CPU kernels take for w: its packed form if there is one, else itself.

    Raises
    ------
    TypeError
        If the call computes in another dtype than the one that was packed.
    ValueError
        If other CPU features are in use now.
    """
    if packed is None:
        return w
    if packed.dtype != w.dtype:
        raise TypeError(
            f"{function}: w was packed as {packed.dtype}, and x makes it {w.dtype}; "
            f"pack w as {w.dtype}"
        )
    if packed._packed is None:
        return w
    if not packed.is_current:
        raise ValueError(
            f"{function}: w was packed for {packed._features}, and "
            f"{launch.cpu_kernels().features()} is in use; pack it again"
        )
    return packed._packed


def _size(nbytes: int) -> str:
    for unit in ("bytes", "KiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} MiB"
