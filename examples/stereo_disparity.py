"""Stereo block matching: how far each pixel of a left picture has moved in the right one.

Both eyes see a point on the same line, and the nearer it is the further apart. Each pixel's window
becomes a row of bytes; the L1 distances of a line's windows from those of the other picture say
which match, and OpenCV's block matcher stands beside. A larger patch is found as a template. Run it
as

    python examples/stereo_disparity.py [--picture stereo_disparity.png]
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from skimage import color, data, feature, util

import mulfree_cupy as mf

MOST = 64  # pixels between the two pictures of a point
WINDOW = 11


def windows(image):
    """Every pixel's window as a row of bytes: (H, W, WINDOW * WINDOW)."""
    padded = np.pad(image, WINDOW // 2, mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW))
    return (line.reshape(len(line), -1) for line in views)


def block_matching(left, right):
    """How far off the nearest window of the right picture is, or -1: its own is another."""
    columns = np.arange(left.shape[1])
    moved = columns[:, None] - columns
    impossible = (moved < 0) | (moved >= MOST)
    disparity = np.zeros(left.shape, np.int64)
    for y, (ours, theirs) in enumerate(zip(windows(left), windows(right), strict=True)):
        distances = mf.pairwise_l1(ours, theirs)
        distances[impossible] = np.iinfo(distances.dtype).max
        there, back = distances.argmin(axis=1), distances.argmin(axis=0)
        disparity[y] = np.where(np.abs(back[there] - columns) <= 1, columns - there, -1)
    return disparity


def opencv(left, right):
    """StereoBM's answer, negative where it gives none; None without OpenCV."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2.StereoBM_create(numDisparities=MOST, blockSize=WINDOW).compute(left, right) / 16


def score(disparity, truth):
    """How many pixels have an answer, and how many of these are off by more than two pixels."""
    known = np.isfinite(truth) & (np.arange(truth.shape[1]) >= MOST)
    answered = known & (disparity >= 0)
    off = np.abs(disparity - truth)[answered] > 2
    return f"{answered.sum() / known.sum():.0%} of the pixels, {off.mean():.0%} of them off by > 2"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--picture", default="stereo_disparity.png", help="PNG to write")
    picture = parser.parse_args().picture

    *pictures, truth = data.stereo_motorcycle()
    left, right = (util.img_as_ubyte(color.rgb2gray(p)) for p in pictures)

    ours = block_matching(left, right)
    shown = {"left picture": left, "ground truth": truth, "pairwise_l1": ours}
    print(f"pairwise_l1: {score(ours, truth)}")
    if (theirs := opencv(left, right)) is None:
        print("StereoBM: OpenCV is not installed")
    else:
        shown["OpenCV's StereoBM"] = theirs
        print(f"StereoBM: {score(theirs, truth)}")

    top, side, size = 220, 330, 48
    patch, strip = (p[top : top + size] for p in (left[:, side : side + size], right))
    by_l1 = side - mf.match_template_l1(strip, patch).argmin()
    by_correlation = side - feature.match_template(strip, patch).argmax()
    print(
        f"A patch has moved by {by_l1} pixels as match_template_l1 sees it, by {by_correlation} as "
        f"scikit-image does, and by {np.median(truth[top:, side:][:size, :size]):.1f} in truth"
    )

    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3))
    for axis, (title, image) in zip(axes, shown.items(), strict=True):
        options = {"cmap": "gray"} if image is left else {"cmap": "turbo", "vmin": 0, "vmax": MOST}
        axis.imshow(image, **options)
        axis.set_title(title)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(picture, dpi=80)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
