"""The CUDA kernels of binary and low-bit convolutions: emulated with all checks, and on a GPU."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import images_of
from test_cuda_kernels import Emulated, Gpu, options, unwritten

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.launch import binary, emulator, limits, select

KERNELS = select.names("binary_conv")
FLOATS = ["float16", "float32", "float64"]
GEOMETRIES = {
    "one channel": images_of(2, 1, 7, 9, 5, (3, 3), padding=(1, 1)),
    "3 channels, stride 2": images_of(1, 3, 15, 13, 16, (7, 7), (2, 2), (3, 3)),
    "16 channels": images_of(3, 16, 4, 8, 16, (3, 3), padding=(1, 1)),
    "31 channels, stride (2, 1), wide padding, dilation": images_of(
        1, 31, 9, 6, 20, (3, 2), (2, 1), (3, 2), (1, 2)
    ),
    "64 channels": images_of(2, 64, 5, 5, 70, (3, 3), padding=(1, 1)),
    "65 channels": images_of(1, 65, 6, 5, 17, (3, 3), padding=(2, 0)),
    "130 channels in groups": images_of(2, 130, 3, 4, 6, (1, 3), padding=(0, 1), groups=2),
    "depthwise": images_of(2, 4, 5, 5, 4, (3, 3), (2, 2), (1, 1), groups=4),
    "groups, stride above kernel": images_of(
        2, 36, 8, 7, 9, (2, 3), (3, 4), (2, 0), (2, 1), groups=3
    ),
    "1x1": images_of(3, 96, 4, 4, 33, (1, 1), (2, 2)),
    "one pixel": images_of(1, 200, 1, 1, 40, (1, 1)),
    "nothing but padding": images_of(1, 8, 2, 3, 3, (3, 3), padding=(9, 20)),
    "uneven padding": images_of(2, 40, 7, 9, 20, (3, 2), (2, 1), ((0, 3), (2, 1)), (1, 2)),
    "a large window": images_of(1, 2, 18, 6, 3, (17, 2), (1, 2), (1, 1), (1, 2)),
    "more than one block": images_of(5, 48, 6, 6, 40, (2, 2), padding=(1, 1)),
}
geometries = pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES.keys())
kernels = pytest.mark.parametrize("kernel", KERNELS)


@pytest.fixture(params=[Emulated, pytest.param(Gpu, marks=pytest.mark.gpu)])
def run(request):
    return request.param()


def signed(shape, dtype, seed=0):
    """Numbers of both signs, and those whose sign is a matter of definition."""
    rng = np.random.default_rng(seed)
    special = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-7, -1e-7])
    if dtype == "float32":
        special = np.append(special, [1e-45, -1e-45, 1e-40, -1e-40])
    numbers = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.2, rng.choice(special, shape), numbers).astype(dtype)


def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 3, 16, 31, 64, 65, 130])
@pytest.mark.parametrize("plane", [(1, 1), (3, 5), (4, 7), (33, 32)])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_pack_signs(run, dtype, channels, plane, misaligned):
    shape = 2, channels, *plane
    memory = signed(np.prod(shape) + misaligned, dtype)
    x = memory[misaligned:].reshape(shape)
    words = unwritten((2, -(-channels // 64), *plane), np.uint64)
    run(binary.pack_signs, x, words)
    bits = np.zeros((2, words.shape[1] * 64, *plane), np.uint64)
    bits[:, :channels] = x >= 0
    place = np.uint64(1) << np.arange(64, dtype=np.uint64)[:, None, None]
    assert_array_equal(words, (bits.reshape(2, -1, 64, *plane) * place).sum(2, dtype=np.uint64))


@geometries
@kernels
@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_conv(run, g, kernel, dtype):
    x, w = signed(g.x_shape, dtype), signed(g.w_shape, dtype, 1)
    out = unwritten(g.out_shape, dtype)
    run(binary.binary_conv, x, w, None, out, g, kernel)
    expected = spec.conv(signs(x), signs(w), **options(g))
    assert_array_equal(out, expected.astype(dtype))


@geometries
@kernels
@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_conv_with_a_scale(run, g, kernel, dtype):
    x, w = signed(g.x_shape, dtype), signed(g.w_shape, dtype, 1)
    scale = np.random.default_rng(2).random(g.filters)
    scale = scale.astype("float64" if dtype == "float64" else "float32")
    out = unwritten(g.out_shape, dtype)
    run(binary.binary_conv, x, w, scale, out, g, kernel)
    expected = spec.conv(signs(x), signs(w), **options(g)) * scale[:, None, None]
    rtol = {"float16": 2**-10, "float32": 2**-22, "float64": 2**-51}[dtype]
    assert_allclose(out, expected, rtol=rtol, atol=0)


@geometries
@kernels
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_low_bit_adder_conv(run, g, kernel, bits, biased):
    rng = np.random.default_rng(bits)
    x, w = (rng.integers(0, 2**bits + 3, s).astype(np.uint8) for s in (g.x_shape, g.w_shape))
    x.ravel()[::7] = 255
    bias = np.arange(g.filters, dtype=np.int32) - 3 if biased else None
    out = unwritten(g.out_shape, np.int32)
    run(binary.adder_conv, x, w, bias, out, g, bits, kernel)
    most = 2**bits - 1
    assert_array_equal(
        out, spec.adder_conv(np.minimum(x, most), np.minimum(w, most), bias, **options(g))
    )


@kernels
def test_weights_packed_once_serve_many_calls(run, kernel):
    g = GEOMETRIES["130 channels in groups"]
    x, w = signed(g.x_shape, "float32"), signed(g.w_shape, "float32", 1)
    expected = spec.conv(signs(x), signs(w), **options(g))

    def twice(device, x, w, out):
        weights = binary.pack_weights(device, w, g.groups, kernel=kernel)
        assert weights.kernel == kernel and weights.nbytes >= w.size // 8
        for _ in range(2):
            binary.binary_conv(device, x, weights, None, out, g)

    out = unwritten(g.out_shape, "float32")
    run(twice, x, w, out)
    assert_array_equal(out, expected)


@kernels
@pytest.mark.parametrize("limit, value", [("INT32", 4 * 40 * 49), ("WORKSPACE", 3 * 288)])
def test_a_launch_takes_as_many_images_as_fit(monkeypatch, kernel, limit, value):
    """Four images' outputs, or three images' bits."""
    g = GEOMETRIES["more than one block"]
    x, w = signed(g.x_shape, "float32"), signed(g.w_shape, "float32", 1)
    monkeypatch.setattr(limits, limit, value)
    out = unwritten(g.out_shape, "float32")
    with mf.emulated_cuda() as report:
        binary.binary_conv(emulator.device, x, w, None, out, g, kernel)
    assert_array_equal(out, spec.conv(signs(x), signs(w), **options(g)))
    assert not report.findings


def launches(call):
    """The files that a call launches, in order."""
    paths, device = [], emulator.Device()
    device.launch = lambda path, *args, **options: paths.append(path)
    call(device)
    return paths


def test_a_call_packs_x_alone_where_weights_are_packed():
    g = GEOMETRIES["64 channels"]
    x, w, out = (np.zeros(s, "float32") for s in (g.x_shape, g.w_shape, g.out_shape))
    weights = binary.pack_weights(emulator.Device(), np.ones(g.w_shape, "float32"), 1)
    packed = launches(lambda device: binary.binary_conv(device, x, weights, None, out, g))
    assert packed == ["binary/pack.cu", "binary/3_tensor_cores.cu"]
    anew = launches(lambda device: binary.binary_conv(device, x, w, None, out, g))
    assert anew == ["binary/pack.cu", "binary/ones.cu", "binary/fragments.cu", *packed]


@pytest.mark.parametrize("architecture, kernel", [(75, "2_register_tile"), (90, "3_tensor_cores"),
                                                  (120, "2_register_tile")])  # fmt: skip
def test_the_architecture_chooses_the_kernel(architecture, kernel):
    device = emulator.Device()
    device.architecture = architecture
    assert binary.pack_weights(device, np.ones((2, 3, 1, 1), "float32"), 1).kernel == kernel


@pytest.mark.parametrize("channels", [1, 31, 64, 130])
@pytest.mark.parametrize("plane", [(1, 1), (3, 5), (4, 7), (33, 32)])
def test_each_number_is_read_once(channels, plane):
    x = signed((2, channels, *plane), "float32")
    words = np.empty((2, -(-channels // 64), *plane), np.uint64)
    with mf.emulated_cuda(trace=True) as report:
        binary.pack_signs(emulator.device, x, words)
    (counts,) = report.counts.values()
    each = 4 if x[0, 0].size % 4 == 0 else 1
    assert counts.global_loads * each == x.size
    assert counts.global_stores * (1 if each == 1 else 2) == words.size  # 16 bytes at a time
    assert counts.global_bytes == x.nbytes + words.nbytes


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_lie_side_by_side(bits):
    """Bit l of channel c is bit c (2**bits - 1) + l, and no word holds less than it could."""
    g = images_of(2, 23, 3, 5, 1, (1, 1))
    x, levels = np.arange(2 * 23 * 15).reshape(g.x_shape).astype(np.uint8) % 19, 2**bits - 1
    with mf.emulated_cuda():
        words = binary._packed(emulator.device, x, binary.Codes(23, levels, 32))
    assert words.shape[1] == -(-23 * levels // 32)
    seen = np.unpackbits(words.view(np.uint8).reshape(*words.shape, 4), axis=-1, bitorder="little")
    seen = np.moveaxis(seen, 1, -2).reshape(2, 3, 5, -1)
    expected = np.moveaxis(x, 1, -1)[..., None] > np.arange(levels)
    assert_array_equal(seen[..., : 23 * levels], expected.reshape(2, 3, 5, -1))
    assert not seen[..., 23 * levels :].any()


def test_tensor_cores_wait_for_no_other_warp_and_load_from_no_bank_twice():
    g = images_of(2, 64, 16, 16, 64, (3, 3), padding=(1, 1))
    x, w = signed(g.x_shape, "float32"), signed(g.w_shape, "float32", 1)
    out = unwritten(g.out_shape, "float32")
    with mf.emulated_cuda(trace=True) as report:
        binary.binary_conv(emulator.device, x, w, None, out, g)
    counts = report.counts["binary_conv"]
    loads = [line for line in counts.lines.values() if line.shared_loads and not line.shared_stores]
    assert counts.barriers == sum(line.bank_conflicts for line in loads) == 0 < len(loads)
    assert counts.global_stores * 2 == out.size


def test_kernels_are_asked_for_by_name():
    x, w = np.ones((1, 4, 3, 3), np.float32), np.ones((2, 4, 3, 3), np.float32)
    with pytest.raises(ValueError, match="binary_conv: kernel='1_naive' is a CUDA kernel and x"):
        mf.binary_conv(x, w, kernel="1_naive")
    with pytest.raises(ValueError, match="binary_conv: no kernel named '6_uint8'; there are 1_n"):
        mf.binary_conv(x, w, kernel="6_uint8")
    few = x.astype(np.uint8), w.astype(np.uint8)
    with mf.emulated_cuda():
        for kernel in KERNELS:
            assert mf.binary_conv(x, w, kernel=kernel).item(0) == 36
            assert mf.adder_conv(*few, bits=2, kernel=kernel).item(0) == 0
        with pytest.raises(ValueError, match="adder_conv with bits: no kernel named '6_uint8'"):
            mf.adder_conv(*few, bits=2, kernel="6_uint8")
        halves = mf.binary_conv(x.astype(np.float16), w.astype(np.float16))
        assert halves.dtype == np.float16 and halves.item(0) == 36
    with pytest.raises(TypeError, match="binary_conv: float16 is for GPUs"):
        mf.binary_conv(x.astype(np.float16), w.astype(np.float16))
