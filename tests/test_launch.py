"""The walls of the launchers: what a device is, which kernel serves a call, how a launch is cut."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from problems import images_of, on_gpu

import mulfree_cupy as mf
from mulfree_cupy.launch import (
    arguments,
    cuda,
    device_for,
    emulator,
    limits,
    select,
    shift,
    source,
    tiling,
    winograd,
)
from mulfree_cupy.launch.device import Device
from mulfree_cupy.report import resources

MEMBERS = [name for name in vars(Device) if not name.startswith("_")]


@pytest.mark.parametrize(
    "kind", [cuda.Device, emulator.Device, resources.Recorder], ids=lambda kind: kind.__module__
)
def test_a_device_is_what_the_launchers_use(kind):
    assert MEMBERS == ["xp", "architecture", "constant", "launch"]
    for name in MEMBERS:
        wanted, member = getattr(Device, name), getattr(kind, name)
        if callable(wanted):
            assert list(inspect.signature(member).parameters) == list(
                inspect.signature(wanted).parameters
            )


@pytest.mark.gpu
def test_the_device_of_an_array_on_a_gpu():
    """In rehearsal too, whose device is the real one."""
    device = device_for(on_gpu(np.ones(2, np.float32)))
    assert device is cuda.device and device.xp.__name__ == "cupy"
    assert 75 <= device.architecture < 1000
    constant = device.constant(np.arange(3))
    assert constant.shape == (3,) and device.constant(np.arange(3)) is constant


def test_the_device_of_a_numpy_array():
    x = np.ones(2)
    assert device_for(x) is None
    with mf.emulated_cuda():
        assert device_for(x) is emulator.device
        assert emulator.device.constant(x) is x


WEIGHTS = mf.WinogradWeights.from_dense(np.ones((4, 4, 4, 4)))
DEEP = images_of(1, 8, 9, 9, 8, (3, 3))
PLANES = replace(DEEP, groups=8)
TABLE = select.modulo_table(9, 3, 1)


def call(function, dtype="float32", **facts):
    return select.Call(function, np.dtype(dtype), **facts)


CALLS = [
    (call("adder_conv", geometry=DEEP), "5_implicit_conv"),
    (call("adder_conv", "float64", geometry=PLANES), "depthwise"),
    (call("adder_conv", geometry=replace(PLANES, kernel=(8, 3))), "5_implicit_conv"),
    (call("adder_conv", geometry=replace(PLANES, filters=40)), "5_implicit_conv"),
    (call("adder_conv", "uint8", geometry=PLANES), "6_uint8"),
    (call("adder_conv", "float16", geometry=DEEP), "7_half2"),
    (call("adder_matmul"), "4_vectorised_loads"),
    (call("adder_matmul", "uint8"), "6_uint8"),
    (call("adder_conv with bits", "uint8"), "3_tensor_cores"),
    (call("binary_conv"), "3_tensor_cores"),
    (call("binary_conv", architecture=80), "3_tensor_cores"),
    (call("binary_conv", architecture=75), "2_register_tile"),
    (call("binary_conv", architecture=100), "2_register_tile"),
    (call("binary_conv", architecture=120), "2_register_tile"),
    (call("conv", geometry=DEEP), "2_implicit_conv"),
    (call("conv", geometry=PLANES), "depthwise"),
    (call("conv", "float16", geometry=PLANES), "1_im2col"),
    (call("shift", shifts=TABLE, size=(9, 9)), "3_table"),
    (call("shift_backward", "uint8", shifts=TABLE, size=(9, 9), stride=(2, 2)), "3_table"),
    (call("shift_conv", "float16", shifts=TABLE, size=(9, 9)), "4_fused_conv"),
    (call("shift_adder_conv", shifts=TABLE, size=(9, 9)), "4_fused_conv"),
    (call("winograd_conv", weights=WEIGHTS), "1_dense"),
    (call("winograd_conv", weights=WEIGHTS.freeze()), "4_frozen"),
    (call("batch_norm", elements=16384), "3_registers"),
    (call("batch_norm", "float64", elements=16384), "2_parts"),
]


@pytest.mark.parametrize("call, kernel", CALLS, ids=lambda part: getattr(part, "function", part))
def test_the_default_can_be_used_and_what_cannot_says_why(call, kernel):
    assert select.choose(call) == kernel
    for name in select.names(call.function):
        can, reason = select.can_use(name, call)
        if can:
            assert reason == "" and select.choose(call, name) == name
            continue
        with pytest.raises(ValueError) as raised:
            select.choose(call, name)
        message = str(raised.value)
        assert message.startswith(f"{call.function}: kernel {name!r} {reason}; ")
        assert reason and kernel in message.split("; ")[-1]


def test_every_operation_was_asked():
    assert {call.function for call, _ in CALLS} == set(select.KERNELS)


def test_a_depthwise_kernel_can_be_asked_for():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((8, 1, 3, 3))
    with mf.emulated_cuda():
        for function in (mf.conv, mf.adder_conv):
            default = function(x, w, groups=4)
            assert_array_equal(function(x, w, groups=4, kernel="depthwise"), default)
            with pytest.raises(ValueError, match=r"'depthwise' takes one channel per group.*4 ch"):
                function(x, rng.standard_normal((8, 4, 3, 3)), kernel="depthwise")
            with pytest.raises(ValueError, match=r"of at most 4, got \(3, 3\), \(5, 5\) and \(1, "):
                function(x, w, groups=4, stride=5, kernel="depthwise")


@given(st.sampled_from([4, 8]), st.integers(1, 300), st.integers(1, 10**6), st.integers(1, 8))
def test_tiles_are_what_a_block_can_be(itemsize, rows, columns, groups):
    for tile in (
        tiling.conv_tile(itemsize, rows, columns, groups),
        tiling.half_tile(4, rows, columns, groups),
        tiling.word_tile(4, rows, columns, groups),
        tiling.grad_x_tile(itemsize, rows),
        tiling.grad_w_tile(itemsize, rows, columns),
        tiling.shift_grad_w_tile(rows, columns),
    ):
        assert 32 <= tile.threads <= limits.BLOCK_THREADS
        assert tile.rows % tile.each_row == tile.columns % tile.each_column == 0
        covered = tile.blocks(rows, columns, groups) * tile.rows * tile.columns
        assert covered >= rows * columns * groups


STRUCTS = [
    ("geometry.cuh", "Convolution", arguments.CONVOLUTION),
    ("shift/table.cuh", "Planes", shift._PLANES),
    ("winograd/transform.cuh", "Tiles", winograd._IMAGE_TILES),
]


@pytest.mark.parametrize("header, name, dtype", STRUCTS, ids=[name for _, name, _ in STRUCTS])
def test_a_struct_lies_in_numpy_as_in_c(header, name, dtype):
    """A kernel says how wide each field is, and where it begins."""
    text = source.read(header)
    text = text[: text.index("// A transform's matrix")] if name == "Tiles" else text
    fields = list(dtype.fields)
    sets = "\n".join(
        f"    to[{i}] = sizeof(s.{field});\n"
        f"    to[{len(fields) + i}] = (int)((const char*)&s.{field} - (const char*)&s);"
        for i, field in enumerate(fields)
    )
    code = f"""{text}
extern "C" __global__ void places(const {name} s, int* to) {{
{sets}
    to[{2 * len(fields)}] = sizeof(s);
}}"""
    to = np.zeros(2 * len(fields) + 1, np.int32)
    emulator.RawKernel(code, "places")((1,), (1,), (np.zeros((), dtype)[()], to))
    places = [dtype.fields[field] for field in fields]
    assert [*to] == [
        *(kind.itemsize for kind, *_ in places), *(place for _, place, *_ in places), dtype.itemsize
    ]  # fmt: skip


def test_what_a_kernel_is_told_of_a_convolution():
    g = images_of(5, 6, 30, 8, 4, (3, 2), (4, 6), ((1, 2), (0, 3)), (6, 1), groups=2)
    told = arguments.convolution_struct(g, 3)
    assert [told[n].item() for n in ("images", "groups", "channels", "filters")] == [3, 2, 3, 2]
    assert arguments.convolution_struct(g, 3, 1)["channels"] == 1  # words of several channels
    pairs = dict(
        size=(30, 8), kernel=(3, 2), stride=(4, 6), pad=(1, 0), dilation=(6, 1),
        out=(g.out_height, g.out_width), step=(2, 6),
    )  # fmt: skip
    for name, pair in pairs.items():
        assert tuple(told[name]) == pair
