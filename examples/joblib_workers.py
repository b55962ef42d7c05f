"""joblib: a network's predictions by several processes, which share the processors among them.

A predictor is pickled with its weights and plans anew where it arrives. Run it as

    python examples/joblib_workers.py
"""

import joblib
import numpy as np

import mulfree_cupy as mf
from mulfree_cupy import inference, models
from mulfree_cupy.nn.description import network_of


def classes(predictor, images):
    return predictor(images).argmax(axis=1), mf.get_num_threads()


def main():
    network = models.build("adder-lenet", channels=1, size=28, classes=10)
    predictor = inference.Predictor(network_of(network, 1, 28, mean=128, std=64))
    images = np.random.default_rng(0).integers(0, 256, (2000, 1, 28, 28), np.uint8)
    parts = np.array_split(images, 8)
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
        answers = joblib.Parallel()(joblib.delayed(classes)(predictor, part) for part in parts)
    found = np.concatenate([answer for answer, _ in answers])
    np.testing.assert_array_equal(found, predictor(images).argmax(axis=1))
    print(f"{len(found)} images by 2 processes of {answers[0][1]} thread: the same classes")


if __name__ == "__main__":
    main()
