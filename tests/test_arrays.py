"""Arrays of other kinds: anything with __dlpack__, and what CuPy arrays look like from here."""

import contextlib
import sys
import types

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from problems import on_gpu

import mulfree_cupy as mf
from mulfree_cupy import arrays


class Exported:
    """An array of some other library, with the DLPack protocol and nothing else."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.device, 0)


def test_dlpack_arrays_come_in_without_a_copy():
    x = np.arange(12.0).reshape(1, 3, 2, 2)
    (taken,) = arrays.take("test", x=Exported(x))
    assert type(taken) is np.ndarray and np.shares_memory(taken, x)
    answer = mf.adder_conv(Exported(x), Exported(x))
    assert type(answer) is np.ndarray and answer.item() == 0


class Negated(Exported):
    """A PyTorch tensor with its lazy negative bit set."""

    def is_neg(self):
        return True


def test_a_negative_bit_is_refused_and_not_dropped():
    x = np.ones((1, 1, 2, 2))
    message = r"conv: w, a test_arrays.Negated, has its negative bit set.*pass \.resolve_neg\(\)"
    with pytest.raises(TypeError, match=message):
        mf.conv(x, Negated(x))
    with pytest.raises(TypeError, match=r"conv: out, .*resolve_neg"):
        mf.conv(x, x, out=Negated(x[:, :, :1, :1]))


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("torch", r"\.to\(torch\.float32\)"),
        ("tensorflow.python.framework.ops", r"tf\.cast\(\.\.\., tf\.float32\)"),
        ("jaxlib._jax", r"\.astype\(np\.float32\)"),
        ("numpy", r"\.astype\(np\.float32\)"),
    ],
)
def test_conversions_are_told_in_the_words_of_the_library(library, words):
    half, theirs = np.ones((1, 1, 2, 2), np.float16), type("Tensor", (Exported,), {})
    theirs.__module__ = library
    x, w, shifts = theirs(half), theirs(half[:, :, 0, 0]), [(0, 0)]
    for call in (
        lambda: mf.conv(x, x),
        lambda: mf.conv_backward(x, x, x),
        lambda: mf.adder_conv(x, x),
        lambda: mf.adder_matmul(w, w),
        lambda: mf.shift_conv(x, w, shifts),
        lambda: mf.shift_conv_backward(x, x, w, shifts),
        lambda: mf.adaptive_rate(x),
    ):
        with pytest.raises(TypeError, match=f"convert with {words}$"):
            call()


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x = torch.complex(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).conj().imag
    with pytest.raises(TypeError, match="resolve_neg"):
        mf.conv(x, x)
    x = x.resolve_neg()
    assert mf.conv(x, -x).item() == -4
    with pytest.raises(TypeError, match=r"float16; convert with \.to\(torch\.float32\)"):
        mf.conv(x.half(), x.half())
    for odd, message in (
        (x.to(torch.bfloat16), r"[Dd]type.*; convert with \.to\(torch\.float32\)"),
        (x.to_sparse(), "strided"),
        (x.clone().requires_grad_(), "detach"),
        (x.to("meta"), "meta"),
    ):
        with pytest.raises(TypeError, match=f"conv: x, a torch.Tensor, cannot be .*{message}"):
            mf.conv(odd, x)
    view = torch.arange(24.0).reshape(1, 2, 3, 4).transpose(2, 3)[:, :, ::2]
    assert_array_equal(mf.conv(view, view[:, :, 1:]), mf.conv(view.numpy(), view.numpy()[:, :, 1:]))
    out = torch.empty(1, 1, 1, 1)
    answer = mf.conv(x, x, out=out)
    assert out.item() == 4 and answer.ctypes.data == out.data_ptr()
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake_tensor.FakeTensorMode():
        fake = torch.ones(1, 1, 2, 2)
    with pytest.raises(TypeError, match="conv: x is a tensor without numbers, .*FakeTensor"):
        mf.conv(fake, x)


class Refused(Exported):
    """An array whose library has reasons of its own to give nothing out."""

    def __dlpack_device__(self):
        raise AssertionError("not in this mode")


def test_whatever_another_library_raises_the_argument_is_named():
    x, odd = np.ones((1, 1, 2, 2)), Refused(None)
    for call in (lambda: mf.conv(x, odd), lambda: mf.conv(x, x, out=odd)):
        with pytest.raises(TypeError, match="conv: (w|out), .*Refused, cannot .*not in this mode"):
            call()
    with mf.emulated_cuda(), pytest.raises(TypeError, match="shift: x, .*not in this mode"):
        mf.shift(odd, [(0, 0)])


class Lazy:
    """A Dask array, or an xarray one that may hold one, by the protocol of their graphs."""

    def __init__(self, graph):
        self.graph = graph

    def __dask_graph__(self):
        return self.graph

    def __array__(self, dtype=None, copy=None):
        assert self.graph is None, "computed"
        return np.ones((1, 1, 2, 2))


def test_what_is_not_computed_yet_is_refused():
    x = np.ones((1, 1, 2, 2))
    message = r"conv: (x|w), a test_arrays.Lazy, is lazy; .*compat\.dask.*\.compute\(\)"
    for call in (lambda: mf.conv(Lazy({}), x), lambda: mf.conv(x, Lazy({}))):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(TypeError, match=r"conv: x, a test_arrays.Lazy, is lazy"):
        mf.conv([x[0], Lazy({})], x)
    assert mf.conv(Lazy(None), x).item() == 4


def test_no_mask_is_dropped():
    masked = np.ma.masked_less(np.arange(4.0), 2)
    for value in (masked, [masked], [[1.0, np.ma.masked]], (masked, masked)):
        with pytest.raises(TypeError, match="adder_matmul: a is a masked array; pass its .data"):
            mf.adder_matmul(value, np.ones((4, 1)))


class Sparse:
    def toarray(self):
        raise AssertionError("made dense")


def test_what_is_no_array_is_named():
    for value, named in (
        (None, "NoneType"),
        ({}, "dict"),
        (object, "type"),
        (Sparse(), r"test_arrays.Sparse; pass its \.toarray\(\)"),
    ):
        with pytest.raises(TypeError, match=f"conv: x is no array, got a {named}$"):
            mf.conv(value, np.ones((1, 1, 2, 2)))


def test_columns_of_objects_are_told_how_to_convert():
    numbers = np.array([[1.0, 2.0]], object)
    message = r"adder_matmul: a must hold .* dtype object and shape \(1, 2\); convert with .astype"
    with pytest.raises(TypeError, match=message):
        mf.adder_matmul(numbers, np.ones((2, 1)))
    assert mf.adder_matmul(numbers.astype(np.float32), np.ones((2, 1))).item() == -1


def test_a_file_mapped_into_memory_is_an_array(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, 1, 2, 2))
    x[:] = 1
    assert mf.conv(x, x).item() == 4 and type(mf.conv(x, x)) is np.ndarray
    read = np.memmap(tmp_path / "x", np.float32, "r", shape=(1, 1, 2, 2))
    assert mf.conv(read, read).item() == 4
    with pytest.raises(ValueError, match="shift: out is read-only"):
        mf.shift(x, [(0, 0)], out=read)


def test_dlpack_from_an_unreachable_device_is_a_type_error():
    with pytest.raises(TypeError, match="conv: w, a test_arrays.Exported, cannot be taken in"):
        mf.conv(np.ones((1, 1, 2, 2)), Exported(np.ones((1, 1, 2, 2)), device=2))


def test_sequences_are_taken_as_numpy_takes_them():
    assert mf.adder_matmul([[1.0, 2.0]], [[0.0], [0.0]]).item() == -3


def test_big_endian_arrays_are_read_right():
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    assert mf.conv(x.astype(">f8"), x).item() == mf.conv(x, x).item() == 14


@pytest.fixture
def fake_cupy(monkeypatch):
    """A stand-in with CuPy's class and device attributes: enough to ask whose array this is."""

    class Device(contextlib.nullcontext):
        def __init__(self, number):
            super().__init__()
            self.id = number

    class ndarray:
        def __init__(self, device):
            self.device = Device(device)
            self.dtype, self.shape = np.dtype(np.float32), (1, 1, 2, 2)

    cupy = types.ModuleType("cupy")
    cupy.ndarray = ndarray
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_mixed_devices_are_a_type_error(fake_cupy):
    x, w = fake_cupy.ndarray(0), np.ones((1, 1, 2, 2))
    with pytest.raises(TypeError, match=r"conv: .* x on GPU 0 \(CuPy\), w on the CPU \(NumPy\)"):
        mf.conv(x, w)
    with pytest.raises(TypeError, match="x on GPU 0 .* w on GPU 1"):
        mf.conv(x, fake_cupy.ndarray(1))
    out = fake_cupy.ndarray(1)
    out.__dlpack__ = None
    with pytest.raises(TypeError, match="shift: .* x on the CPU .* out on GPU 1"):
        mf.shift(w, [(0, 0)], out=out)
    assert arrays.namespace(x) is fake_cupy


@pytest.mark.gpu
def test_arrays_reach_the_gpu_as_they_lie():
    whole = np.arange(96, dtype=np.float32).reshape(4, 4, 6)
    for array in (
        whole,
        whole.T,
        whole[:, ::-1, 1::2],
        whole.ravel()[1:],
        whole[0, 0, 1],
    ):
        moved = on_gpu(np.asarray(array))
        assert moved.shape == array.shape and moved.strides == array.strides
        assert moved.data.ptr % 16 == np.asarray(array).ctypes.data % 16
        assert_array_equal(moved.get(), array)
