"""Test case of each CUDA kernel: a call that launches it, and the formula of its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import mulfree_cupy as mf
from mulfree_cupy import data, formulas, nn, optim
from mulfree_cupy.arrays import namespace
from mulfree_cupy.launch import limits
from mulfree_cupy.launch import shift as launchers
from mulfree_cupy.launch.device import device_for
from mulfree_cupy.ops.adder import adder_conv_sign_backward
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward
from mulfree_cupy.ops.cross_entropy import cross_entropy

# Not multiples of a tile or of one another, so that no check, tail or loop of a kernel is idle; a
# plane is a multiple of 4, since some kernels store vectors only then.
_IMAGES, _CHANNELS, _FILTERS, _GROUPS = 3, 18, 40, 2
_SIZE = 10, 14


@dataclass(frozen=True)
class Case:
    """One call that launches a kernel.

    Attributes
    ----------
    call : str
        As source code, with shapes instead of arrays.
    arrays : tuple of ndarray
        Its inputs.
    solve : callable
        Run the kernels on these arrays on a device; returns one array or several.
    expect : callable
        The same by the formulas, in float64.
    tolerance : float
        Largest error, relative to the largest expected number; 0 where every sum is exact.
    """

    call: str
    arrays: tuple[np.ndarray, ...]
    solve: Callable[..., Any]
    expect: Callable[..., Any]
    tolerance: float = 0.0


def case_of(path: str) -> Case:
    """The case of ``cuda/<path>``."""
    return _CASES[path.removesuffix(".cu")]()


def _case(function: Callable, expect: Callable, *arrays: np.ndarray, **options: Any) -> Case:
    """A call of a function with options; the formula takes the same except `kernel`."""
    named = [f"{name}={value!r}" for name, value in options.items() if np.ndim(value) == 0]
    call = f"{function.__name__}({', '.join([*(str(a.shape) for a in arrays), *named])})"
    common = {name: value for name, value in options.items() if name != "kernel"}
    return Case(call, arrays, partial(function, **options), partial(expect, **common))


def _limited(case: Callable[..., Case], **limited: int) -> Callable[..., Case]:
    """The case under smaller limits, so that a kernel must loop or a launcher split the work."""

    def smaller(*args: Any) -> Case:
        whole = case(*args)

        def solve(*arrays: Any) -> Any:
            kept = {name: getattr(limits, name) for name in limited}
            vars(limits).update(limited)
            try:
                return whole.solve(*arrays)
            finally:
                vars(limits).update(kept)

        return replace(whole, solve=solve)

    return smaller


_in_a_small_grid = partial(_limited, GRID_LIMIT=2)  # blocks along y and z


def _integers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Integers from -4 to 4, whose sums are exact in any order; for bytes 0 to 8."""
    numbers = np.random.default_rng(shape).integers(-4, 5, shape)
    return (numbers + 4 * (np.dtype(dtype).kind == "u")).astype(dtype)


_image = partial(_integers, _IMAGES, _CHANNELS, *_SIZE)
_filters = partial(_integers, _FILTERS, _CHANNELS // _GROUPS, 3, 3)


def _conv(name: str, dtype: Any = np.float32, **options: Any) -> Case:
    arrays, options = (_image(dtype=dtype), _filters(dtype=dtype)), {"groups": _GROUPS, **options}
    return _case(getattr(mf, name), getattr(formulas, name), *arrays, padding=1, **options)


def _binary(kernel: str) -> Case:
    """Of so many channels that a window is many words, whatever their size."""
    x = _integers(_IMAGES, 300, *_SIZE)
    w = _integers(_FILTERS, 300 // _GROUPS, 3, 3)
    options = {"padding": 1, "groups": _GROUPS, "scale": False, "kernel": kernel}
    return _case(mf.binary_conv, formulas.binary_conv, x, w, **options)


def _depthwise(name: str) -> Case:
    x, w = _integers(_IMAGES, _CHANNELS, 21, 15), _integers(_CHANNELS, 1, 3, 3)
    arrays = x, w, _integers(_CHANNELS)  # the bias
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": _CHANNELS}
    return _case(getattr(mf, name), getattr(formulas, name), *arrays, **options)


def _gradients(
    function: Callable,
    stride: int = 1,
    filters: int = 14,
    channels: int = _CHANNELS,
    size: tuple[int, int] = (11, 14),
) -> Case:
    """Of the gradient of w in several parts, and of the gradient of x in several phases."""
    x, w = _integers(_IMAGES, channels, *size), _integers(filters, channels // _GROUPS, 3, 3)
    grad = _integers(_IMAGES, filters, *((n - 1) // stride + 1 for n in size))
    options = {"stride": stride, "padding": 1, "groups": _GROUPS}
    return _case(function, getattr(formulas, function.__name__), grad, x, w, **options)


def _im2col() -> Case:
    return _case(mf.im2col, formulas.im2col, _image(), kernel_size=3, padding=1)


def _col2im() -> Case:
    x, options = _integers(_IMAGES, 5, 11, 15), {"kernel_size": 4, "padding": 1, "stride": 2}
    cols = formulas.im2col(x, **options).astype(np.float32)
    return _case(mf.col2im, formulas.col2im, cols, x_shape=x.shape, **options)


def _tiled_shift(kernel: str, dilation: int = 1) -> Case:
    """In planes of several tiles, and fewer blocks than tiles."""

    def shift(x, shifts, kernel):
        out = namespace(x).empty(x.shape, x.dtype)
        table = shifts.astype(np.int32)
        launchers.shift(device_for(x), x, table, out, (1, 1), kernel, most_blocks=48)
        return out

    options = {"shifts": mf.modulo_shifts(_MOVED[1], dilation=dilation), "kernel": kernel}
    return _case(shift, formulas.shift, _integers(*_MOVED), **options)


def _shift(kernel: str, *shape: int, stride: int = 1) -> Case:
    shifts = mf.modulo_shifts(shape[1])[::-1].copy()  # the first channels stay
    options = {"shifts": shifts, "stride": stride, "kernel": kernel}
    return _case(mf.shift, formulas.shift, _integers(*shape), **options)


_MOVED = 2, 14, 17, 19  # images, channels, and a plane of four tiles


def _shift_conv(name: str, *size: int) -> Case:
    filters, channels = 20, _CHANNELS
    arrays = [_integers(_IMAGES, channels, *size), _integers(filters, channels)]
    if name.endswith("backward"):
        arrays.insert(0, _integers(_IMAGES, filters, *size))
    options = {"shifts": mf.group_shifts(channels)}
    return _case(getattr(mf, name), getattr(formulas, name), *arrays, **options)


def _winograd(kernel: str) -> Case:
    u = _integers(4, 4, 20, _CHANNELS)
    u *= np.random.default_rng(0).random(u.shape) < 0.3  # pruned

    def winograd_conv(x, u, kernel):
        weights = mf.WinogradWeights.from_dense(u)
        weights = weights.freeze() if kernel == "4_frozen" else weights
        return mf.winograd_conv(x, weights, kernel=kernel)

    x = _integers(_IMAGES, _CHANNELS, 7, 13)  # odd: the last tiles are cut
    formula = partial(formulas.winograd_conv, matrices=formulas.WINOGRAD[2])
    return _case(winograd_conv, formula, x, u, kernel=kernel)


_NORMALISED = 3, 3, 38, 42  # a channel is two parts


def _batch_norm(kernel: str | None) -> Case:
    x, (_, channels, *_) = _integers(*_NORMALISED), _NORMALISED
    weight = np.linspace(0.5, 2, channels, dtype=np.float32)
    given = [weight, _integers(channels)]
    if kernel is None:
        given += [_integers(channels), weight]

    def call(x, weight, bias, mean=None, variance=None):
        return batch_norm(x, weight, bias, mean=mean, variance=variance, kernel=kernel)[0]

    return Case(
        f"batch_norm({x.shape}, kernel={kernel!r})",
        (x, *given),
        call,
        lambda x, weight, bias, *given: formulas.batch_norm(
            x, weight, bias, **dict(zip(("mean", "variance"), given, strict=bool(given)))
        ),
        1e-5,
    )


def _batch_norm_gradients(*shape: int) -> Case:
    x, grad = _integers(*shape), _integers(*shape)[::-1].copy()
    weight = np.linspace(0.5, 2, shape[1], dtype=np.float32)
    moments = (a.astype(np.float32) for a in formulas.moments(x))
    return Case(
        f"batch_norm_backward({shape}, {shape})",
        (grad, x, x, weight, *moments),
        lambda *arrays: batch_norm_backward(*arrays)[:3],
        lambda *arrays: formulas.batch_norm_backward(*arrays)[:3],
        1e-4,
    )


def _cross_entropy() -> Case:
    logits, labels = _integers(300, 70), np.arange(300) % 70
    logits += np.arange(70, dtype=np.float32) // 10  # the maximum comes late, and often twice
    labels[::2] = logits[::2].argmax(1)
    call = f"cross_entropy({logits.shape}, {labels.shape})"
    return Case(call, (logits, labels), cross_entropy, formulas.cross_entropy, 1e-5)


def _step() -> Case:
    w, grad = _filters(), _filters()[::-1]

    def step(w, grad):
        parameter = nn.Parameter(w.copy(), adder=True)
        parameter.grad = grad
        optim.SGD([parameter], rate=0.1, momentum=0.9, weight_decay=1e-3).step()
        return parameter.data

    def expect(w, grad):
        options = {"rate": 0.1, "momentum": 0.9, "decay": 1e-3, "adaptive": True}
        return formulas.sgd(w, grad, np.zeros_like(w), **options)[0]

    return Case(f"SGD.step() of {w.shape}", (w, grad.copy()), step, expect, 1e-5)


def _batches() -> Case:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 9), np.uint8)
    dataset = data.Dataset(images, np.arange(9) % 3, ("a", "b", "c"), "toy")
    moves = data.Compose(data.RandomCrop(2), data.RandomFlip())
    mean, std = np.full(3, 120.0), np.full(3, 60.0)
    options = {"shuffle": True, "augment": moves, "mean": mean, "std": std, "seed": 0}
    loader = data.Loader(dataset, 5, **options)

    def batches(images):
        """The batches of an epoch, and the device's progress counters."""
        xp = namespace(images)
        feed = data.Feed(loader, xp)
        feed.start(0)
        taken = []
        for size in (5, 4):
            taken.append(feed.take(size)[0])
            feed.tally(xp.full((), 0.5), xp.full((), 2), size)
        return xp.concatenate(taken), feed.progress[:3]

    def expect(images):
        shown = formulas.batch(images, loader.plan(0), mean[:, None, None], std[:, None, None])
        return shown, np.array([4.5, 4, 2])

    call = f"Feed.take and Feed.tally of {images.shape} in batches of 5"
    return Case(call, (images,), batches, expect, 1e-6)


def _distances_of_bits(kernel: str) -> Case:
    """Of so many filters and taps that every dimension of `fragments` is odd."""
    x, w = (_integers(*shape, dtype=np.uint8) % 4 for shape in ((2, 15, 10, 14), (120, 5, 6, 6)))
    options = {"padding": 1, "groups": 3, "bits": 2, "kernel": kernel}
    return _case(mf.adder_conv, formulas.low_bit_adder_conv, x, w, **options)


def _match(dtype: Any = np.float32) -> Case:
    arrays = _integers(30, 40, dtype=dtype), _integers(5, 7, dtype=dtype)
    return _case(mf.match_template_l1, formulas.match_template_l1, *arrays)


def _nearest() -> Case:
    rows = _integers(2, 9, dtype=np.uint8), _integers(700, 9, dtype=np.uint8)
    return _case(mf.nearest_l1, formulas.nearest_l1, *rows, k=260)


_ADDERS = ("1_naive", "2_shared_tile", "3_register_tile", "4_vectorised_loads", "5_implicit_conv")
_CASES: dict[str, Callable[[], Case]] = {
    **{f"adder/{name}": partial(_conv, "adder_conv", kernel=name) for name in _ADDERS},
    "adder/6_uint8": partial(_conv, "adder_conv", np.uint8),
    "adder/7_half2": partial(_conv, "adder_conv", np.float16, kernel="7_half2"),
    "adder/pack_channels": partial(_in_a_small_grid(_conv), "adder_conv", np.uint8),
    "adder/depthwise": partial(_depthwise, "adder_conv"),
    "adder/grad_x": partial(_gradients, mf.adder_conv_backward, 2, 40, 34, (13, 15)),
    "adder/grad_w": partial(_gradients, mf.adder_conv_backward),
    "adder/add_parts": partial(_gradients, mf.adder_conv_backward, 1, 2, 2, (37, 43)),
    "adder/sign_grad_w": partial(_gradients, adder_conv_sign_backward),
    "adder/distance": _match,
    "adder/distance_uint8": partial(_match, np.uint8),
    "adder/nearest": _limited(_nearest, WORKSPACE=4 * 2 * 300),
    "convolution/im2col": _in_a_small_grid(_im2col),
    "convolution/col2im": _in_a_small_grid(_col2im),
    "convolution/2_implicit_conv": partial(_conv, "conv"),
    "convolution/depthwise": partial(_depthwise, "conv"),
    "convolution/grad_x": partial(_gradients, mf.conv_backward, 2, 40, 34, (13, 15)),
    "convolution/grad_w": partial(_gradients, mf.conv_backward),
    "shift/1_tiled_modulo": partial(_tiled_shift, "1_tiled_modulo"),
    "shift/2_tiled_generic": partial(_tiled_shift, "2_tiled_generic", 2),
    "shift/3_table": partial(_shift, "3_table", *_MOVED),
    "shift/strided": partial(_shift, "3_table", 1, 13, 17, 19, stride=2),
    "shift/4_fused_conv": partial(_shift_conv, "shift_conv", *_SIZE),
    "shift/fused_adder_conv": partial(_shift_conv, "shift_adder_conv", *_SIZE),
    "shift/fused_grad_x": partial(_shift_conv, "shift_conv_backward", *_SIZE),
    "shift/fused_grad_w": partial(_shift_conv, "shift_conv_backward", 17, 21),
    "winograd/1_input_transform": partial(_limited(_winograd, GRID_LIMIT=16), "1_dense"),
    "winograd/1_output_transform": partial(_limited(_winograd, GRID_LIMIT=16), "1_dense"),
    "winograd/2_sparse": partial(_limited(_winograd, GRID_LIMIT=16), "2_sparse"),
    "winograd/3_fused": partial(_winograd, "3_fused"),
    "winograd/4_frozen": partial(_winograd, "4_frozen"),
    **{
        f"binary/{name}": partial(_binary, name)
        for name in ("1_naive", "2_register_tile", "3_tensor_cores")
    },
    "binary/pack": partial(_in_a_small_grid(_binary), "1_naive"),
    "binary/ones": partial(_binary, "2_register_tile"),
    "binary/fragments": partial(_distances_of_bits, "3_tensor_cores"),
    "batch_norm/1_three_passes": partial(_batch_norm, "1_three_passes"),
    "batch_norm/2_moments": partial(_batch_norm, "2_parts"),
    "batch_norm/2_normalise": partial(_batch_norm, "2_parts"),
    "batch_norm/3_registers": partial(_batch_norm, "3_registers"),
    "batch_norm/given": partial(_batch_norm, None),
    "batch_norm/grad_registers": partial(_batch_norm_gradients, *_NORMALISED),
    "batch_norm/grad_sums": partial(_batch_norm_gradients, 3, 3, 82, 74),
    "batch_norm/grad_x": partial(_batch_norm_gradients, 3, 3, 82, 74),
    "cross_entropy/rows": _cross_entropy,
    "cross_entropy/mean": _cross_entropy,
    "sgd/square_sums": _step,
    "sgd/update": _step,
    "batch/take": _in_a_small_grid(_batches),
    "batch/tally": _batches,
}
