"""JAX: ten templates of digits, learned by gradient descent through the L1 distance.

An adder convolution with filters as large as the image gives minus the distance of each image to
each template. `mulfree_cupy.compat.jax` has it as a function that ``jit``, ``grad`` and ``vmap``
take. Run it as

    python examples/jax_templates.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from mulfree_cupy.compat.jax import adder_conv

TRAINING = 1297  # of the 1797 digits; the other 500 are for testing


def logits(templates, images):
    return adder_conv(images, templates)[:, :, 0, 0]


def loss(templates, images, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits(templates, images)), labels[:, None], 1)


@jax.jit
def step(templates, images, labels):
    mean_loss, gradient = jax.value_and_grad(lambda w: loss(w, images, labels).mean())(templates)
    return templates - 0.5 * gradient, mean_loss


def main():
    digits = load_digits()
    images = jnp.asarray(digits.images[:, None] / 4, jnp.float32)
    labels = jnp.asarray(digits.target)
    train, test = (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:])

    def right(templates):
        return np.mean(logits(templates, test[0]).argmax(axis=1) == test[1])

    templates = jnp.stack([train[0][train[1] == digit].mean(axis=0) for digit in range(10)])
    print(f"mean digits as templates: {right(templates):.1%} of {len(test[1])} right")
    for _ in range(200):
        templates, mean_loss = step(templates, *train)
    print(f"after 200 steps: loss {mean_loss:.3f}, {right(templates):.1%} right")

    def of_one(image, label):
        return jnp.linalg.norm(
            jax.grad(lambda w: loss(w, image[None], label[None]).sum())(templates)
        )

    norms = jax.jit(jax.vmap(of_one))(*train)  # the gradients of each image by itself
    print(f"the hardest of {TRAINING} images, by its gradient, is a {train[1][norms.argmax()]}")


if __name__ == "__main__":
    main()
