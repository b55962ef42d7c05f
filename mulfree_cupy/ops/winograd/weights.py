"""Weights in the Winograd domain: dense or sparse, pruned, saved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mulfree_cupy import arrays, files, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.ops.winograd.matrices import checked, importance
from mulfree_cupy.ops.winograd.pruning import highest, sum_filters

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["WinogradWeights"]


class WinogradWeights:
    """Weights of a Winograd convolution: a K x C matrix for each of the t x t tile positions.

    Made by `from_spatial`, `from_dense`, `from_sparse` or `load`, and immutable: the packed forms
    for the kernels are cached.

    Attributes
    ----------
    dense : array, shape (t, t, K, C)
        Zero where mask is False; read-only.
    mask : array of bool, shape (t, t, K, C)
        The entries that are part of the model; read-only.
    m : int
        Side of an output tile, 2 or 4; t = m + 2.
    points : str
        Interpolation points, see `winograd_matrices`.
    frozen : bool
        Whether a GPU kernel may be compiled for this mask, see `freeze`.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> w = np.random.default_rng(0).normal(size=(8, 4, 3, 3))
    >>> weights = mf.WinogradWeights.from_spatial(w)
    >>> weights.prune(0.4)
    WinogradWeights(F(2x2, 3x3), K=8, C=4, density 0.400, float64)
    >>> weights.prune(0.4).matrices[0].shape
    (8, 4)
    """

    def __init__(self, dense: Array, mask: Array, points: str, frozen: bool = False):
        self.dense, self.mask, self.points, self.frozen = dense, mask, points, frozen
        self.m = dense.shape[0] - 2
        self._plans = {}
        for array in (dense, mask):
            if arrays.namespace(array) is np:
                array.flags.writeable = False

    @classmethod
    @arrays.on_device_of_arguments
    def from_spatial(
        cls, w: Array, m: int = 2, *, points: str = "lavin", allow_float16: bool = False
    ) -> WinogradWeights:
        """The weights that compute an ordinary convolution with w.

        Parameters
        ----------
        w : array, shape (K, C, 3, 3)
            float32 or float64; float16 as in `from_dense`.
        m, points
            As in `winograd_matrices`.
        allow_float16 : bool
            See `from_dense`.

        Returns
        -------
        WinogradWeights
            ``G g G^T`` of each kernel g, computed in float64, in the dtype of w.

        Raises
        ------
        ValueError
            If shapes do not fit, there is no such transform, or float16 would be too coarse.
        TypeError
            If the dtype is not served.

        Examples
        --------
        >>> import numpy as np, mulfree_cupy as mf
        >>> mf.WinogradWeights.from_spatial(np.ones((1, 1, 3, 3))).dense[:, :, 0, 0]
        array([[1.  , 1.5 , 0.5 , 1.  ],
               [1.5 , 2.25, 0.75, 1.5 ],
               [0.5 , 0.75, 0.25, 0.5 ],
               [1.  , 1.5 , 0.5 , 1.  ]])
        """
        name = "WinogradWeights.from_spatial"
        w = _take_weights(name, "w", w)
        geometry.check_rank(name, "w", w.shape, "K, C, 3, 3")
        geometry.check_shape(name, "w", w.shape, (*w.shape[:2], 3, 3), "(K, C, 3, 3)")
        _, G, _ = checked(name, m, points)
        xp = arrays.namespace(w)
        G = xp.asarray(G)
        u = xp.einsum("ia,kcab,jb->ijkc", G, arrays.contiguous(w.astype(np.float64)), G)
        return cls._checked(name, u.astype(w.dtype), None, points, allow_float16)

    @classmethod
    @arrays.on_device_of_arguments
    def from_dense(
        cls,
        u: Array,
        mask: Array | None = None,
        *,
        points: str = "lavin",
        allow_float16: bool = False,
    ) -> WinogradWeights:
        """Weights given in the Winograd domain; they are copied.

        Parameters
        ----------
        u : array, shape (t, t, K, C)
            t is 4 or 6. float32 or float64; or float16 for storage only, `winograd_conv` computes
            in the dtype of x.
        mask : array, shape (t, t, K, C), optional
            Entries where it is zero are pruned; the default keeps those that are not zero.
        points : str
            As in `winograd_matrices`.
        allow_float16 : bool
            Allow float16 for t = 6, where rounding causes errors of up to 1/50 of the output; for t
            = 4 these are 1/500, and it is always allowed.

        Returns
        -------
        WinogradWeights

        Raises
        ------
        ValueError
            If shapes do not fit, there is no such transform, or float16 would be too coarse.
        TypeError
            If the dtype is not served, or u and mask are on different devices.

        Examples
        --------
        >>> import numpy as np, mulfree_cupy as mf
        >>> mf.WinogradWeights.from_dense(np.eye(5) * np.ones((4, 4, 1, 1)))
        WinogradWeights(F(2x2, 3x3), K=5, C=5, density 0.200, float64)
        """
        return cls._checked("WinogradWeights.from_dense", u, mask, points, allow_float16)

    @classmethod
    def _checked(cls, name, u, mask, points, allow_float16):
        u = _take_weights(name, "u", u)
        geometry.check_rank(name, "u", u.shape, "t, t, K, C")
        _check_tile(f"{name}: u must have shape", u.shape)
        checked(name, u.shape[0] - 2, points)
        if u.dtype == np.float16 and u.shape[0] == 6 and not allow_float16:
            raise ValueError(
                f"{name}: F(4x4, 3x3) is too coarse in float16 (errors up to a fiftieth of the "
                f"output), u has shape {u.shape}; use m=2, or pass allow_float16=True"
            )
        xp = arrays.namespace(u)
        dense = u.copy(order="C")
        if mask is None:
            return cls(dense, dense != 0, points)
        _, mask = arrays.take(name, u=u, mask=mask)
        geometry.check_shape(name, "mask", mask.shape, u.shape, "(t, t, K, C)")
        mask = xp.array(mask, dtype=bool, order="C")
        xp.copyto(dense, 0, where=~mask)
        return cls(dense, mask, points)

    @classmethod
    def from_sparse(
        cls, matrices: Sequence[Any], shape: tuple[int, int, int, int], *, points: str = "lavin"
    ) -> WinogradWeights:
        """Weights given as SciPy sparse matrices.

        Parameters
        ----------
        matrices : sequence of t*t sparse matrices or arrays, shape (K, C) each
            float32 or float64, of any SciPy format, position (i, j) at ``i*t + j``. Duplicate
            entries are summed, explicit zeros dropped.
        shape : tuple of 4 ints
            (t, t, K, C).
        points : str
            As in `winograd_matrices`.

        Returns
        -------
        WinogradWeights

        Raises
        ------
        ValueError
            If the number of matrices or a shape does not fit, or there is no such transform.
        TypeError
            If a matrix is not sparse, or has another dtype.

        Examples
        --------
        >>> import scipy.sparse, mulfree_cupy as mf
        >>> mf.WinogradWeights.from_sparse([scipy.sparse.eye_array(3)] * 16, (4, 4, 3, 3)).density
        0.3333333333333333
        """
        sparse = _scipy_sparse()
        name = "WinogradWeights.from_sparse"
        shape = geometry.shape4(name, "shape", shape, "t, t, K, C")
        _check_tile(f"{name}: shape must be", shape)
        try:
            matrices = list(matrices)
        except TypeError:
            raise TypeError(
                f"{name}: matrices must be a sequence of SciPy sparse matrices, "
                f"got {type(matrices).__name__}"
            ) from None
        if len(matrices) != shape[0] * shape[1]:
            raise ValueError(
                f"{name}: shape {shape} needs {shape[0] * shape[1]} matrices, got {len(matrices)}"
            )
        for position, matrix in enumerate(matrices):
            if not sparse.issparse(matrix):
                raise TypeError(
                    f"{name}: matrices[{position}] must be a SciPy sparse matrix or array, "
                    f"got {type(matrix).__name__}"
                )
            if np.result_type(matrix.dtype) not in (np.float32, np.float64):
                raise TypeError(
                    f"{name}: matrices[{position}] must be float32 or float64, got dtype "
                    f"{matrix.dtype} and shape {matrix.shape}"
                )
            geometry.check_shape(name, f"matrices[{position}]", matrix.shape, shape[2:], "(K, C)")
        dense = [matrix.toarray() for matrix in matrices]
        return cls._checked(name, np.stack(dense).reshape(shape), None, points, False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(t, t, K, C)."""
        return self.dense.shape

    @property
    def dtype(self) -> np.dtype:
        return self.dense.dtype

    @property
    def size(self) -> int:
        """Entries, pruned ones included."""
        return self.dense.size

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, pruned ones included."""
        return self.dense.nbytes

    @functools.cached_property
    def nnz(self) -> int:
        """Entries that are not pruned."""
        with arrays.device_of(self.mask):
            return int(self.mask.sum())

    @property
    def density(self) -> float:
        """nnz / size; 0 if there are no entries."""
        return self.nnz / self.size if self.size else 0.0

    def __repr__(self) -> str:
        filters, channels = self.shape[2:]
        return (
            f"WinogradWeights(F({self.m}x{self.m}, 3x3), K={filters}, C={channels}, "
            f"density {self.density:.3f}, {self.dtype})"
        )

    def astype(self, dtype: Any, *, allow_float16: bool = False) -> WinogradWeights:
        """The weights in another dtype, or themselves if they have it already."""
        if self.dtype == dtype:
            return self
        with arrays.device_of(self.dense):
            name, dense = "WinogradWeights.astype", self.dense.astype(dtype)
            converted = self._checked(name, dense, self.mask, self.points, allow_float16)
        return converted.freeze() if self.frozen else converted

    def freeze(self) -> WinogradWeights:
        """The same weights, with permission to compile a GPU kernel for their mask.

        Returns
        -------
        WinogradWeights
            On a GPU, and for m = 2, `winograd_conv` then uses a kernel with the positions of the
            weights in its code and their values in an array. Compiling it takes up to a minute per
            mask: other weights with the same mask reuse it, and CuPy caches it on disk. Layers with
            more than 8192 weights left would need too much code, and use the kernel for all masks.
            On the CPU nothing changes.

        Examples
        --------
        >>> import numpy as np, mulfree_cupy as mf
        >>> weights = mf.WinogradWeights.from_spatial(np.ones((1, 2, 3, 3))).prune(0.1).freeze()
        >>> with mf.emulated_cuda():
        ...     mf.winograd_conv(np.ones((1, 2, 2, 2)), weights).shape
        (1, 1, 2, 2)
        """
        return WinogradWeights(self.dense, self.mask, self.points, frozen=True)

    def prune(self, density: float, score: str = "magnitude", *, block: int = 1) -> WinogradWeights:
        """Keep the highest-scoring entries over all positions of the layer.

        Parameters
        ----------
        density : float, from 0 to 1
            Exactly ``max(1, round(density * size))`` entries are kept; of ties, the first. Pruned
            entries stay pruned, so a density above the current one changes nothing.
        score : str
            ``"magnitude"``, or ``"importance"``: magnitude times the factor of `importance`.
        block : int
            Number of successive filters that share a pattern, by the sum of their scores; `density`
            is then the exact fraction of such groups kept. The CPU kernel ``"blocks"`` needs 4.

        Returns
        -------
        WinogradWeights

        Raises
        ------
        ValueError
            If density, score or block is invalid, or a weight is NaN.
        TypeError
            If density is not a number, or block not an integer.

        Examples
        --------
        >>> import numpy as np, mulfree_cupy as mf
        >>> u = np.arange(16.0).reshape(4, 4, 1, 1)
        >>> mf.WinogradWeights.from_dense(u).prune(0.25).dense.ravel()[-5:]
        array([ 0., 12., 13., 14., 15.])
        """
        name = "WinogradWeights.prune"
        if score not in ("magnitude", "importance"):
            raise ValueError(f"{name}: score must be 'magnitude' or 'importance', got {score!r}")
        block = geometry.integer(name, "block", block)
        with arrays.device_of(self.dense):
            return self._pruned(name, density, score, block)

    def _pruned(self, name, density, score, block):
        xp = arrays.namespace(self.dense)
        scores = abs(self.dense)
        if score == "importance":
            factors = xp.asarray(importance(self.m, points=self.points))
            scores = scores * factors[:, :, None, None]
        left = sum_filters(self.mask, block) > 0
        scores = sum_filters(xp.where(self.mask, scores, 0), block)
        # Pruned entries rank below zeros.
        kept = highest(name, xp.where(left, scores, -1), density)
        kept = xp.repeat(kept, block, axis=2)[:, :, : self.shape[2]]
        return self._checked(name, self.dense, kept & self.mask, self.points, True)

    @functools.cached_property
    def matrices(self) -> tuple[csr_array, ...]:
        """A SciPy CSR array (K, C) for each tile position, (i, j) at ``i*t + j``; needs SciPy.

        They are read-only; copy one to change it.
        """
        csr_array = _scipy_sparse().csr_array
        t, _, filters, channels = self.shape
        indptr, indices, values = self.csr
        made = []
        for position in range(t * t):
            starts = indptr[position * filters : (position + 1) * filters + 1]
            part = slice(starts[0], starts[-1])
            rows = values[part], indices[part], starts - starts[0]
            matrix = csr_array(rows, shape=(filters, channels))
            for array in (matrix.data, matrix.indices, matrix.indptr):
                array.flags.writeable = False
            made.append(matrix)
        return tuple(made)

    @functools.cached_property
    def csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr (t*t*K + 1,), indices, values: the matrices stacked vertically, as one CSR."""
        t, _, filters, channels = self.shape
        mask, dense = _on_host(self.mask), _on_host(self.dense)
        rows = mask.reshape(t * t * filters, channels)
        return _indptr(rows), np.nonzero(rows)[1].astype(np.int32), dense[mask]

    @functools.cached_property
    def blocks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `csr`, for groups of four filters that share a pattern; values (entries, 4)."""
        mask, groups = self.block_mask, _in_fours(self.dense).swapaxes(1, 2)
        return _indptr(mask), np.nonzero(mask)[1].astype(np.int32), groups[mask]

    @functools.cached_property
    def products(self) -> dict[str, int]:
        """Products per tile in each form of `plan`, zeros of blocks included."""
        blocks = 4 * int(np.count_nonzero(self.block_mask))
        return {"dense": self.size, "sparse": self.nnz, "blocks": blocks}

    @functools.cached_property
    def block_mask(self) -> np.ndarray:
        """Where any of four filters has an entry, shape (t*t * ceil(K/4), C)."""
        return _in_fours(self.mask).any(axis=1)

    def plan(self, form: str) -> Any:
        """The weights packed for the CPU kernels, cached.

        Parameters
        ----------
        form : str
            ``"dense"``, ``"sparse"`` or ``"blocks"``.

        Returns
        -------
        object
            For the CPU kernel `winograd_conv`.
        """
        kernels = launch.cpu_kernels()

        def pack():
            if form == "dense":
                return kernels.winograd_dense(self.dense)
            if form == "sparse":
                return kernels.winograd_sparse(*self.csr, self.shape[1:])
            return kernels.winograd_blocks(*self.blocks, self.shape[1:])

        return self.kept(form, kernels, pack)

    def kept(self, form: str | tuple, where: ModuleType, pack: Callable[[], Any]) -> Any:
        """The result of `pack`, cached per form and array module."""
        if (form, where) not in self._plans:
            self._plans[form, where] = pack()
        return self._plans[form, where]

    def __reduce__(self):
        return WinogradWeights, (self.dense, self.mask, self.points, self.frozen)

    def save(self, file: str | PathLike) -> None:
        """Write an .npz file atomically, under exactly this name, with or without the suffix.

        `scipy.sparse.load_npz` reads it too, as one (t*t*K, C) CSR array.
        """
        indptr, indices, values = self.csr
        with files.replaced(file) as opened:
            np.savez(
                opened,
                format=b"csr",
                _is_array=True,
                shape=(len(indptr) - 1, self.shape[3]),
                data=values,
                indices=indices,
                indptr=indptr,
                winograd_shape=self.shape,
                winograd_points=self.points,
            )

    @classmethod
    def load(cls, file: str | PathLike) -> WinogradWeights:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file, or is damaged.
        """
        name = "WinogradWeights.load"
        try:
            saved = files.read_npz(file)
            shape = geometry.shape4(name, "the shape", saved["winograd_shape"], "t, t, K, C")
            dense = np.zeros(shape, saved["data"].dtype)
            mask = np.zeros(shape, bool)
            rows = np.repeat(np.arange(np.prod(shape[:3])), np.diff(saved["indptr"]))
            columns = saved["indices"]
            if columns.size and not 0 <= columns.min() <= columns.max() < shape[3]:
                raise ValueError(f"columns are not below C = {shape[3]}")
            for array, values in ((dense, saved["data"]), (mask, True)):
                array.reshape(len(saved["indptr"]) - 1, shape[3])[rows, columns] = values
            return cls._checked(name, dense, mask, str(saved["winograd_points"]), True)
        except OSError:
            raise
        except Exception as error:  # any error of NumPy for invalid entries
            raise ValueError(
                f"{name}: {file} is not a WinogradWeights file, or is damaged: {error}"
            ) from error


def _take_weights(function: str, name: str, value: Any) -> Array:
    (array,) = arrays.take_floats(function, also=(np.float16,), **{name: value})
    return array


def _check_tile(asked: str, shape: tuple) -> None:
    if shape[0] != shape[1] or shape[0] not in (4, 6):
        raise ValueError(f"{asked} (t, t, K, C) with t = 4 or 6, got {shape}")


def _indptr(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(rows.sum(axis=1))]).astype(np.int64)


def _in_fours(array: Array) -> np.ndarray:
    """(t, t, K, C) as (groups, 4, C), each position's filters padded with zeros."""
    t, _, filters, channels = array.shape
    stacked = _on_host(array).reshape(t * t, filters, channels)
    filled = np.pad(stacked, ((0, 0), (0, -filters % 4), (0, 0)))
    return filled.reshape(t * t * -(-filters // 4), 4, channels)


def _on_host(array: Array) -> np.ndarray:
    return array if arrays.namespace(array) is np else array.get()


def _scipy_sparse() -> ModuleType:
    try:
        from scipy import sparse
    except ImportError as error:
        raise ImportError(
            "WinogradWeights: sparse matrices are SciPy's; pip install 'mulfree_cupy[train]'"
        ) from error
    return sparse
