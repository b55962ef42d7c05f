"""The adder convolution at work: recognise handwritten digits by their L1 distance, no training.

A filter as large as the image makes the adder convolution a nearest-neighbour search: with training
images as filters, y[n, k] = -L1(test image n, training image k), and the largest y names the digit.
With a small filter it is template matching: the map is largest where the image looks like the
filter. Run it as

    python examples/adder_on_digits.py [--picture adder_on_digits.png]
"""

import argparse
import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from tqdm import tqdm

import mulfree_cupy as mf
from mulfree_cupy import launch

TRAINING = 1297  # of the 1797 digits; the other 500 are looked up


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--picture", default="adder_on_digits.png", help="PNG to write")
    picture = parser.parse_args().picture

    digits = load_digits()
    images = digits.images[:, None].astype(np.float32)
    train, test = images[:TRAINING], images[TRAINING:]
    distances = mf.adder_conv(test, train)[:, :, 0, 0]
    found = digits.target[distances.argmax(axis=1)]
    accuracy = np.mean(found == digits.target[TRAINING:])
    print(f"{len(test)} digits looked up among {TRAINING} by L1 distance: {accuracy:.1%} right")

    print(f"\nChecks (CPU kernels: {launch.cpu_kernels().features()})")
    flat_test, flat_train = test.reshape(len(test), -1), train.reshape(TRAINING, -1)
    check("float32 against scipy cdist", distances, -cdist(flat_test, flat_train, "cityblock"))
    check(
        "uint8, exact in int32",
        mf.adder_conv(test.astype(np.uint8), train.astype(np.uint8))[:, :, 0, 0],
        distances,
    )
    with mf.emulated_cuda():
        emulated = mf.adder_conv(test[:8], train[:32])[:, :, 0, 0]
    check("the CUDA kernel, run on the CPU by the emulator", emulated, distances[:8, :32])

    print(f"\nTimings of {len(test)} x {TRAINING} distances of 64 pixels, median of 9")
    bytes_test, bytes_train = test.astype(np.uint8), train.astype(np.uint8)
    contenders = {
        "mulfree_cupy uint8": lambda: mf.adder_conv(bytes_test, bytes_train),
        "mulfree_cupy float32": lambda: mf.adder_conv(test, train),
        "scipy cdist float64": lambda: cdist(flat_test, flat_train, "cityblock"),
        "NumPy broadcasting": lambda: np.abs(flat_test[:, None] - flat_train).sum(axis=2),
    }
    times = {
        name: median_time(run) for name, run in tqdm(contenders.items(), leave=False, disable=None)
    }
    fastest = min(times.values())
    for name, seconds in times.items():
        print(f"  {name:22} {1e3 * seconds:9.2f} ms {seconds / fastest:8.1f} x")

    draw(test[:6], train, digits.target, picture)
    print(f"\nPicture: {picture}")


def check(what, answer, expected):
    np.testing.assert_array_equal(answer, expected)  # pixels are whole numbers, so sums are exact
    print(f"  ok  {what}")


def median_time(run, repeats=9):
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return np.median(times)


def draw(queries, train, target, picture):
    """Each query, its nearest training image, and where it looks like four strokes."""
    strokes = np.zeros((4, 1, 3, 3), np.float32)
    strokes[0, 0, 1, :] = strokes[1, 0, :, 1] = 16
    strokes[2, 0] = 16 * np.eye(3)
    strokes[3, 0] = 16 * np.eye(3)[::-1]
    nearest = mf.adder_conv(queries, train)[:, :, 0, 0].argmax(axis=1)
    maps = mf.adder_conv(queries, strokes, padding=1)

    rows, columns = len(queries), 6
    figure, axes = plt.subplots(rows, columns, figsize=(1.3 * columns, 1.35 * rows))
    titles = ["query", "nearest", "like —", "like |", "like \\", "like /"]
    for row in range(rows):
        shown = [queries[row, 0], train[nearest[row], 0], *maps[row]]
        for column, image in enumerate(shown):
            axis = axes[row, column]
            axis.imshow(image, cmap="gray_r" if column < 2 else "viridis")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(titles[column], fontsize=9)
        axes[row, 1].text(
            8.0, 4.0, target[nearest[row]], color="tab:red", ha="left", va="center", fontsize=11
        )
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
