"""The shift: every channel of an image is shifted by its own pixels, without arithmetic.

A digit in nine channels, with the nine shifts of a 3x3 window; a 1x1 convolution after it combines
all neighbours of a pixel. Run it as

    python examples/shift_an_image.py [--picture shift_an_image.png]
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import mulfree_cupy as mf


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--picture", default="shift_an_image.png", help="PNG to write")
    picture = parser.parse_args().picture

    digit = load_digits().images[10].astype(np.float32)
    x = np.repeat(digit[None, None], 9, axis=1)
    shifts = mf.modulo_shifts(9)
    moved = mf.shift(x, shifts)

    mean = mf.shift_conv(x, np.full((1, 9), 1 / 9, np.float32), shifts)
    blur = mf.conv(digit[None, None], np.full((1, 1, 3, 3), 1 / 9, np.float32), padding=1)
    np.testing.assert_allclose(mean, blur, rtol=1e-6)
    print("The mean over the nine shifted channels is a 3x3 blur: ok")

    figure, axes = plt.subplots(1, 10, figsize=(13, 1.8))
    images = [*zip(shifts, moved[0], strict=True), ("mean", mean[0, 0])]
    for axis, (shift, image) in zip(axes, images, strict=True):
        title = shift if isinstance(shift, str) else f"dh {shift[0]:+d}, dw {shift[1]:+d}"
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=16)
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
