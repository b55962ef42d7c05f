"""Launchers of cuda/convolution: im2col, col2im, and convolution as a product of matrices.

The same code serves CuPy and the emulator: `device` brings the array module and the launch. Arrays
are C-contiguous, checked and not empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mulfree_cupy.geometry import ConvGeometry

WORKSPACE = 64 * 2**20  # bytes of im2col's matrix at a time, or one image's if that is more
GRID_LIMIT = 65535  # blocks along y and z
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}
_MOVED_AS = {
    1: "unsigned char",
    2: "unsigned short",
    4: "unsigned int",
    8: "unsigned long long",
    16: "ulonglong2",
}
_C_NAMES = {"float32": "float", "float64": "double"}


def c_type(array) -> str:
    """The C++ name of a floating-point array's element."""
    return _C_NAMES[array.dtype.name]


def int32(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)


def plane_launch(pixels: int, planes: int, images: int) -> tuple[tuple, tuple]:
    """Grid and block with a thread a pixel; the kernel walks further along y and z."""
    threads = min(256, -(-pixels // 32) * 32)
    blocks = -(-pixels // threads)
    return (blocks, min(planes, GRID_LIMIT), min(images, GRID_LIMIT)), (threads,)


def images_at_once(bytes_per_image: int) -> int:
    """Images whose workspace stays within `WORKSPACE`, or one."""
    return max(1, WORKSPACE // bytes_per_image)


def chunks(batch: int, images: int) -> Iterator[slice]:
    """The batch in ranges of so many images."""
    for start in range(0, batch, images):
        yield slice(start, min(start + images, batch))


def column_chunks(geometry: ConvGeometry, itemsize: int) -> Iterator[slice]:
    """Ranges of the batch whose im2col matrix stays within `WORKSPACE`."""
    return chunks(geometry.batch, images_at_once(cols_bytes(geometry, itemsize)))


def cols_bytes(geometry: ConvGeometry, itemsize: int) -> int:
    """Bytes of im2col's matrix for one image."""
    _, rows, pixels = geometry.cols_shape
    return rows * pixels * itemsize


def im2col(device, x, cols, geometry: ConvGeometry) -> None:
    """Fill cols (N, C*kh*kw, OH*OW) with the windows of x (N, C, H, W)."""
    _, rows, pixels = geometry.cols_shape
    _im2col(device, x, cols, geometry, row_stride=pixels, image_stride=rows * pixels)


def _im2col(device, x, cols, geometry, row_stride, image_stride) -> None:
    _, rows, pixels = geometry.cols_shape
    images, bits = len(x), _BITS[x.itemsize]
    device.launch(
        "convolution/im2col.cu",
        "im2col",
        {"T": _MOVED_AS[x.itemsize]},
        *plane_launch(pixels, rows, images),
        (
            x.view(bits),
            cols.view(bits),
            *int32(images, *_sizes(geometry)),
            np.int64(row_stride),
            np.int64(image_stride),
        ),
    )


def col2im(device, cols, x, geometry: ConvGeometry) -> None:
    """Overwrite x (N, C, H, W) with the sums of its entries in cols (N, C*kh*kw, OH*OW)."""
    device.launch(
        "convolution/col2im.cu",
        "col2im",
        {"T": c_type(x)},
        *plane_launch(geometry.height * geometry.width, geometry.channels, len(x)),
        (cols, x, *int32(len(x), *_sizes(geometry))),
    )


def _sizes(g: ConvGeometry) -> tuple[int, ...]:
    return (
        g.channels, g.height, g.width,
        *g.kernel, *g.stride, *g.padding, *g.dilation,
        g.out_height, g.out_width,
    )  # fmt: skip


def columns(device, x, geometry: ConvGeometry):
    """Matrices (n*groups, C/groups*kh*kw, OH*OW) whose columns are the windows of some images."""
    _, rows, pixels = geometry.cols_shape
    if _is_product(geometry):
        cols = x
    else:
        cols = device.xp.empty((len(x), rows, pixels), x.dtype)
        im2col(device, x, cols, geometry)
    return cols.reshape(len(x) * geometry.groups, geometry.taps, pixels)


def _is_product(geometry: ConvGeometry) -> bool:
    """A 1x1 kernel that visits every pixel once: x itself is the matrix."""
    g = geometry
    return g.kernel == g.stride == (1, 1) and g.padding == (0, 0)


@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf go through in silence
def conv(device, x, w, bias, out, geometry: ConvGeometry) -> None:
    """Write the cross-correlation of x with w into out, im2col and a product at a time."""
    g = geometry
    filters = w.reshape(g.groups, g.filters // g.groups, g.taps)
    for images in column_chunks(g, x.itemsize):
        cols = columns(device, x[images], g).reshape(-1, g.groups, g.taps, g.cols_shape[2])
        answer = out[images].reshape(-1, g.groups, g.filters // g.groups, g.cols_shape[2])
        device.xp.matmul(filters, cols, out=answer)
    if bias is not None:
        out += bias.reshape(-1, 1, 1)


@np.errstate(invalid="ignore", over="ignore")
def conv_backward(device, grad, x, w, grad_x, grad_w, geometry: ConvGeometry) -> None:
    """Write the gradients of sum(conv(x, w) * grad) by x and w into grad_x and grad_w."""
    g, xp = geometry, device.xp
    _, rows, pixels = g.cols_shape
    filters = w.reshape(g.groups, g.filters // g.groups, g.taps).transpose(0, 2, 1)
    for images in column_chunks(g, x.itemsize):
        part = grad[images].reshape(-1, g.groups, g.filters // g.groups, pixels)
        cols = xp.matmul(filters, part).reshape(-1, rows, pixels)
        col2im(device, cols, grad_x[images], g)
    grad_w[...] = weight_gradient(device, grad, x, g).reshape(grad_w.shape)


def weight_gradient(device, grad, x, geometry: ConvGeometry, centre=None):
    """Sum over images and pixels of grad[n, k, p] * (cols[n, l, p] - centre[l]).

    The matrix holds a chunk of images side by side, so that one product sums over all of them.

    Returns
    -------
    array (groups, K/groups, C/groups*kh*kw)
    """
    g, xp = geometry, device.xp
    _, rows, pixels = g.cols_shape
    total = xp.zeros((g.groups, g.filters // g.groups, g.taps), x.dtype)
    for images in column_chunks(g, x.itemsize):
        n = images.stop - images.start
        cols = xp.empty((rows, n * pixels), x.dtype)
        _im2col(device, x[images], cols, g, row_stride=n * pixels, image_stride=pixels)
        if centre is not None:
            cols -= centre[:, None]
        part = grad[images].reshape(n, g.filters, pixels).transpose(1, 0, 2)
        total += xp.matmul(
            xp.ascontiguousarray(part).reshape(g.groups, -1, n * pixels),
            cols.reshape(g.groups, g.taps, n * pixels).transpose(0, 2, 1),
        )
    return total
