"""xarray: a convolution of labelled images, whose dimensions, coordinates and names stay.

`xarray.apply_ufunc` brings the dimensions that a function needs to the end. Run it as

    python examples/xarray_scenes.py
"""

import numpy as np
import xarray as xr

import mulfree_cupy as mf

SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)


def edges(images):
    """The slopes along x of images (..., y, x), each band by itself."""
    flat = images.reshape(-1, 1, *images.shape[-2:])
    return mf.conv(flat, SOBEL[None, None], padding=1).reshape(images.shape)


def main():
    rng = np.random.default_rng(0)
    scenes = xr.DataArray(
        rng.random((3, 40, 50, 2), np.float32),
        dims=("time", "y", "x", "band"),
        coords={"time": [2024, 2025, 2026], "band": ["red", "near infrared"]},
        name="reflectance",
    )
    plane = ["y", "x"]
    slopes = xr.apply_ufunc(
        edges, scenes, input_core_dims=[plane], output_core_dims=[plane], keep_attrs=True
    ).transpose(*scenes.dims)
    print(slopes.sizes, *slopes.coords)
    red = slopes.sel(time=2025, band="red")
    np.testing.assert_array_equal(red, edges(scenes.sel(time=2025, band="red").to_numpy()))
    print("the slopes of one scene and band, selected by name: ok")


if __name__ == "__main__":
    main()
