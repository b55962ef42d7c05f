"""The tape: tensors that record the operations that made them, and backpropagation."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mulfree_cupy import arrays
from mulfree_cupy.arrays import Array
from mulfree_cupy.autograd import changes
from mulfree_cupy.autograd.rules import RULES, SURROGATES

_recording = contextvars.ContextVar("recording", default=True)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside it nothing is recorded: for evaluation and for optimisers.

    Examples
    --------
    >>> from mulfree_cupy.autograd import Tensor, no_grad
    >>> weight = Tensor([1.0, 2.0], requires_grad=True)
    >>> with no_grad():
    ...     (weight * 2).requires_grad
    False
    """
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Node:
    """One operation of the tape: inputs, options, and the pullback that its rule returned."""

    __slots__ = ("fingerprints", "inputs", "operation", "options", "pullback")

    def __init__(
        self,
        operation: str,
        inputs: tuple[Tensor, ...],
        options: dict[str, Any],
        pullback: Callable | None,
        fingerprints: list[changes.Fingerprint],
    ):
        self.operation, self.inputs, self.options = operation, inputs, options
        self.pullback, self.fingerprints = pullback, fingerprints

    def free(self) -> None:
        """Release the arrays; the empty node marks the graph as freed."""
        self.pullback, self.inputs, self.options, self.fingerprints = None, (), {}, []


class Tensor:
    """An array that records the operations that made it, so that `backward` can differentiate it.

    Parameters
    ----------
    data : array or Tensor
        NumPy, CuPy, anything with ``__dlpack__``, or numbers; kept without a copy.
    requires_grad : bool
        Whether `backward` fills `grad`.

    Attributes
    ----------
    data : array
        The values.
    grad : array or None
        The gradient, accumulated over all `backward` calls since it was last None.
    requires_grad : bool
    on_gradient : callable or None
        Applied by `backward` to the gradient before it is accumulated into `grad`.

    Raises
    ------
    TypeError
        If `requires_grad` is set for data that are not floating-point numbers.

    Notes
    -----
    `data` may be replaced at any time, but must not be written to between an operation on it and
    `backward`, which reads it again: see `detect_changes`.

    Examples
    --------
    >>> from mulfree_cupy.autograd import Tensor
    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.])
    """

    __slots__ = ("data", "grad", "node", "on_gradient", "requires_grad")
    __array_ufunc__ = None  # array + tensor calls __radd__

    def __init__(self, data: Any, requires_grad: bool = False):
        (self.data,) = arrays.take("Tensor", data=data.data if isinstance(data, Tensor) else data)
        self.grad: Array | None = None
        self.node: Node | None = None
        self.on_gradient: Callable[[Array], Array] | None = None
        self.requires_grad = requires_grad
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(
                f"Tensor: only floating-point numbers have gradients, got dtype {self.data.dtype}"
            )

    def backward(self, grad: Array | None = None) -> None:
        """Accumulate this tensor's gradients into the `grad` of every tensor it was computed from.

        The graph is freed as it is traversed: a second call raises.

        Parameters
        ----------
        grad : array, shape of this tensor, optional
            The seed; 1 if this tensor has one element.

        Raises
        ------
        RuntimeError
            If nothing was recorded, or the graph has been freed.
        ValueError
            If the tensor has several elements and `grad` is None, or `grad` has another shape.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward: this tensor does not require a gradient: it was made from tensors "
                "without requires_grad, or inside no_grad()"
            )
        with arrays.device_of(self.data):
            self._walk_back(grad)

    def _walk_back(self, grad: Array | None) -> None:
        pending = {id(self): (self._seed(grad), grad is None)}  # and whether it is the tape's own
        order = from_first_to_last(self)
        while order:
            tensor = order.pop()
            gradient, own = pending.pop(id(tensor), (None, False))
            node = tensor.node
            if gradient is None:  # no rule had one for it
                if node is not None:
                    node.free()
                continue
            if node is None:
                if tensor.on_gradient is not None:
                    gradient, own = tensor.on_gradient(gradient), False
                if tensor.grad is not None:
                    gradient, own = tensor.grad + gradient, True
                # asarray: NumPy's arithmetic on 0-d arrays returns scalars.
                gradient = gradient if own else gradient.copy()
                tensor.grad = arrays.namespace(tensor.data).asarray(gradient)
                continue
            changes.check(node.operation, node.fingerprints)
            given = [gradient]
            for source, part in zip(node.inputs, node.pullback(gradient), strict=True):
                if source.requires_grad and part is not None:
                    # A rule may return one array twice, its argument, or a view of it.
                    own = part.base is None and not any(part is other for other in given)
                    given.append(part)
                    part = _unbroadcast(part, source.shape).astype(source.dtype, copy=False)
                    if id(source) in pending:
                        part, own = pending[id(source)][0] + part, True
                    pending[id(source)] = part, own
            node.free()

    def _seed(self, grad: Array | None) -> Array:
        xp = arrays.namespace(self.data)
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    f"backward: a tensor of shape {self.shape} has no one gradient; reduce it to a "
                    "scalar, or pass grad= of its shape"
                )
            return xp.ones_like(self.data)
        _, grad = arrays.take("backward", tensor=self.data, grad=_values(grad))
        if grad.shape != self.shape:
            raise ValueError(
                f"backward: grad must have the tensor's shape {self.shape}, got {grad.shape}"
            )
        return grad.astype(self.dtype, copy=False)

    # NumPy's names.

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def item(self) -> float:
        """The one element as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """A tensor of the same data without history."""
        return Tensor(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise TypeError(
                f"a Tensor of shape {self.shape} that requires a gradient would lose it as a NumPy "
                "array: take its .data, or compute it inside no_grad()"
            )
        if not isinstance(self.data, np.ndarray):
            raise TypeError(
                f"a Tensor of shape {self.shape} on a GPU is not copied silently: take .data.get()"
            )
        return np.array(self.data, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.data)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self) -> str:
        wanted = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data!r}{wanted})"

    def __add__(self, other):
        return apply("add", self, other)

    __radd__ = __add__

    def __sub__(self, other):
        return apply("subtract", self, other)

    def __rsub__(self, other):
        return apply("subtract", other, self)

    def __mul__(self, other):
        return apply("multiply", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return apply("divide", self, other)

    def __rtruediv__(self, other):
        return apply("divide", other, self)

    def __matmul__(self, other):
        return apply("matmul", self, other)

    def __rmatmul__(self, other):
        return apply("matmul", other, self)

    def __neg__(self):
        return apply("negative", self)

    def __abs__(self):
        return apply("absolute", self)

    def __pow__(self, exponent):
        if not _is_number(exponent):
            raise TypeError(f"power: the exponent must be a number, got {exponent!r}")
        return apply("power", self, exponent=_weak(exponent))

    def __getitem__(self, index):
        return apply("getitem", self, index=index)

    def sum(self, axis=None, keepdims=False):
        return apply("sum", self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims=False):
        return apply("mean", self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape):
        return apply("reshape", self, shape=shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        return apply("transpose", self, axes=axes or None)


def apply(operation: str, *inputs: Any, **options: Any) -> Tensor:
    """Run an operation of the table `RULES` on tensors or arrays, and record it.

    Parameters
    ----------
    operation : str
        A name in ``mulfree_cupy.autograd.rules.RULES``.
    *inputs : Tensor, array or number
        Differentiable arguments. A number or NumPy scalar takes the dtype of the first tensor,
        except a fraction with integers and an integer with booleans.
    **options
        Arguments that are not differentiated.

    Notes
    -----
    Nothing is copied: do not write to an input, option or result of an operation before
    `Tensor.backward` has used it, or the gradient is silently wrong. `detect_changes` detects this
    for inputs and results.

    Raises
    ------
    NotImplementedError
        If the table has no such rule.
    """
    if operation not in RULES:
        raise NotImplementedError(
            f"no derivative rule for {operation!r}; there are {', '.join(sorted(RULES))}"
        )
    like = next((t for t in inputs if isinstance(t, Tensor)), None)
    with arrays.device_of(*map(_values, inputs)):
        tensors = tuple(_lift(t, like) for t in inputs)
        arrays.take(operation, **{f"input {i}": t.data for i, t in enumerate(tensors)})
        data, pullback = RULES[operation](*(t.data for t in tensors), **options)
    answer = Tensor(data)
    if _recording.get() and any(t.requires_grad for t in tensors):
        answer.requires_grad = True
        taken = changes.fingerprints(data, [t.data for t in tensors])
        answer.node = Node(operation, tensors, options, pullback, taken)
    return answer


def surrogates(answer: Tensor) -> set[str]:
    """The operations behind `answer` whose gradient is a surrogate."""
    nodes = (t.node for t in from_first_to_last(answer))
    return {node.operation for node in nodes if node is not None} & SURROGATES.keys()


def _lift(value: Any, like: Tensor | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if like is not None and _is_number(value):
        value = _weak(value)
        dtype = np.result_type(like.dtype, value)
        return Tensor(arrays.namespace(like.data).asarray(value, dtype=dtype))
    return Tensor(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating, np.bool_))


def _weak(number: Any) -> int | float:
    """A Python number, whose dtype is weak in NumPy's promotion."""
    if isinstance(number, np.floating):
        return float(number)  # a long double's item() is a long double
    return number.item() if isinstance(number, np.generic) else number


def _values(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def from_first_to_last(root: Tensor) -> list[Tensor]:
    """The tensors that require a gradient, in topological order: each after its inputs.

    Raises
    ------
    RuntimeError
        If the graph has been freed.
    """
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        tensor, expanded = stack.pop()
        if expanded:
            order.append(tensor)
            continue
        if id(tensor) in seen or not tensor.requires_grad:
            continue
        seen.add(id(tensor))
        stack.append((tensor, True))
        if tensor.node is not None:
            if tensor.node.pullback is None:
                raise RuntimeError(
                    f"backward: the graph behind this tensor was freed by an earlier backward (at "
                    f"{tensor.node.operation!r}); compute it again, or add the losses up first"
                )
            stack.extend((source, False) for source in tensor.node.inputs)
    return order


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an input of this shape was broadcast."""
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    repeated = [extra + axis for axis, size in enumerate(shape) if size == 1]
    axes = (*range(extra), *(axis for axis in repeated if gradient.shape[axis] != 1))
    return gradient.sum(axis=axes, keepdims=True).reshape(shape)
