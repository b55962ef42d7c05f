"""Networks as scikit-learn estimators: a classifier that trains one, a transformer by one.

Images are rows of pixels, as between scikit-learn's estimators, or arrays of three or four
dimensions.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mulfree_cupy import data, geometry
from mulfree_cupy.compat.sklearn.inputs import taken
from mulfree_cupy.inference import Layer, Network, Predictor, load
from mulfree_cupy.inference.predictor import layout_remedy
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.train import Recipe, Training

__all__ = ["AdderClassifier", "NetworkFeatures"]

Shape = tuple[int, int, int]  # channels, height, width

_PIXELS = [np.float32, np.uint8]  # what is not uint8 becomes float32


class AdderClassifier(ClassifierMixin, BaseEstimator):
    """Classifier of images: trains a network of adder layers, or any of `mulfree_cupy.models`.

    Parameters
    ----------
    model : str, default "adder-lenet"
        The name of a network, as `models.build` takes it.
    image_shape : tuple of ints, optional
        ``(C, H, W)`` or ``(H, W)`` of the images; networks require H = W. By default that of X, or
        if X has rows of pixels, square images of one channel, padded with zeros if necessary.
    epochs, batch_size, rate, momentum, nesterov, weight_decay, adder, eta, augment
        As in `train.Recipe`. `batch_size` is increased slightly if the last batch would have one
        image.
    device : {"cpu", "cuda"}
        Where it is trained. On a GPU, images must be uint8.
    progress : bool
        Show a progress bar and the training accuracy of each epoch.
    random_state : int, RandomState or None
        Seed of the initial weights, the order of the images and the augmentation. With an int the
        same images give the same network, bit for bit, with any number of threads.

    Attributes
    ----------
    classes_ : array, shape (number of classes,)
    n_features_in_ : int
        Pixels of an image, in all channels.
    feature_names_in_ : array of str
        Only if X had column names.
    image_shape_ : tuple of 3 ints
        (C, H, W) of the network's input.
    loss_curve_ : list of float
        The mean loss of each epoch.
    n_iter_ : int
        Number of epochs.
    predictor_ : inference.Predictor
        The trained network as a function of images. Save it with
        ``inference.save_npz(path, classifier.predictor_.network)``.

    See Also
    --------
    NetworkFeatures : The features that a trained network computes before its last layer.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from mulfree_cupy.compat.sklearn import AdderClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = AdderClassifier(epochs=3, random_state=0).fit(X[:1000], y[:1000])
    >>> classifier.image_shape_, bool(classifier.score(X[1000:], y[1000:]) > 0.8)
    ((1, 8, 8), True)
    """

    def __init__(
        self,
        model: str = "adder-lenet",
        *,
        image_shape: tuple[int, ...] | None = None,
        epochs: int = 20,
        batch_size: int = 64,
        rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        adder: str = "adaptive",
        eta: float = 0.2,
        augment: str = "none",
        device: str = "cpu",
        progress: bool = False,
        random_state: Any = None,
    ):
        self.model = model
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.rate = rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.adder = adder
        self.eta = eta
        self.augment = augment
        self.device = device
        self.progress = progress
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> AdderClassifier:
        """Train a new network.

        Parameters
        ----------
        X : array, shape (N, C, H, W), (N, H, W) or (N, pixels)
        y : array, shape (N,)
            Classes.

        Returns
        -------
        AdderClassifier
            self
        """
        rows, y = self._checked(X, y, reset=True)
        self._begin(np.unique(y))
        self._train(rows, y, self.epochs)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> AdderClassifier:
        """Train the network for one epoch on some images, with the initial learning rate.

        The statistics of batch normalisation are computed from the images of the last call, which
        should therefore contain all classes; images are normalised with the mean and standard
        deviation of the first call's.

        Parameters
        ----------
        X, y
            As for `fit`.
        classes : array, optional
            All classes; required in the first call.

        Returns
        -------
        AdderClassifier
            self
        """
        first = not self.__sklearn_is_fitted__()
        if not first and self.model != self._fitted_model:
            raise ValueError(
                f"AdderClassifier: partial_fit goes on with model={self._fitted_model!r}, as it "
                f"was fitted; call fit for model={self.model!r}"
            )
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        rows, y = self._checked(X, y, reset=first)
        if first:
            self._begin(np.unique(classes))
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes={classes!r} is not the same as before, {self.classes_}")
        self._train(rows, y, 1)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities: the softmax of the network's logits.

        Parameters
        ----------
        X
            As for `fit`.

        Returns
        -------
        array of float64, shape (N, number of classes)
        """
        logits = self._logits(X)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most likely classes.

        Parameters
        ----------
        X
            As for `fit`.

        Returns
        -------
        array, shape (N,)
            Of `classes_`.
        """
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def __sklearn_is_fitted__(self) -> bool:
        return getattr(self, "predictor_", None) is not None

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        if not isinstance(self.progress, (bool, np.bool_)):
            raise ValueError(
                f"AdderClassifier: progress must be True or False, got {self.progress!r}"
            )
        taken(self, y=y)
        rows, shape = _rows(self, X, None if reset else self.image_shape_)
        rows, y = validate_data(self, rows, y, reset=reset, dtype=_PIXELS, ensure_min_samples=2)
        check_classification_targets(y)
        if reset:
            self.image_shape_ = _image_shape(shape, rows.shape[1], self.image_shape)
        return rows, y

    def _begin(self, classes: np.ndarray) -> None:
        self.classes_ = classes
        self.loss_curve_: list[float] = []
        self._seed = check_random_state(self.random_state).randint(2**31)
        self.predictor_: Predictor | None = None
        self._fitted_model = self.model

    def _train(self, rows: np.ndarray, y: np.ndarray, epochs: int) -> None:
        labels = np.searchsorted(self.classes_, y)
        known = self.classes_[np.minimum(labels, len(self.classes_) - 1)] == y
        if not known.all():
            raise ValueError(f"y has classes that are not among classes: {np.unique(y[~known])}")
        names = tuple(map(str, self.classes_))
        images = data.Dataset(_filled(rows, self.image_shape_), labels, names, "X")
        recipe = Recipe(
            self.model,
            epochs=epochs,
            batch_size=_batch_size(self.batch_size, len(y)),
            rate=self.rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            adder=self.adder,
            eta=self.eta,
            augment=self.augment,
            seed=(self._seed + len(self.loss_curve_)) % 2**31,
        )
        before = None if self.predictor_ is None else self.predictor_.network
        if before is None and images.images.min() == images.images.max():
            raise ValueError(
                "AdderClassifier: X is constant; the first images must differ, as their standard "
                "deviation normalises all"
            )
        mean, std = data.statistics(images) if before is None else (before.mean, before.std)
        run = Training(recipe, images, None, device=self.device, statistics=(mean, std))
        if before is not None:
            run.model.load_state_dict(before.arrays)
            run.optimiser.load_state_dict(self._velocities)
        self.loss_curve_ += run.run(progress=self.progress).train_loss
        self.n_iter_ = len(self.loss_curve_)
        self._velocities = run.optimiser.state_dict()
        channels, size, _ = self.image_shape_
        self.predictor_ = Predictor(
            network_of(run.model.to(np), channels, size, classes=names, mean=run.mean, std=run.std)
        )

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        rows, _ = _rows(self, X, self.image_shape_)
        rows = validate_data(self, rows, reset=False, dtype=_PIXELS)
        return self.predictor_(_filled(rows, self.image_shape_)).astype(np.float64)


class NetworkFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Transformer to the features that a trained network computes before its last layer.

    Parameters
    ----------
    network : path or Predictor
        A checkpoint, or a file written by ``mulfree export`` or `inference.save_npz`; or the result
        of `mulfree_cupy.load`, or the ``predictor_`` of an `AdderClassifier`.

    Attributes
    ----------
    n_features_in_ : int
        Pixels of an image, in all channels.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import inference, models
    >>> from mulfree_cupy.compat.sklearn import NetworkFeatures
    >>> from mulfree_cupy.nn.description import network_of
    >>> network = network_of(models.build("adder-lenet", size=8), 1, 8)
    >>> features = NetworkFeatures(inference.Predictor(network))
    >>> features.fit_transform(np.zeros((5, 64))).shape
    (5, 84)
    >>> features.get_feature_names_out()[:2]
    array(['networkfeatures0', 'networkfeatures1'], dtype=object)
    """

    def __init__(self, network: str | os.PathLike | Predictor):
        self.network = network

    def fit(self, X: Any, y: Any = None) -> NetworkFeatures:
        """Load the network; nothing is learned from the images.

        Parameters
        ----------
        X : array, shape (N, C, H, W), (N, H, W) or (N, pixels)
        y
            Ignored.

        Returns
        -------
        NetworkFeatures
            self
        """
        predictor = self.network
        if isinstance(predictor, (str, os.PathLike)):
            predictor = load(predictor)
        elif not isinstance(predictor, Predictor):
            raise TypeError(
                "NetworkFeatures: network must be a path or a Predictor, such as the .predictor_ "
                f"of a fitted AdderClassifier, got {predictor!r}"
            )
        features = Predictor(_before_the_last(predictor.network))
        self._images(X, features, reset=True)
        self._features = features
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features of images.

        Parameters
        ----------
        X : array, shape (N, C, H, W), (N, H, W) or (N, pixels)
            Pixel values as in the training of the network, usually 0 to 255.

        Returns
        -------
        array of float32, shape (N, features)
        """
        check_is_fitted(self)
        return self._features(self._images(X, self._features, reset=False))

    def _images(self, X: Any, features: Predictor, reset: bool) -> np.ndarray:
        channels, height, width = shape = features.network.image
        rows, _ = _rows(self, X, shape)
        rows = validate_data(self, rows, reset=reset, dtype=_PIXELS)
        if rows.shape[1] != channels * height * width:
            raise ValueError(
                f"X has {rows.shape[1]} features, and NetworkFeatures is for images of "
                f"{channels} x {height} x {width} pixels"
            )
        return _filled(rows, shape)

    @property
    def _n_features_out(self) -> int:
        return len(self._features.classes)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_features")


def _before_the_last(network: Network) -> Network:
    """The network up to the input of its last layer with weights, flattened."""
    layers = network.layers
    weighing = (layer.op != "batch_norm" and "weight" in layer.arrays for layer in layers)
    last = max(i for i, weighs in enumerate(weighing) if weighs)
    needed, kept = {layers[last].inputs[0]}, []
    for layer in reversed(layers[:last]):
        if layer.name in needed:
            needed |= set(layer.inputs)
            kept.insert(0, layer)
    (source,) = layers[last].inputs
    shape, _ = network.forms[source]
    if len(shape) > 1:
        kept.append(Layer("flatten", "features", (source,)))
    used = {name for layer in kept for name in layer.arrays.values()}
    return Network(
        tuple(kept),
        {name: network.arrays[name] for name in sorted(used)},
        network.image,
        tuple(f"feature{i}" for i in range(math.prod(shape))),
        network.mean,
        network.std,
    )


def _rows(estimator: BaseEstimator, X: Any, wanted: Shape | None) -> tuple[Any, Shape | None]:
    """Images as rows of pixels, and their shape, which must be the `wanted` one if there is one.

    Anything else is returned unchanged, for scikit-learn to check, and has no shape.
    """
    (images,) = taken(estimator, X=X)
    if images is None or images.ndim < 3:
        return X, None
    if images.ndim > 4:
        raise ValueError(
            f"{type(estimator).__name__}: X must have shape (N, C, H, W), (N, H, W) or "
            f"(N, pixels), got {images.shape}"
        )
    shape = (1, *images.shape[1:])[-3:]
    if wanted not in (None, shape):
        served = [f"(N, {', '.join(map(str, sizes))})" for sizes in (wanted, wanted[1:])]
        raise ValueError(
            f"{type(estimator).__name__}: images in X must have shape "
            f"{' or '.join(served[: 1 + (wanted[0] == 1)])}, got shape {images.shape}"
            f"{layout_remedy('X', images.shape, wanted)}"
        )
    return images.reshape(len(images), math.prod(shape)), shape


def _image_shape(own: Shape | None, pixels: int, given: Any) -> Shape:
    """The shape of the network's images: X's own, or the one given for rows of pixels."""
    if given is None and own is not None:
        return own
    if given is None:
        side = max(math.isqrt(pixels - 1) + 1, 2)  # no network takes an image of one pixel
        return 1, side, side
    try:
        sizes = tuple(map(operator.index, given))
    except TypeError:
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(f"AdderClassifier: image_shape must be (C, H, W) or (H, W), got {given!r}")
    shape = (1, *sizes)[-3:]
    if own not in (None, shape):
        raise ValueError(f"AdderClassifier: image_shape={given!r} is not that of X, {own}")
    if math.prod(shape) != pixels:
        raise ValueError(
            f"AdderClassifier: image_shape={given!r} has another number of pixels than X, {pixels}"
        )
    return shape


def _filled(rows: np.ndarray, shape: Shape) -> np.ndarray:
    """Rows of pixels as images in C order, padded with zeros."""
    pixels = math.prod(shape)
    if rows.shape[1] < pixels:
        rows = np.pad(rows, ((0, 0), (0, pixels - rows.shape[1])))
    return np.ascontiguousarray(rows.reshape(-1, *shape))


def _batch_size(asked: int, images: int) -> int:
    """The next number that leaves no batch of a single image, which has no variance."""
    asked = geometry.integer("AdderClassifier", "batch_size", asked)
    return next(size for size in range(asked, max(asked, images) + 2) if images % size != 1)
