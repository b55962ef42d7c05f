"""Registers, shared memory and occupancy of every CUDA kernel, on a machine without a GPU.

Needs the extra ``static``: NVRTC and its headers, driven by ``cuda.core.Program``.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import (
    adder,
    batch,
    batch_norm,
    binary,
    convolution,
    cross_entropy,
    distances,
    select,
    sgd,
    shift,
    source,
    winograd,
)
from mulfree_cupy.ops.winograd import WinogradWeights, winograd_matrices

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# Per multiprocessor: threads, blocks, KiB of shared memory, KiB of it reserved per block.
_LIMITS = {
    "sm_75": (1024, 16, 64, 0),
    "sm_80": (2048, 32, 164, 1),
    "sm_86": (1536, 16, 100, 1),
    "sm_89": (1536, 24, 100, 1),
    "sm_90": (2048, 32, 228, 1),
    "sm_100": (2048, 32, 228, 1),
    "sm_120": (1536, 24, 100, 1),
}
_REGISTERS = 65536


@dataclass(frozen=True)
class Variant:
    """One kernel with the macros and block of a launcher."""

    path: str
    entry: str
    defines: tuple[tuple[str, object], ...]
    threads: int
    dynamic_shared: int = 0


@dataclass(frozen=True)
class Row:
    """Compiler report for one variant on one architecture.

    Attributes
    ----------
    registers : int
        Per thread.
    shared : int
        Bytes of shared memory per block.
    spills : int
        Bytes that did not fit the registers.
    occupancy : float
        Resident threads over the multiprocessor's maximum.
    warnings : str
        NVRTC's warnings, or "".
    cubin : bytes
        The machine code.
    """

    variant: Variant
    architecture: str
    registers: int
    shared: int
    spills: int
    occupancy: float
    warnings: str
    cubin: bytes


class Recorder:
    """A device that records launches instead of running them."""

    xp = np
    architecture = 90

    def __init__(self) -> None:
        self.variants: dict[tuple, Variant] = {}

    def constant(self, values):
        return values

    def launch(self, path, entry, defines, grid, block, args, shared_mem=0):
        threads = int(np.prod(block))
        key = (path, tuple(defines.items()))
        if key not in self.variants or self.variants[key].threads < threads:
            self.variants[key] = Variant(path, entry, key[1], threads, shared_mem)


def variants() -> list[Variant]:
    """Every kernel with every element type and tile that the launchers use.

    Of variants that differ only in vector width, the widest.
    """
    device = Recorder()
    depthwise = ConvGeometry(1, 4, (16, 16), 4, (2, 2), groups=4)
    small = ConvGeometry(1, 64, (8, 8), 64, (1, 1))
    for filters in (128, 64, 32, 16, 4, 1):
        _record_halves(device, ConvGeometry(2, 64, (128, 128), filters, (1, 1)))
    _record_halves(device, small)
    for dtype in (np.float32, np.float64, np.uint8):
        for filters in (128, 64, 32, 16, 4):
            _record_forward(device, dtype, ConvGeometry(2, 64, (128, 128), filters, (1, 1)))
        _record_forward(device, dtype, ConvGeometry(4, 64, (128, 128), 64, (1, 1)))
        _record_forward(device, dtype, small)
        _record_forward(device, dtype, depthwise)
        _record_distances(device, dtype)
    for dtype in (np.float32, np.float64):
        _record_depthwise(device, dtype)
        for channels in (64, 32, 16, 4):
            for filters, kernel in ((channels, (3, 3)), (8, (1, 1))):
                g = ConvGeometry(2, channels, (16, 16), filters, kernel)
                _record_backward(device, dtype, g)
        _record_backward(device, dtype, depthwise)
        for kernel in select.names("adder_matmul")[:4]:
            for size in (128, 64):
                a = np.zeros((size, size), dtype)
                adder.adder_matmul(device, a, a, a, kernel)
    for dtype in (np.uint8, np.uint16, np.float32, np.float64, np.complex128):
        for g in (small, depthwise):  # 64 and 225 columns
            x, cols = (np.zeros(shape, dtype) for shape in (g.x_shape, g.cols_shape))
            convolution.im2col(device, x, cols, g)
    for dtype in (np.float32, np.float64):
        x = np.zeros(depthwise.x_shape, dtype)
        convolution.col2im(device, np.zeros(depthwise.cols_shape, dtype), x, depthwise)
    _record_batch(device)
    _record_binary(device)
    _record_shift(device)
    _record_winograd(device)
    _record_training(device)
    _record_batch_norm(device)
    return sorted(device.variants.values(), key=lambda v: v.path)


def _record_batch(device) -> None:
    images, labels, plan = np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, np.int32), np.zeros(0)
    for dtype in (np.float32, np.float64):
        y, number = np.zeros(images.shape, dtype), np.zeros((), dtype)
        batch.take(device, images, labels, plan, number, number, plan, y, labels, 2)
        for right in (np.int32, np.int64):
            batch.tally(device, number, right(0), plan, 2)


def _record_binary(device) -> None:
    """For signs every type, tile and word size, for low bits every number of bits."""

    def record(g, dtype, bits=None):
        x, w = np.zeros(g.x_shape, dtype), np.zeros(g.w_shape, dtype)
        for kernel in select.names("binary_conv"):
            if bits is None:
                out, factor = np.zeros(g.out_shape, dtype), np.zeros(g.filters, np.float32)
                binary.binary_conv(device, x, w, factor, out, g, kernel)
            else:
                out = np.zeros(g.out_shape, np.int32)
                binary.adder_conv(device, x, w, None, out, g, bits, kernel)

    for dtype in (np.float16, np.float32, np.float64):
        record(ConvGeometry(2, 64, (128, 128), 64, (3, 3)), dtype)
    for filters in (128, 32, 16, 4, 1):
        record(ConvGeometry(4, 64, (128, 128), filters, (1, 1)), np.float32)
    for channels in (8, 16, 32):
        record(ConvGeometry(4, channels, (128, 128), 64, (1, 1)), np.float32)
    record(ConvGeometry(1, 64, (7, 7), 64, (1, 1)), np.float32)
    for bits in (1, 2, 3, 4):
        record(ConvGeometry(4, 64, (128, 128), 64, (1, 1)), np.uint8, bits)
    for filters in (32, 16, 4, 1):
        record(ConvGeometry(4, 4, (128, 128), filters, (1, 1)), np.uint8, 2)


def _record_shift(device) -> None:
    """The tiles are adder's (tile.cuh): here a large and a small one for each type."""
    table, modulo = np.zeros((64, 2), np.int32), select.modulo_table(64, 3, 1).astype(np.int32)
    for dtype in (np.uint8, np.uint16, np.float32, np.float64, np.complex128):
        x = np.zeros((2, 64, 4, 4), dtype)
        shift.shift(device, x, table, x, (1, 1))
        halved = x[..., ::2, ::2].copy()
        shift.shift(device, x, table, halved, (2, 2))
        if dtype in (np.float32, np.complex128):
            shift.shift_backward(device, halved, table, x, (2, 2))
            shift.shift(device, x, modulo, x, (1, 1), "1_tiled_modulo")
            shift.shift(device, x, table, x, (1, 1), "2_tiled_generic")
    for dtype, channels in ((np.float16, 64), (np.float32, 64), (np.float32, 4), (np.float64, 64)):
        table = np.zeros((channels, 2), np.int32)
        x, w = np.zeros((2, channels, 128, 128), dtype), np.zeros((channels, channels), dtype)
        for conv in (shift.shift_conv, shift.shift_adder_conv):
            conv(device, x, w, table, None, x, (1, 1))
        shift.shift_conv_backward(device, x, x, w, table, x, w, (1, 1))


def _record_forward(device, dtype, g: ConvGeometry) -> None:
    out_dtype = np.int32 if dtype is np.uint8 else dtype
    x, w = np.zeros(g.x_shape, dtype), np.zeros(g.w_shape, dtype)
    out = np.zeros(g.out_shape, out_dtype)
    adder.adder_conv(device, x, w, None, out, g)
    if dtype is not np.uint8:
        convolution.conv(device, x, w, None, out, g)


def _record_distances(device, dtype) -> None:
    out_dtype = np.int32 if dtype is np.uint8 else dtype
    for m, p in ((128, 32768), (64, 32768), (32, 32768), (16, 32768), (4, 32768), (64, 64)):
        a, b = np.zeros((m, 64), dtype), np.zeros((p, 64), dtype)
        distances.pairwise(device, a, b, np.zeros((m, p), out_dtype))
    nearest, places = np.zeros((64, 5), out_dtype), np.zeros((64, 5), np.int64)
    distances.nearest(device, a, b, nearest, places)


def _record_halves(device, g: ConvGeometry) -> None:
    x, w = np.zeros(g.x_shape, np.float16), np.zeros(g.w_shape, np.float16)
    adder.adder_conv(device, x, w, None, np.zeros(g.out_shape, np.float32), g, "7_half2")


def _record_depthwise(device, dtype) -> None:
    """Window sizes are macros: the usual ones, the largest, and one that falls back to the
    tiles."""
    for side, step, each in ((3, 1, 1), (3, 2, 1), (5, 1, 1), (7, 1, 1), (7, 4, 4), (8, 1, 1)):
        g = ConvGeometry(1, 4, (64, 64), 4 * each, (side, side), (step, step), groups=4)
        _record_forward(device, dtype, g)


def _record_backward(device, dtype, g: ConvGeometry) -> None:
    x, w, grad = (np.zeros(shape, dtype) for shape in (g.x_shape, g.w_shape, g.out_shape))
    for backward in (
        adder.adder_conv_backward,
        adder.adder_conv_sign_backward,
        convolution.conv_backward,
    ):
        backward(device, grad, x, w, x, w, g)


def _record_winograd(device) -> None:
    for dtype in (np.float32, np.float64):
        for m in (2, 4):
            u = np.random.default_rng(0).normal(size=(m + 2, m + 2, 64, 2)).astype(dtype)
            weights = WinogradWeights.from_dense(u).prune(0.2)
            _record_winograd_conv(device, weights, 4, 32, "2_sparse")
            g = ConvGeometry(1, 2, (8, 8), 64, (3, 3), padding=((1, 1), (1, 1)))
            grad, x, grad_u = (np.zeros(s, dtype) for s in (g.out_shape, g.x_shape, u.shape))
            used = winograd_matrices(m)
            winograd.winograd_conv_backward(device, grad, x, weights, used, x, grad_u, g, True)
        for filters, images in ((64, 64), (32, 64), (32, 32), (16, 32), (16, 1)):
            u = np.ones((4, 4, filters, 1), dtype)
            fused = WinogradWeights.from_dense(u)
            _record_winograd_conv(device, fused, images, 32, "3_fused")
        frozen = WinogradWeights.from_dense(np.ones((4, 4, 64, 1), dtype)).prune(0.2)
        for images in (64, 1):
            _record_winograd_conv(device, frozen, images, 32, "4_frozen")


def _record_winograd_conv(device, weights, images, size, kernel) -> None:
    filters, channels = weights.shape[2:]
    g = ConvGeometry(images, channels, (size, size), filters, (3, 3), padding=((1, 1), (1, 1)))
    x, out = np.zeros(g.x_shape, weights.dtype), np.zeros(g.out_shape, weights.dtype)
    matrices = winograd_matrices(weights.m)
    winograd.winograd_conv(device, x, weights, matrices, None, out, g, False, kernel)


def _record_training(device) -> None:
    for dtype in (np.float32, np.float64):
        w, numbers = [np.zeros(9, dtype)], dict(factor=1.0, momentum=0.9, weight_decay=0.0)
        for nesterov, adaptive in ((False, True), (True, True), (False, False)):
            options = dict(adders=1, adaptive=adaptive, nesterov=nesterov, **numbers)
            sgd.sgd(device, np.zeros(1), w, w, w, **options)
        logits, one = np.zeros((2, 10), dtype), np.zeros(1, dtype)
        cross_entropy.cross_entropy(device, logits, one, one, one, logits)


def _record_batch_norm(device) -> None:
    """Channels with few elements, as many as fit in registers, and more; with odd planes too."""
    for dtype in (np.float32, np.float64):
        c = np.zeros(2, dtype)
        for images, pixels in itertools.product((4, 128, 250, 512), (49, 64)):
            x = np.zeros((images, 2, pixels), dtype)
            call = select.Call("batch_norm", x.dtype, elements=x[:, 0].size)
            for kernel in select.names("batch_norm"):
                if not select.can_use(kernel, call)[0]:
                    continue
                batch_norm.batch_norm(device, x, c, c, x, x, c, c, (c, c), True, 1e-5, 0.1, kernel)
            batch_norm.batch_norm_given(device, x, c, c, x, x, c, c, True, 1e-5)
            batch_norm.batch_norm_backward(device, x, x, x, c, c, c, x, c, c, x, True, 1e-5, False)


def compile_variant(variant: Variant, architecture: str) -> Row:
    """Compile one variant as CuPy does, flushing denormals, and parse the compiler's report.

    Raises
    ------
    ImportError
        If the packages of the extra ``static`` are not installed.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        std="c++17",
        arch=architecture,
        ftz=True,
        ptxas_options=["-v"],
        name=f"cuda/{variant.path}",
        include_path=_include_path(),
    )
    log = io.StringIO()
    program = Program(source.read(variant.path, dict(variant.defines)), "c++", options)
    cubin = program.compile("cubin", logs=log).code
    text = log.getvalue()
    registers = _number(r"Used (\d+) registers", text)
    shared = _number(r"(\d+) bytes smem", text) + variant.dynamic_shared
    return Row(
        variant,
        architecture,
        registers,
        shared,
        _number(r"(\d+) bytes spill stores", text) + _number(r"(\d+) bytes spill loads", text),
        occupancy(architecture, variant.threads, registers, shared),
        "\n".join(line for line in text.splitlines() if "warning" in line.lower()),
        cubin,
    )


def _include_path() -> list[str]:
    """The folders of NVIDIA's own headers, cuda_fp16.h among them, from their wheels."""
    import nvidia

    roots = [Path(root, "cu13", "include") for root in nvidia.__path__]
    return [str(root) for root in roots if root.is_dir()]


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> float:
    """Resident threads of one multiprocessor over its maximum.

    Examples
    --------
    >>> occupancy("sm_90", threads=256, registers=64, shared=16384)
    0.5
    """
    most_threads, most_blocks, shared_kib, reserved_kib = _LIMITS[architecture]
    warps = -(-threads // 32)
    registers_per_warp = -(-registers * 32 // 256) * 256  # allocated 256 at a time,
    resident_warps = _REGISTERS // registers_per_warp // 4 * 4  # on four schedulers
    blocks = min(most_blocks, most_threads // (warps * 32), resident_warps // warps)
    if shared + reserved_kib:
        blocks = min(blocks, shared_kib * 1024 // (shared + reserved_kib * 1024))
    return blocks * warps * 32 / most_threads


def compile_all(
    architectures: Iterable[str] = ARCHITECTURES, chosen: Iterable[Variant] | None = None
) -> list[Row]:
    """Compile variants (all of them, if none are chosen) for some architectures."""
    try:
        import cuda.core  # noqa: F401 - before threads start: its first import is not thread-safe
        import nvidia  # noqa: F401 - the compiler's headers
    except ImportError as error:
        raise ImportError(
            f"compiling without a GPU needs the extra 'static', pip install "
            f"'mulfree_cupy[static]': {error}"
        ) from error
    pairs = [(v, a) for v in (variants() if chosen is None else chosen) for a in architectures]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: compile_variant(*pair), pairs))


def print_table(architectures: Sequence[str] = ("sm_90",)) -> None:
    """Print registers, shared memory, spills and occupancy of every kernel.

    Raises
    ------
    ValueError
        If an architecture is not one of `ARCHITECTURES`.
    ImportError
        If the packages of the extra ``static`` are not installed.
    """
    unknown = set(architectures) - set(ARCHITECTURES)
    if unknown:
        raise ValueError(
            f"print_table: architectures must be among {', '.join(ARCHITECTURES)}, "
            f"got {', '.join(sorted(unknown))}"
        )
    rows = compile_all(architectures)
    print(f"{'kernel':30} {'defines':58} {'arch':7} {'thr':>4} {'regs':>4} {'shared':>7} "
          f"{'spill':>5} {'occ':>5}")  # fmt: skip
    for row in rows:
        v = row.variant
        short = (f"{name}={value}" for name, value in v.defines if len(str(value)) < 20)
        defines = " ".join(short)
        print(f"{v.path:30} {defines:58} {row.architecture:7} {v.threads:4} {row.registers:4} "
              f"{row.shared:7} {row.spills:5} {row.occupancy:5.0%}")  # fmt: skip
