"""Launchers of cuda/binary: packing into words, and the ladder of XOR and population count.

One ladder serves two operations. For signs, the count gives a sum of products of -1 and 1; for
thermometer codes, in which the value v is v ones, it is the distance of two values. Each level of a
thermometer code is packed like a channel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mulfree_cupy.arrays import Array, address
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import implicit, limits
from mulfree_cupy.launch.arguments import BITS, MOVED_AS, convolution_struct, int32
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.select import Call, choose
from mulfree_cupy.launch.tiling import bit_tile, chunks, plane_launch, word_tile

_INFINITY = {2: "0x7c00", 4: "0x7f800000u", 8: "0x7ff0000000000000ull"}
_C_NAMES = {"float16": "__half", "float32": "float", "float64": "double"}
_STEP = 256  # bits of a product of the tensor cores
_THREADS = 256


class Codes(NamedTuple):
    """How channels are encoded and packed."""

    channels: int  # per group
    levels: int  # bits per channel
    word: int  # bits per word

    @property
    def words(self) -> int:
        """Per pixel of a group."""
        return -(-self.channels * self.levels // self.word)


class Weights(NamedTuple):
    """Packed weights, made once for many calls by `pack_weights`."""

    kernel: str
    codes: Codes
    words: Array  # fragments, for tensor cores
    sums: Array | None  # population counts

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + (0 if self.sums is None else self.sums.nbytes)


def pack_weights(device, w, groups: int, bits: int | None = None, kernel: str | None = None):
    """The `Weights` of w (K, C/groups, kh, kw): of its signs, or of numbers of `bits` bits."""
    kernel = choose(Call("binary_conv", w.dtype, architecture=device.architecture), kernel)
    channels, levels = w.shape[1], 1 if bits is None else 2**bits - 1
    codes = Codes(channels, levels, _word(channels * levels, kernel))
    words = _packed(device, w, codes)
    sums = None if kernel == "1_naive" else _ones(device, words)
    if kernel == "3_tensor_cores":
        words = _fragments(device, words, groups)
    return Weights(kernel, codes, words, sums)


@on_device_of_arrays
def pack_signs(device, x, words) -> None:
    """Write the bits of x >= 0 into words (N, ceil(C/64), H, W)."""
    _pack(device, x, Codes(x.shape[1], 1, 64), words)


@on_device_of_arrays
def binary_conv(
    device, x, w, scale, out, geometry: ConvGeometry, kernel: str | None = None
) -> None:
    """Write the convolution of the signs of x and w into out, times scale[k] if there is a scale.

    x and w are float16, float32 or float64, out too; scale is float64 if out is, else float32. w
    may be `Weights`.
    """
    if not isinstance(w, Weights):
        w = pack_weights(device, w, geometry.groups, None, kernel)
    wide = out.dtype == np.float64
    defines = {"Y": _C_NAMES[out.dtype.name], "SCALE": "double" if wide else "float"}
    _conv("binary_conv", device, x, w, scale, out, geometry, defines)


@on_device_of_arrays
def adder_conv(
    device, x, w, bias, out, geometry: ConvGeometry, bits: int, kernel: str | None = None
) -> None:
    """Write bias[k] - sum of abs(x - w) over each window into out, x and w of few bits.

    x and w are uint8, clamped to 2**bits - 1; bias and out are int32. w may be `Weights`.
    """
    if not isinstance(w, Weights):
        w = pack_weights(device, w, geometry.groups, bits, kernel)
    _conv("adder_conv", device, x, w, bias, out, geometry, {"ADDER": 1})


def _conv(function, device, x, w: Weights, values, out, g: ConvGeometry, defines) -> None:
    """`values` has one of each filter, for the epilogue."""
    codes = w.codes
    at_once = implicit.images_at_once(function, g, codes.words * g.groups)
    image = codes.words * codes.word // 8 * g.groups * g.height * g.width
    at_once = min(at_once, max(1, limits.WORKSPACE // image))
    parameters = w.sums, values, np.int32(codes.channels)
    for images in chunks(g.batch, at_once):
        words = _packed(device, x[images], codes)
        _LAUNCHES[w.kernel](device, defines, words, w.words, parameters, out[images], g)


def _word(bits: int, kernel: str) -> int:
    """Word size in bits.

    For tensor cores the words of successive taps are adjacent: the widest word that pads a pixel no
    more than 32 bits would, or 8 or 16 if these hold it.
    """
    if kernel == "1_naive":
        return 64
    if kernel == "2_register_tile":
        return 32
    if bits <= 16:
        return 8 if bits <= 8 else 16
    return 32 if -(-bits // 32) % 2 else 64


def _packed(device, x, codes: Codes):
    """The words of x (N, groups*channels, H, W): (N*groups, words, H, W)."""
    images = x.shape[0] * x.shape[1] // codes.channels
    shape = images, codes.words, *x.shape[2:]
    words = device.xp.empty(shape, BITS[codes.word // 8])
    _pack(device, x, codes, words)
    return words


def _pack(device, x, codes: Codes, words) -> None:
    images, plane = len(words), x.shape[2] * x.shape[3]
    whole = all(address(a) % min(16, 4 * a.itemsize) == 0 for a in (x, words))
    pixels = 4 if plane % 4 == 0 and whole else 1
    defines = {
        "T": MOVED_AS[x.itemsize],
        "WORD": MOVED_AS[codes.word // 8],
        "LEVELS": codes.levels,
        "PIXELS": pixels,
    }
    if x.dtype.kind == "f":
        defines["NOT_NAN"] = _INFINITY[x.itemsize]
    device.launch(
        "binary/pack.cu",
        "pack",
        defines,
        *plane_launch(plane // pixels, -(-codes.channels // codes.word), images),
        (x.view(BITS[x.itemsize]), words, *int32(images, codes.channels), np.int64(plane)),
    )


def _ones(device, words) -> Array:
    """Sums (kh + 1, kw + 1, K) of the ones of weights (K, length, kh, kw)."""
    filters, length, height, width = words.shape
    sums = device.xp.empty((height + 1, width + 1, filters), np.int32)
    device.launch(
        "binary/ones.cu",
        "ones",
        {"T": MOVED_AS[words.itemsize]},
        (-(-filters * (width + 1) // _THREADS),),
        (_THREADS,),
        (words, sums, *int32(filters, length, height, width)),
    )
    return sums


def _fragments(device, words, groups: int) -> Array:
    """The weights (K, length, kh, kw) as operands of tensor cores: 128 words of 32 bits each."""
    filters, length = len(words) // groups, words[0].size
    tiles, steps = -(-filters // 16), -(-length * words.itemsize * 8 // _STEP)
    fragments = device.xp.empty((groups, tiles, steps, 128), np.uint32)
    device.launch(
        "binary/fragments.cu",
        "fragments",
        {"T": MOVED_AS[words.itemsize]},
        (-(-fragments.size // _THREADS),),
        (_THREADS,),
        (words, fragments, *int32(groups, filters, length, tiles, steps)),
    )
    return fragments


def _naive(device, defines, x, w, parameters, out, g: ConvGeometry) -> None:
    device.launch(
        "binary/1_naive.cu",
        "binary_conv",
        defines,
        (-(-out.size // _THREADS),),
        (_THREADS,),
        (x, w, *parameters, out, convolution_struct(g, len(out), x.shape[1])),
    )


def _register_tile(device, defines, x, w, parameters, out, g: ConvGeometry) -> None:
    implicit.conv_launch(
        *(device, "binary/2_register_tile", "binary_conv", defines, x, w, parameters, out, g),
        choose_tile=word_tile,
    )


def _tensor_cores(device, defines, x, w, parameters, out, g: ConvGeometry) -> None:
    plane = g.out_height * g.out_width
    filters, pixels = g.filters // g.groups, len(out) * plane
    tile = bit_tile(filters, pixels, g.groups)
    pairs = plane % 2 == 0 and address(out) % (2 * out.itemsize) == 0
    device.launch(
        "binary/3_tensor_cores.cu",
        "binary_conv",
        {
            **defines,
            **implicit.large_window(g),
            "T": MOVED_AS[x.itemsize],
            "TILES": tile.tiles,
            "Y_VECTOR": 2 if pairs else 1,
        },
        (tile.blocks(filters, pixels, g.groups),),
        (tile.threads,),
        (x, w, *parameters, out, convolution_struct(g, len(out), x.shape[1])),
    )


_LAUNCHES = {
    "1_naive": _naive,
    "2_register_tile": _register_tile,
    "3_tensor_cores": _tensor_cores,
}
