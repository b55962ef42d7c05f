"""Dask: an image in blocks, searched for a pattern, and predictions of more images than fit.

The blocks overlap by what a window reaches, and what comes out is the same as of the whole image.
Dask runs them in threads, so each call is told to use one. Run it as

    python examples/dask_blocks.py
"""

import time

import dask.array as da
import numpy as np

import mulfree_cupy as mf
from mulfree_cupy import inference, models
from mulfree_cupy.compat.dask import adder_conv
from mulfree_cupy.nn.description import network_of


def main():
    mf.set_num_threads(1)  # a task is a thread's, and there are as many as processors
    search()
    predict()


def search():
    """The place at which a 16 x 16 piece of an image of 16 million pixels has been cut out."""
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 4000, 4000), np.uint8)
    piece = image[:, :, 1234:1250, 3210:3226]
    blocks = da.from_array(image, chunks=(1, 1, 1000, 1000))
    distances = adder_conv(blocks, piece)
    print(f"{blocks.npartitions} blocks; their answers: {distances.chunks[2:]}")
    best = int(distances.argmax().compute())
    row, column = np.unravel_index(best, distances.shape[2:])
    print(f"found at row {row}, column {column}")
    part = distances[:, :, 980:1020, :].compute()  # across the border of two blocks
    np.testing.assert_array_equal(part, mf.adder_conv(image, piece)[:, :, 980:1020, :])
    print("the same bits as of the whole image: ok\n")


def predict():
    """Logits of 1,000 images that are made as they are asked for, by one worker and by two."""
    network = models.build("adder-resnet20", channels=3, size=32, classes=10)
    predictor = inference.Predictor(network_of(network, 3, 32, mean=128, std=64))
    images = da.random.default_rng(0).integers(
        0, 256, (1000, 3, 32, 32), "u1", chunks=(125, 3, 32, 32)
    )
    logits = images.map_blocks(
        predictor,
        chunks=(images.chunks[0], (len(predictor.classes),)),
        drop_axis=(2, 3),
        dtype="float32",
        meta=np.empty((0, 0), "float32"),
    )
    for workers in (1, 2):
        start = time.perf_counter()
        classes = logits.argmax(axis=1).compute(scheduler="threads", num_workers=workers)
        seconds = time.perf_counter() - start
        print(
            f"{workers} worker{'s' * (workers > 1)}: {len(classes) / seconds:.0f} images a second"
        )


if __name__ == "__main__":
    main()
