"""Training objectives: cross-entropy, and distillation from a teacher."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

from mulfree_cupy import nn
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.ops.cross_entropy import cross_entropy, softmax
from mulfree_cupy.train.recipe import Recipe

Shape = tuple[int, ...]
Backward = Callable[..., None]


class CrossEntropy:
    """Cross-entropy of a network's logits and the labels."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, images: Array, labels: Array) -> tuple[Array, Array, Backward]:
        """The loss of a batch, the number of correct predictions, and a function that
        backpropagates the loss times its argument, by default 1."""
        logits = self.model(Tensor(images))
        loss, right, gradient = cross_entropy(logits.data, labels)
        return loss, right, lambda share=1.0: logits.backward(_scaled(gradient, share))


class Distillation:
    """Cross-entropy plus distillation from a teacher's softened outputs and features.

    Parameters
    ----------
    model, teacher : Module
    recipe : Recipe
        Its `temperature`, `teacher_share` and `teacher_features` are T, s and f below. With
        `teacher_learns` the teacher is trained simultaneously, on the labels, and its parameters
        must be in the optimiser; otherwise it is in evaluation mode, and fixed.

    Notes
    -----
    With the network's logits z, the teacher's t, and the soft targets q = softmax(t / T)::

        loss = (1 - s) H(labels, softmax(z)) + s T^2 KL(q, softmax(z / T))
               + f sum_l mean (exp(-|a_l|) - exp(-c_l^2 / 2))^2

    Here a_l and c_l are the network's and the teacher's last normalised activations of each shape
    (C, H, W) that both have. The filters of an adder are nearly Laplace-distributed, those of a
    convolution nearly Gaussian, so the Laplacian kernel of one is compared with the Gaussian kernel
    of the other [2]_.

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    .. [2] Y. Xu et al., "Kernel Based Progressive Distillation for Adder Neural Networks",
       NeurIPS 2020.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, recipe: Recipe):
        self.model, self.teacher, self.learns = model, teacher, recipe.teacher_learns
        self.temperature = recipe.temperature
        self.share, self.features = recipe.teacher_share, recipe.teacher_features

    def __call__(self, images: Array, labels: Array) -> tuple[Array, Array, Backward]:
        logits, features = _with_features(self.model, images)
        if self.learns:
            taught, their_features = _with_features(self.teacher.train(), images)
        else:
            with no_grad():
                taught, their_features = _with_features(self.teacher.eval(), images)
        loss, right, gradient = self._of_answers(logits.data, taught.data, labels)
        gradients = [(logits, gradient)]
        for shape, feature in features.items() if self.features else ():
            if shape in their_features:
                distance, gradient = _distance(feature.data, their_features[shape].data)
                loss = loss + self.features * distance
                gradients.append((feature, self.features * gradient))

        def backward(share=1.0):
            _with_gradients([(tensor, _scaled(g, share)) for tensor, g in gradients]).backward()
            if self.learns:
                taught.backward(_scaled(cross_entropy(taught.data, labels)[2], share))

        return namespace(gradient).asarray(loss), right, backward  # not a NumPy scalar

    def _of_answers(
        self, logits: Array, taught: Array, labels: Array
    ) -> tuple[Array, Array, Array]:
        """Loss, number of correct predictions and gradient, without the feature term."""
        loss, right, gradient = cross_entropy(logits, labels)
        share, temperature = self.share, self.temperature
        if not share:
            return loss, right, gradient
        shares = softmax(taught / temperature)
        soft, _, soft_gradient = cross_entropy(logits / temperature, shares)
        divergence = soft - cross_entropy(taught / temperature, shares)[0]
        loss = (1 - share) * loss + share * temperature**2 * divergence
        return loss, right, (1 - share) * gradient + share * temperature * soft_gradient


def _scaled(gradient: Array, share: float) -> Array:
    return gradient if share == 1 else gradient * gradient.dtype.type(share)


def _with_features(model: nn.Module, images: Array) -> tuple[Tensor, dict[Shape, Tensor]]:
    """The output, and the last normalised activations of each shape."""
    features: dict[Shape, Tensor] = {}

    def watch(module: nn.Module, answer: Tensor, _: float) -> None:
        if isinstance(module, nn.BatchNorm) and answer.ndim == 4:
            features[answer.shape[1:]] = answer

    with nn.observed(watch):
        return model(Tensor(images)), features


def _distance(adder: Array, convolution: Array) -> tuple[Array, Array]:
    """Distance between the kernels of two features, and its gradient by the first."""
    xp = namespace(adder)
    laplacian = xp.exp(-abs(adder))
    difference = laplacian - xp.exp(convolution * convolution * -0.5)
    gradient = xp.sign(adder) * laplacian * difference
    gradient *= -2 / difference.size
    return (difference * difference).mean(), gradient


def _with_gradients(gradients: list[tuple[Tensor, Array]]) -> Tensor:
    """A scalar whose gradient by each tensor is the given array."""
    products = [(tensor * Tensor(gradient)).sum() for tensor, gradient in gradients]
    return functools.reduce(operator.add, products)
