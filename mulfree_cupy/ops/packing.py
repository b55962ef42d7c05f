"""Weights packed once, to be passed instead of w in any number of calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.launch import binary
from mulfree_cupy.ops.spatial import as_filters
from mulfree_cupy.ops.winograd.weights import WinogradWeights

__all__ = ["PackedWeights", "pack"]

_KERNELS = {  # of the CPU, by the name of the operation
    "conv": "conv",
    "adder": "adder_conv",
    "binary": "binary_conv",
}
OPERATIONS = (*_KERNELS, "winograd")
MOST_BITS = 4  # of a low-bit adder


class PackedWeights:
    """Immutable weights in the memory layout of the kernels, made by `pack`.

    An operation takes them instead of w and gives the same result, bit for bit, without packing w
    in every call. They are thread-safe; a pickle holds the plain weights, which are packed again
    when loaded. On a GPU only weights of `binary_conv`, and of `adder_conv` with `bits`, are
    packed: the other kernels read plain weights.

    Attributes
    ----------
    array : array, shape (K, C/groups, kh, kw), or as given to `pack`
        The weights; read-only.
    op : str
        The operation that they were packed for.
    groups : int
    bits : int or None
        For a low-bit adder.
    scale : array, shape (K,), or None
        For a binary convolution, the mean of ``abs(w)`` of each filter.
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

    def __init__(self, array: Array, op: str, groups: int, bits: int | None = None):
        self._op, self._groups, self._bits = op, groups, bits
        self._scale = filter_scale(array) if op == "binary" and array.size else None
        self._features = self._packed = None  # set if there is a packed form
        if arrays.namespace(array) is np:  # backed by bytes, which are immutable
            array = np.ndarray(array.shape, array.dtype, np.ascontiguousarray(array).tobytes())
            kernels = launch.cpu_kernels()
            self._features = kernels.features()
            make = getattr(kernels, f"pack_{kernel_name(op, bits)}", None)
            if make is not None and array.size:
                self._packed = make(as_filters(array), groups)
        elif (op == "binary" or bits is not None) and array.size:
            device = launch.device_for(array)
            taken = as_filters(arrays.contiguous(array))
            self._packed = binary.pack_weights(device, taken, groups, bits)
        self._array = array

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
    def bits(self) -> int | None:
        return self._bits

    @property
    def scale(self) -> Array | None:
        return self._scale

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
        bits = f", bits={self.bits}" if self.bits else ""
        size = _size(self.nbytes)
        return f"PackedWeights({self.op}, {sizes}{groups}{bits}, {self.dtype}, {size})"

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            "packed weights can only be passed as w of a convolution; pass their .array"
        )

    def __reduce__(self):
        return PackedWeights, (self.array, self.op, self.groups, self.bits)

    def __copy__(self) -> PackedWeights:
        return self

    def __deepcopy__(self, memo: dict) -> PackedWeights:
        return self


@arrays.on_device_of_arguments
def pack(
    w: Array, op: str, *, groups: int = 1, bits: int | None = None, **options: Any
) -> PackedWeights | WinogradWeights:
    """Pack weights for an operation, once for many calls.

    Parameters
    ----------
    w : array, shape (K, C/groups, kh, kw), or (K, C) for the shift convolutions
        float32 or float64; for `adder_conv` integers too. It is copied. Or in 1-D or 3-D, as the
        operation takes it.
    op : {"conv", "adder", "binary", "winograd"}
        ``"conv"``: for `conv` and `shift_conv`; ``"adder"``: for `adder_conv` and
        `shift_adder_conv`; ``"binary"``: for `binary_conv`; ``"winograd"``: for `winograd_conv`.
    groups : int
        As in the calls.
    bits : int, optional
        For ``"adder"`` and w of uint8: as in the calls of `adder_conv`.
    **options
        For ``"winograd"``: as in `WinogradWeights.from_spatial`.

    Returns
    -------
    PackedWeights or WinogradWeights
        To be passed instead of w.

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
        check_bits("pack", bits, op=op)
        if groups != 1:
            raise ValueError(f"pack: the Winograd convolution has no groups, got groups={groups}")
        return WinogradWeights.from_spatial(w, **options)
    if options:
        raise TypeError(f"pack: {next(iter(options))} is an option for op='winograd' only")
    groups = geometry.integer("pack", "groups", groups)
    (taken,) = arrays.take("pack", w=w)
    served = _SERVED[op]
    if taken.dtype not in served:
        names = ", ".join(np.dtype(t).name for t in served)
        raise TypeError(
            f"pack: w must be of one of {names} for op={op!r}, got {taken.dtype}; "
            f"{arrays.conversion(w)}"
        )
    if not 2 <= taken.ndim <= 5 or (taken.ndim == 2 and groups != 1):
        raise ValueError(
            f"pack: w must have shape (K, C/groups, kh, kw), or one in 1-D or 3-D, or "
            f"(K, C) with groups=1, got {taken.shape} with groups={groups}"
        )
    if taken.shape[0] % groups:
        raise ValueError(f"pack: groups={groups} must divide the {taken.shape[0]} filters of w")
    taken = taken if isinstance(taken, np.ndarray) else taken.copy()
    return PackedWeights(taken, op, groups, check_bits("pack", bits, op=op, w=taken))


_FLOATS = np.float32, np.float64
_SERVED = {
    "conv": _FLOATS,
    "adder": (*_FLOATS, np.uint8, np.int8, np.int16),
    "binary": _FLOATS,
}


def kernel_name(op: str, bits: int | None) -> str:
    """The CPU kernel of an operation."""
    return _KERNELS[op] if bits is None else f"{_KERNELS[op]}_{bits}bit"


def check_bits(function: str, bits: Any, *, op: str = "adder", **operands: Array) -> int | None:
    """The bits of a low-bit adder, from 1 to 4, whose operands must be of uint8; None stays None.

    Raises
    ------
    TypeError
        If `bits` is not an int, an operand has another dtype, or the operation is not the adder.
    ValueError
        If `bits` is out of range.
    """
    if bits is None:
        return None
    if op != "adder":
        raise TypeError(f"{function}: bits is an option for op='adder' only")
    bits = geometry.integer(function, "bits", bits)
    if bits > MOST_BITS:
        raise ValueError(f"{function}: bits must be at most {MOST_BITS}, got {bits}")
    for name, array in operands.items():
        if array.dtype != np.uint8:
            raise TypeError(
                f"{function}: {name} must be uint8 with bits={bits}, got {array.dtype}; "
                f"{arrays.conversion(array, 'uint8')}"
            )
    return bits


def filter_scale(w: Array) -> Array:
    """XNOR-Net's scale of each filter, the mean of ``abs(w)``, in the dtype of w."""
    w = arrays.contiguous(w)
    if kernels := launch.compiled_kernels(w, np.float32, np.float64):
        scale = np.empty(len(w), w.dtype)
        kernels.magnitude_means(w.reshape(1, len(w), 1, -1), scale[None])
        return scale
    # A float32 sum of large weights would overflow.
    mean = abs(w).mean(axis=tuple(range(1, w.ndim)), dtype=np.float64)
    return mean.astype(w.dtype, copy=False)


def unpack(
    function: str, w: Any, op: str, groups: int = 1, bits: int | None = None
) -> tuple[Any, PackedWeights | None]:
    """The weights passed to an operation, and their `PackedWeights`, or None."""
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
    if w.bits != bits:
        raise ValueError(
            f"{function}: w, of shape {w.shape}, was packed for bits={w.bits}, got bits={bits}"
        )
    return w.array, w


def for_kernels(function: str, packed: PackedWeights | None, w: Array) -> Any:
    """The argument of the CPU kernels for w: its packed form if there is one, else itself.

    Raises
    ------
    TypeError
        If the call computes in another dtype than that of the packed weights.
    ValueError
        If the CPU features in use have changed.
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


def for_device(function: str, packed: PackedWeights | None, w: Array, kernel: str | None) -> Any:
    """The argument of the bit-wise CUDA kernels for w: its packed form for the default kernel."""
    if kernel is not None or isinstance(w, np.ndarray):  # or emulated, and packed for the CPU
        return w
    return for_kernels(function, packed, w)


def _size(nbytes: int) -> str:
    for unit in ("bytes", "KiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} MiB"
