"""Bad input: the message names the function, the argument and its shape, and nothing is written."""

import re

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy.ops.adder import adder_conv_sign_backward
from mulfree_cupy.ops.pooling import max_pool

X, W = np.ones((2, 4, 6, 5), np.float32), np.ones((6, 4, 3, 3), np.float32)
GRAD = np.ones((2, 6, 4, 3), np.float32)
CALLS = {
    "conv": lambda x=X, w=W, **options: mf.conv(x, w, **options),
    "adder_conv": lambda x=X, w=W, **options: mf.adder_conv(x, w, **options),
    "binary_conv": lambda x=X, w=W, **options: mf.binary_conv(x, w, **options),
    "binary_conv_backward": lambda x=X, w=W, **options: mf.binary_conv_backward(
        GRAD, x, w, **options
    ),
    "conv_backward": lambda x=X, w=W, **options: mf.conv_backward(GRAD, x, w, **options),
    "adder_conv_backward": lambda x=X, w=W, **options: mf.adder_conv_backward(
        GRAD, x, w, **options
    ),
}
WITH_BIAS = ["conv", "adder_conv"]
FORWARD = [*WITH_BIAS, "binary_conv"]

BAD = [
    (
        dict(x=X[0]),
        ValueError,
        r"x must have 4 dimensions \(N, C, H, W\) beside w .*\(4, 6, 5\); for one image: x\[None\]",
    ),
    (
        dict(x=X.transpose(0, 2, 3, 1)),
        ValueError,
        r"6/1 = 6 channels, got 4: .*; channels come before the rows: numpy.moveaxis",
    ),
    (dict(w=W[0]), ValueError, r"w must have 4 dimensions .*\(4, 3, 3\)"),
    (dict(x=X[0, 0]), ValueError, r"x must have dimensions \(N, C, L\) or .*, got shape \(6, 5\)"),
    (dict(x=X[None, None]), ValueError, r"x must have dimensions .*\(1, 1, 2, 4, 6, 5\)"),
    (dict(w=W[:, :3]), ValueError, r"w must have .* 4 channels, got 3.*\(2, 4, 6, 5\)"),
    (dict(groups=3), ValueError, r"groups=3 must divide .*\(2, 4, 6, 5\).*\(6, 4, 3, 3\)"),
    (dict(groups=4), ValueError, r"groups=4 must divide"),
    (dict(groups=2), ValueError, r"C/groups = 4/2 = 2 channels, got 4"),
    (dict(groups=0), ValueError, "groups must be at least 1"),
    (dict(groups=1.0), TypeError, "groups must be an int, got 1.0"),
    (dict(x=None), TypeError, "x is no array, got a NoneType"),
    (dict(w=None), TypeError, "w is no array, got a NoneType"),
    (dict(stride=2**70), ValueError, "stride must be below 2"),
    (dict(dilation=(1, 2**63)), ValueError, "dilation must be below 2"),
    (dict(padding=2**31 - 1), ValueError, r"padded image must have fewer than 2\*\*31 rows"),
    (dict(stride=0), ValueError, "stride must be at least 1, got 0"),
    (dict(stride=(1, -2)), ValueError, r"stride must be at least 1, got \(1, -2\)"),
    (dict(stride=(1, 2, 3)), TypeError, "stride must be an int or a pair of ints"),
    (dict(stride=1.0), TypeError, "stride must be an int or a pair of ints, got 1.0"),
    (dict(padding=-1), ValueError, "padding must be at least 0"),
    (dict(padding="full"), ValueError, "padding must be 'same', 'valid' or ints, got 'full'"),
    (dict(padding="SAME"), ValueError, "padding must be 'same', 'valid' or ints, got 'SAME'"),
    (
        dict(padding="same", stride=(1, 2)),
        ValueError,
        r"padding='same' is for stride 1, got stride \(1, 2\)",
    ),
    (
        dict(padding=((1, 2), (0, -1))),
        ValueError,
        r"padding must be at least 0, got \(\(1, 2\), \(0, -1\)\)",
    ),
    (dict(padding=((1, 2), (0, 2**31))), ValueError, "padding must be below 2"),
    *(
        (
            dict(padding=padding),
            TypeError,
            re.escape(
                "padding must be an int, a pair of ints, a pair (before, after) for each of 2 "
                f"axes, 'same' or 'valid', got {padding!r}"
            ),
        )
        for padding in [
            *(((1, 2),), ((1, 2), 1), (1, 2, 3), ((1, 2), (1, 2), (1, 2)), (), None, 1.5),
            *(((1, 2), (1.0, 2)), ((1, 2), (1, 2, 3)), (1.0, 1), b"same", ("same", "same")),
        ]
    ),
    (dict(dilation=0), ValueError, "dilation must be at least 1"),
    (dict(dilation=3), ValueError, r"larger than the padded image: x has shape \(2, 4, 6, 5\)"),
    (dict(w=W[:, :, :0]), ValueError, "kernel of w must be at least 1"),
    (dict(x=X[:, :, :0]), ValueError, "x must have H >= 1 and W >= 1"),
    (dict(x=X.astype(object)), TypeError, "x must hold real numbers, got dtype object"),
    (dict(w=W.astype("datetime64[s]")), TypeError, "w must hold real numbers"),
    (dict(x="image"), TypeError, "x must hold real numbers"),
    (dict(x=[[1.0], [2.0, 3.0]]), TypeError, "x is no array"),
    (dict(x=np.ma.masked_equal(X, 0)), TypeError, "x is a masked array"),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments(name, options, error, message):
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        CALLS[name](**options)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", ["float16", "int64", "bool"])
def test_dtypes_that_are_not_served(name, dtype):
    served = "float32, float64, complex64 or complex128" if name == "conv" else "float32 or float64"
    message = f"the common dtype must be {served}, got x {dtype}, w {dtype}"
    if (name, dtype) == ("binary_conv", "float16"):
        message = "float16 is for GPUs"
    with pytest.raises(TypeError, match=f"{name}: {message}"):
        CALLS[name](x=X.astype(dtype), w=W.astype(dtype))


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("conv")])
def test_complex_numbers_are_for_the_ordinary_convolution_alone(name):
    with pytest.raises(TypeError, match=f"^{name}: x must hold real numbers, got dtype complex128"):
        CALLS[name](x=X.astype(complex))


@pytest.mark.parametrize("name", ["im2col", "max_pool", "winograd_conv"])
def test_padding_that_is_none_of_its_spellings(name):
    weights = mf.WinogradWeights.from_spatial(W)
    call = {
        "im2col": lambda padding: mf.im2col(X, 3, padding=padding),
        "max_pool": lambda padding: max_pool(X, 3, padding=padding),
        "winograd_conv": lambda padding: mf.winograd_conv(X, weights, padding=padding),
    }[name]
    with pytest.raises(TypeError, match=rf"^{name}: padding must be an int, .*, got \(1, 2, 3\)"):
        call((1, 2, 3))
    with pytest.raises(ValueError, match=f"^{name}: padding must be 'same', .*, got 'circular'"):
        call("circular")


SHIFTS = np.zeros((4, 2), int)
BACKWARD = {
    "conv_backward": lambda x, w: mf.conv_backward(GRAD, x, w),
    "adder_conv_backward": lambda x, w: mf.adder_conv_backward(GRAD, x, w),
    "binary_conv_backward": lambda x, w: mf.binary_conv_backward(GRAD, x, w),
    "adder_conv_sign_backward": lambda x, w: adder_conv_sign_backward(GRAD, x, w),
    "shift_conv_backward": lambda x, w: mf.shift_conv_backward(
        np.ones((2, 6, 6, 5)), x, w[:, :, 0, 0], SHIFTS
    ),
    "shift_adder_conv_backward": lambda x, w: mf.shift_adder_conv_backward(
        np.ones((2, 6, 6, 5)), x, w[:, :, 0, 0], SHIFTS
    ),
}


@pytest.mark.parametrize("name", BACKWARD)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_what_has_no_gradient_gets_none_by_the_dtype_of_grad(name, dtype):
    with pytest.raises(TypeError, match=f"^{name}: .* float64.*, got x {dtype}, w {dtype}"):
        BACKWARD[name](X.astype(dtype), W.astype(dtype))
    BACKWARD[name](X.astype(dtype), W)


@pytest.mark.parametrize("name", FORWARD)
def test_integers_beside_floats_are_promoted_as_numpy_does(name):
    assert CALLS[name](x=X.astype(np.int64)).dtype == np.float64


@pytest.mark.parametrize("name", WITH_BIAS)
def test_bias_of_another_length(name):
    with pytest.raises(ValueError, match=rf"{name}: bias must have shape \(6,\).*\(5,\)"):
        CALLS[name](bias=np.ones(5))


@pytest.mark.parametrize("name", ["conv_backward", "adder_conv_backward", "binary_conv_backward"])
def test_grad_of_another_shape(name):
    with pytest.raises(ValueError, match=rf"{name}: grad must have shape \(2, 6, 2, 2\).*4, 3"):
        CALLS[name](stride=2)


def refused_outs():
    read_only = np.zeros((2, 6, 4, 3), np.float32)
    read_only.flags.writeable = False
    yield np.zeros((2, 6, 4, 4), np.float32), "out must have shape"
    yield np.zeros((2, 6, 4, 3), np.float64), "dtype float32"
    yield read_only, "read-only"


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize(("out", "message"), list(refused_outs()))
def test_out_that_does_not_fit_is_left_alone(name, out, message):
    with pytest.raises(ValueError, match=f"{name}: out .*{message}|{name}: {message}"):
        CALLS[name](out=out)
    assert not out.any()


@pytest.mark.parametrize("name", FORWARD)
def test_out_over_an_input_is_refused_and_the_input_kept(name):
    memory = np.ones(240, np.float32)
    x, out = memory.reshape(2, 4, 6, 5), memory[:144].reshape(2, 6, 4, 3)
    with pytest.raises(ValueError, match=rf"{name}: out, of shape .* overlaps .* x, of shape"):
        CALLS[name](x=x, out=out)
    assert (memory == 1).all()


@pytest.mark.parametrize("name", FORWARD)
def test_out_between_the_columns_of_an_input_is_no_overlap(name):
    memory = np.ones((2, 4, 4, 8), np.float32)
    CALLS[name](x=memory[..., ::2], w=W[:4, :, :1, :1], out=memory[..., 1::2])
    assert (memory[..., ::2] == 1).all() and (memory[..., 1::2] != 1).all()


@pytest.mark.parametrize("name", FORWARD)
def test_out_that_a_cast_would_hide_is_refused(name):
    """x is converted to float64, and the copy shares no memory with out."""
    memory = np.zeros(1000)
    x = memory.view(np.float32)[:288].reshape(2, 4, 6, 6)
    with pytest.raises(ValueError, match="out, of shape .* overlaps the memory of x"):
        CALLS[name](x=x, w=W.astype(float), out=memory[:192].reshape(2, 6, 4, 4))
    assert not memory.any()


@pytest.mark.parametrize("name", FORWARD)
def test_out_whose_elements_share_memory_is_refused(name):
    memory = np.zeros(144, np.float32)
    out = np.lib.stride_tricks.as_strided(memory, (2, 6, 4, 3), (0, 0, 12, 4))
    with pytest.raises(ValueError, match=rf"{name}: elements of out share memory"):
        CALLS[name](out=out)
    assert not memory.any()


@pytest.mark.parametrize("name", FORWARD)
def test_out_must_be_an_array(name):
    with pytest.raises(TypeError, match=f"{name}: out must be an array, got list"):
        CALLS[name](out=np.zeros((2, 6, 4, 3)).tolist())


def test_uint8_answers_that_could_leave_int32_are_refused():
    x, bias = np.zeros((1, 1, 2, 2), np.uint8), np.array([-(2**31)], np.int32)
    with pytest.raises(ValueError, match="adder_conv: bias goes down to -2147483648"):
        mf.adder_conv(x, x[:, :, :1, :1] + np.uint8(1), bias)


def test_adaptive_rate_arguments():
    with pytest.raises(TypeError, match="adaptive_rate: eta must be a number, got 'x'"):
        mf.adaptive_rate(np.ones(3), eta="x")
    with pytest.raises(TypeError, match="adaptive_rate: grad_w is no array"):
        mf.adaptive_rate(None)


def test_small_integers_mix_with_no_larger_ones():
    x = X.astype(np.uint8)
    with pytest.raises(TypeError, match="x uint8, w int32"):
        mf.adder_conv(x, W.astype(np.int32))
    with pytest.raises(TypeError, match="bias must be of an integer dtype.*float64"):
        mf.adder_conv(x, W.astype(np.uint8), np.ones(6))
    with pytest.raises(TypeError, match="adder_conv_backward: .*uint8"):
        mf.adder_conv_backward(GRAD.astype(np.uint8), x, x[:, :, :3, :3])


@pytest.mark.parametrize("dtype, taps", [("u1", 8_421_505), ("i1", 8_421_505), ("i2", 32_769)])
def test_integer_sums_that_could_exceed_int32_are_refused(dtype, taps):
    a = np.broadcast_to(np.ones((), dtype), (1, taps))
    with pytest.raises(ValueError, match=f"adder_matmul: a sum over {taps} taps of {a.dtype} can"):
        mf.adder_matmul(a, a.T)


@pytest.mark.parametrize("function", [mf.adder_conv, mf.adder_matmul])
def test_kernel_needs_cuda(function):
    a, b = (X, W) if function is mf.adder_conv else (X[0, 0], X[0, 0].T)
    with pytest.raises(ValueError, match="no kernel named '9_magic'; there are 1_naive, 2_"):
        function(a, b, kernel="9_magic")
    with pytest.raises(ValueError, match="kernel='1_naive' is a CUDA kernel .*emulated_cuda"):
        function(a, b, kernel="1_naive")


def test_im2col_and_col2im():
    with pytest.raises(ValueError, match="im2col: kernel_size must be at least 1, got 0"):
        mf.im2col(X, 0)
    with pytest.raises(ValueError, match=r"im2col: the kernel \(7, 1\).*larger than the padded"):
        mf.im2col(X, (7, 1))
    with pytest.raises(ValueError, match=r"col2im: cols must have shape \(2, 36, 12\).*\(2, 36\)"):
        mf.col2im(np.ones((2, 36)), X.shape, 3)
    with pytest.raises(ValueError, match="col2im: x_shape must have 4 dimensions"):
        mf.col2im(np.ones((2, 36, 12)), (4, 6, 5), 3)
    for shape in (5, "abcd", (1, 1, 3.0, 3)):
        with pytest.raises(TypeError, match=r"col2im: x_shape must be 4 ints \(N, C, H, W\), got"):
            mf.col2im(np.ones((2, 36, 12)), shape, 3)
    with pytest.raises(ValueError, match="col2im: x_shape must not be negative"):
        mf.col2im(np.ones((2, 36, 12)), (-1, 4, 6, 5), 3)
    with pytest.raises(TypeError, match="col2im: .*float32 or float64, got cols int64"):
        mf.col2im(np.ones((2, 36, 12), int), X.shape, 3)


def test_adder_matmul_shapes():
    with pytest.raises(ValueError, match=r"columns of a .* \(3, 4\) and b of shape \(3, 4\)"):
        mf.adder_matmul(np.ones((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="a must have 2 dimensions"):
        mf.adder_matmul(np.ones(3), np.ones((3, 4)))
    with pytest.raises(ValueError, match="out, of shape .* overlaps the memory of b"):
        b = np.ones((3, 3))
        mf.adder_matmul(np.ones((3, 3)), b, out=b)
