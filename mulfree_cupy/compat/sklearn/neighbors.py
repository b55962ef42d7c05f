"""scikit-learn's ``KNeighborsTransformer`` by L1 distance, on the kernels of `nearest_l1`."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mulfree_cupy import geometry
from mulfree_cupy.compat.sklearn.inputs import taken
from mulfree_cupy.ops.distances import nearest_l1

__all__ = ["L1NeighborsTransformer"]

_MODES = "connectivity", "distance"


class L1NeighborsTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A sparse graph of the nearest samples, for estimators with ``metric="precomputed"``.

    The methods and answers of ``sklearn.neighbors.KNeighborsTransformer`` with
    ``metric="manhattan"``, computed by `mulfree_cupy.nearest_l1`. Samples of uint8, such as images,
    are compared as they are, in a fraction of the time.

    Parameters
    ----------
    mode : {"distance", "connectivity"}
        What the graph holds: distances, or ones.
    n_neighbors : int
        Neighbours of each sample. With ``mode="distance"`` the graph has one more, as each sample
        that was fitted is its own neighbour, which the next estimator does not count.

    Attributes
    ----------
    n_samples_fit_, n_features_in_ : int
        How many samples were fitted, N, of how many numbers, D.
    feature_names_in_ : array of str, shape (D,)
        Where the samples came with names, as columns of a data frame do.

    Notes
    -----
    Of equally near samples the first ones are taken, where scikit-learn takes any. Samples that are
    neither float32, float64 nor uint8 are compared in float64.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from mulfree_cupy.compat.sklearn import L1NeighborsTransformer
    >>> images, digits = load_digits(return_X_y=True)
    >>> images = images.astype("uint8")
    >>> classifier = make_pipeline(
    ...     L1NeighborsTransformer(n_neighbors=5), KNeighborsClassifier(5, metric="precomputed")
    ... )
    >>> score = classifier.fit(images[:1500], digits[:1500]).score(images[1500:], digits[1500:])
    >>> round(float(score), 2)
    0.94
    """

    def __init__(self, *, mode: str = "distance", n_neighbors: int = 5) -> None:
        self.mode = mode
        self.n_neighbors = n_neighbors

    def fit(self, X, y=None) -> L1NeighborsTransformer:
        """Keep the samples; `y` is not used."""
        _check_mode(self, self.mode)
        _count(self, self.n_neighbors)
        self._samples = self._validated(X, reset=True)
        self.n_samples_fit_ = self._n_features_out = len(self._samples)
        return self

    def transform(self, X) -> scipy.sparse.csr_matrix:
        """The graph from each row of `X` to the nearest of the fitted samples.

        Parameters
        ----------
        X : array, shape (M, D)

        Returns
        -------
        csr_matrix, shape (M, N)
            Each row from near to far.
        """
        check_is_fitted(self)
        count = _count(self, self.n_neighbors) + (self.mode == "distance")
        return self.kneighbors_graph(X, n_neighbors=count, mode=self.mode)

    def fit_transform(self, X, y=None) -> scipy.sparse.csr_matrix:
        """`fit`, then `transform` of the same samples."""
        return self.fit(X).transform(X)

    def kneighbors(self, X=None, n_neighbors=None, return_distance=True):
        """The nearest of the fitted samples.

        Parameters
        ----------
        X : array, shape (M, D), optional
            Without it the fitted samples, none being its own neighbour.
        n_neighbors : int, optional
            Instead of the estimator's.
        return_distance : bool

        Returns
        -------
        distances : array, shape (M, n_neighbors)
            If asked for, from near to far.
        indices : array of int64, shape (M, n_neighbors)
        """
        check_is_fitted(self)
        count = _count(self, self.n_neighbors if n_neighbors is None else n_neighbors)
        queries = self._samples if X is None else self._validated(X, reset=False)
        there = self.n_samples_fit_ - (X is None)
        if count > there:
            raise ValueError(
                f"{type(self).__name__}: Expected n_neighbors <= {there} of the n_samples_fit = "
                f"{self.n_samples_fit_} samples, but n_neighbors = {count}, n_samples = "
                f"{len(queries)}"
            )
        distances, indices = nearest_l1(queries, self._samples, count + (X is None))
        if X is None:
            distances, indices = _without_themselves(distances, indices)
        if distances.dtype.kind == "i":
            distances = distances.astype(np.float64)
        return (distances, indices) if return_distance else indices

    def kneighbors_graph(self, X=None, n_neighbors=None, mode="connectivity"):
        """What `kneighbors` finds, as a sparse matrix of shape (M, N)."""
        _check_mode(self, mode)
        distances, indices = self.kneighbors(X, n_neighbors)
        data = distances if mode == "distance" else np.ones(indices.shape)
        starts = np.arange(len(indices) + 1) * indices.shape[1]
        shape = len(indices), self.n_samples_fit_
        return scipy.sparse.csr_matrix((data.ravel(), indices.ravel(), starts), shape=shape)

    def _validated(self, X, reset: bool) -> np.ndarray:
        taken(self, X=X)
        return validate_data(self, X, dtype=[np.float64, np.float32, np.uint8], reset=reset)


def _without_themselves(distances: np.ndarray, indices: np.ndarray) -> tuple:
    """Neighbours of the fitted samples, none its own.

    Where one is not among them, as there are so many equal to it, the first is left out.
    """
    others = indices != np.arange(len(indices))[:, None]
    others[others.all(axis=1), 0] = False
    shape = len(indices), indices.shape[1] - 1
    return distances[others].reshape(shape), indices[others].reshape(shape)


def _count(estimator: BaseEstimator, n_neighbors: object) -> int:
    return geometry.integer(type(estimator).__name__, "n_neighbors", n_neighbors)


def _check_mode(estimator: BaseEstimator, mode: object) -> None:
    if mode not in _MODES:
        raise ValueError(
            f"{type(estimator).__name__}: mode must be one of {', '.join(_MODES)}, got {mode!r}"
        )
