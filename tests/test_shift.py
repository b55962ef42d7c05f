import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from problems import LAYOUTS, lay_out, run, shift_problems
from test_convolution import assert_close

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec

WAYS = ["cpu", "numpy"]
DTYPES = [
    "bool", "int8", "float16", "uint16", "float32", "int64", "float64", "complex64",
    "complex128", "longdouble", ">f4", "M8[s]", [("a", "i4"), ("b", "f4")],
]  # fmt: skip


def bits(array):
    """The bytes of every element: NaN is compared too."""
    return np.ascontiguousarray(array).view(f"V{array.itemsize}")


def any_bits(shape, dtype, seed=0):
    size = np.dtype(dtype).itemsize
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape, size), np.uint8).view(dtype)[..., 0]


@pytest.mark.parametrize("way", WAYS)
@given(problem=shift_problems())
def test_shift_is_its_formula(way, problem):
    x, shifts, stride = problem.x, problem.shifts, problem.stride
    answer = run(way, mf.shift, x, shifts=shifts, stride=stride)
    assert answer.dtype == x.dtype
    assert_array_equal(bits(answer), bits(spec.shift(x, shifts, stride=stride)))


@pytest.mark.parametrize("way", WAYS)
@given(problem=shift_problems(), layout=st.sampled_from(LAYOUTS))
def test_shift_backward_is_its_formula(way, problem, layout):
    x, shifts, stride = problem.x, problem.shifts, problem.stride
    grad = lay_out(problem.grad(x.shape[1]), layout)
    answer = run(way, mf.shift_backward, grad, shifts=shifts, x_shape=x.shape, stride=stride)
    assert answer.dtype == grad.dtype
    expected = spec.shift_backward(grad, shifts, x.shape, stride=stride)
    assert_array_equal(bits(answer), bits(expected))


@pytest.mark.parametrize("way", WAYS)
@given(problem=shift_problems())
def test_shift_conv_is_its_formula(way, problem):
    x, w, shifts, bias = problem.x, problem.w, problem.shifts, problem.bias
    answer = run(way, fused(mf.shift_conv, shifts, problem.stride), x, w, bias)
    expected = spec.shift_conv(x, w, shifts, bias, stride=problem.stride)
    assert_close(answer, expected, x.dtype)


@pytest.mark.parametrize("way", WAYS)
@given(problem=shift_problems())
def test_shift_adder_conv_is_its_formula(way, problem):
    x, w, shifts, bias = problem.x, problem.w, problem.shifts, problem.bias
    answer = run(way, fused(mf.shift_adder_conv, shifts, problem.stride), x, w, bias)
    expected = spec.shift_adder_conv(x, w, shifts, bias, stride=problem.stride)
    assert_close(answer, expected, x.dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["shift_conv", "shift_adder_conv"])
@pytest.mark.parametrize("size", [(5, 12), (3, 48), (7, 7), (1, 1)])
@pytest.mark.parametrize("stride", [1, (2, 1), 2])
def test_rows_of_whole_vectors_and_small_planes(way, name, size, stride):
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(5, 40, *size)).astype("f"), rng.normal(size=(9, 40)).astype("f")
    for shifts in (mf.group_shifts(40), rng.integers(-6, 7, (40, 2))):  # few kinds, many kinds
        answer = run(way, fused(getattr(mf, name), shifts, stride), x, w, None)
        assert_close(answer, getattr(spec, name)(x, w, shifts, stride=stride), x.dtype)


@given(problem=shift_problems())
def test_fused_is_separate_bit_for_bit(problem):
    x, w, shifts, bias = problem.x, problem.w, problem.shifts, problem.bias
    moved, points = mf.shift(x, shifts, stride=problem.stride), w[:, :, None, None]
    for function, plain in ((mf.shift_conv, mf.conv), (mf.shift_adder_conv, mf.adder_conv)):
        answer = function(x, w, shifts, bias, stride=problem.stride)
        assert_array_equal(bits(answer), bits(plain(moved, points, bias)))


def fused(function, shifts, stride):
    return lambda x, w, bias: function(x, w, shifts, bias, stride=stride)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["shift_conv_backward", "shift_adder_conv_backward"])
@given(problem=shift_problems(), layout=st.sampled_from(LAYOUTS))
def test_gradients_are_their_formulas(way, name, problem, layout):
    x, w, options = problem.x, problem.w, dict(shifts=problem.shifts, stride=problem.stride)
    grad = lay_out(problem.grad(len(w)), layout)
    answer = run(way, getattr(mf, name), grad, x, w, **options)
    for ours, theirs in zip(answer, getattr(spec, name)(grad, x, w, **options), strict=True):
        assert_close(ours, theirs, x.dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["shift_conv_backward", "shift_adder_conv_backward"])
def test_infinite_pixels_count_where_they_are_shown(way, name):
    """Sums that are not finite are summed again, at the shifted places too."""
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(1, 9, 5, 6)), rng.normal(size=(1, 2, 5, 6))
    x[0, :, 2, 3] = np.inf
    shifts = mf.modulo_shifts(9)
    _, grad_w = run(way, getattr(mf, name), grad, x, np.ones((2, 9)), shifts=shifts)
    shown = grad[0][:, 2 - shifts[:, 0], 3 - shifts[:, 1]]
    assert_array_equal(grad_w, np.copysign(np.inf, shown))


@pytest.mark.parametrize("kinds", [9, 31, 32, 169])
@pytest.mark.parametrize("batch, stride", [(7, 1), (14, 2)])
def test_many_pixels_and_channels(kinds, batch, stride):
    """Strips of several panels, sums in several parts, tables of more and fewer displacements."""
    rng = np.random.default_rng(kinds)
    places = np.stack(np.mgrid[-6:7, -6:7], axis=-1).reshape(-1, 2)
    shifts = rng.permutation(places)[np.arange(170) % kinds]
    size = -(-20 // stride), -(-48 // stride)
    x, w = (rng.normal(size=s).astype("f") for s in ((batch, 170, 20, 48), (13, 170)))
    grad = rng.normal(size=(batch, 13, *size)).astype("f")
    moved, points = mf.shift(x, shifts, stride=stride), w[:, :, None, None]
    for name in ("conv", "adder_conv"):
        answer = getattr(mf, f"shift_{name}")(x, w, shifts, stride=stride)
        assert_array_equal(bits(answer), bits(getattr(mf, name)(moved, points)))
        grad_x, grad_w = getattr(mf, f"shift_{name}_backward")(grad, x, w, shifts, stride=stride)
        expected_x, expected_w = getattr(mf, f"{name}_backward")(grad, moved, points)
        assert_close(grad_x, mf.shift_backward(expected_x, shifts, x.shape, stride=stride), "f")
        assert_close(grad_w, expected_w[:, :, 0, 0], "f")


def test_more_displacements_than_have_tables_of_bits():
    rng = np.random.default_rng(9)
    x, w = (rng.normal(size=s).astype("f") for s in ((1, 950_000, 3, 3), (1, 950_000)))
    shifts = rng.integers(-3, 4, (950_000, 2))
    expected = mf.conv(mf.shift(x, shifts), w[:, :, None, None])
    assert_array_equal(mf.shift_conv(x, w, shifts), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["C", "reversed", "broadcast"])
def test_every_bit_is_moved(way, dtype, layout):
    """NaN payloads, signs of zero, bools of any byte, records: nothing looks at the values."""
    if np.dtype(dtype).itemsize not in (1, 2, 4, 8, 16):
        pytest.skip("a longdouble of another size")
    x = lay_out(any_bits((2, 11, 5, 6), dtype), layout)
    shifts, table = mf.modulo_shifts(11), mf.modulo_shifts(11).tolist()
    plain = bits(x)
    answer = run(way, mf.shift, x, shifts=shifts, stride=(1, 2))
    assert answer.dtype == x.dtype
    assert_array_equal(bits(answer), spec.shift(plain, table, stride=(1, 2)))
    back = run(way, mf.shift_backward, answer, shifts=shifts, x_shape=x.shape, stride=(1, 2))
    expected = spec.shift_backward(bits(answer), table, x.shape, stride=(1, 2))
    assert_array_equal(bits(back), expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "complex128"])
@pytest.mark.parametrize(
    "size", [(64, 64), (40, 33), (70, 20), (3, 1030), (2, 4100), (8, 8), (7, 7), (3, 5)]
)
def test_planes_of_any_size(dtype, size):
    """Planes moved at once, some rows at a time, or row by row; neighbours stay out of them.

    Rows longer than a piece, planes shorter than a vector, channels that show nothing.
    """
    rng = np.random.default_rng(4)
    memory = any_bits((3, 12, *size), dtype)
    reach = np.array([*size]) + 2
    for shifts in (mf.modulo_shifts(12), rng.integers(-reach, reach, (12, 2))):
        for x in (memory, memory[::-1, ::-1], memory[1:, :, :, : size[1] // 2 + 1]):
            expected = spec.shift(bits(x), shifts.tolist())
            assert_array_equal(bits(mf.shift(x, shifts)), expected)
            expected = spec.shift_backward(bits(x), shifts.tolist(), x.shape)
            assert_array_equal(bits(mf.shift_backward(x, shifts, x.shape)), expected)


def one_hot(shifts, size):
    """Depthwise kernels of odd `size` with a single one each."""
    w = np.zeros((len(shifts), 1, size, size))
    for c, (dh, dw) in enumerate(shifts):
        w[c, 0, dh + size // 2, dw + size // 2] = 1
    return w


@pytest.mark.parametrize(
    "channels, size, dilation", [(9, 3, 1), (25, 3, 2), (31, 5, 1), (52, 7, 1)]
)
@pytest.mark.parametrize("table", [mf.modulo_shifts, mf.group_shifts])
@pytest.mark.parametrize("stride", [1, 2])
def test_shift_is_a_one_hot_depthwise_convolution(channels, size, dilation, table, stride):
    x = np.random.default_rng(1).normal(size=(2, channels, 9, 7))
    shifts = table(channels, size, dilation=dilation)
    reach = dilation * (size - 1) + 1
    w, padding = one_hot(shifts, reach), reach // 2
    expected = spec.conv(x, w, stride=stride, padding=padding, groups=channels)
    assert_array_equal(mf.shift(x, shifts, stride=stride), expected)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=20)
@given(problem=shift_problems(dtypes=("float64",)))
def test_backward_is_the_adjoint(way, problem):
    x, w, options = problem.x, problem.w, dict(shifts=problem.shifts, stride=problem.stride)
    grad = problem.grad(x.shape[1])
    back = run(way, mf.shift_backward, grad, x_shape=x.shape, **options)
    assert np.isclose((run(way, mf.shift, x, **options) * grad).sum(), (x * back).sum())

    grad = problem.grad(len(w))
    expected = (run(way, mf.shift_conv, x, w, **options) * grad).sum()
    grad_x, grad_w = run(way, mf.shift_conv_backward, grad, x, w, **options)
    assert np.isclose((x * grad_x).sum(), expected)
    assert np.isclose((w * grad_w).sum(), expected)


@pytest.mark.parametrize("way", WAYS)
def test_border_pixels_see_zeros(way):
    """An image of ones: the answer is one where the shifted pixel is inside, else zero."""
    shifts = mf.modulo_shifts(9)
    x = np.ones((1, 9, 4, 6), np.float32)
    inside = [
        [0 <= h + dh < 4 and 0 <= v + dw < 6 for h in range(4) for v in range(6)]
        for dh, dw in shifts
    ]
    assert_array_equal(run(way, mf.shift, x, shifts=shifts).reshape(9, 24), inside)
    total = run(way, mf.shift_conv, x, np.ones((1, 9), np.float32), shifts)
    assert_array_equal(total.ravel(), np.sum(inside, axis=0))
    distance = run(way, mf.shift_adder_conv, x, np.full((1, 9), 3, np.float32), shifts)
    assert_array_equal(distance.ravel(), np.sum(inside, axis=0) - 27)


FAR = [
    (5, 0), (0, -7), (5, -7), (2**31, 0), (0, -(2**31) - 1), (2**32, 2**32), (2**40, 1),
    (-(2**63), 0), (0, -(2**63)), (-(2**63), 2**62), (2**63 - 1, 2**63 - 1),
]  # fmt: skip


@pytest.mark.parametrize("way", [*WAYS, "emulated"])
@pytest.mark.parametrize("far", FAR)
def test_shifts_beyond_the_image_leave_nothing(way, far):
    x = np.ones((2, 2, 5, 7), np.float32)
    shifts = np.array([far, (0, 0)])
    for stride in (1, 2, (3, 7)):
        answer = run(way, mf.shift, x, shifts=shifts, stride=stride)
        assert not answer[:, 0].any() and answer[:, 1].all()
        back = run(way, mf.shift_backward, answer, shifts=shifts, x_shape=x.shape, stride=stride)
        assert not back[:, 0].any() and back[0, 1].sum() == answer[0, 1].size
        w, grad = np.array([[1, 0], [0, 1]], np.float32), np.ones_like(answer)
        grad_x, _ = run(way, mf.shift_conv_backward, grad, x, w, shifts=shifts, stride=stride)
        assert not grad_x[:, 0].any() and grad_x[0, 1].sum() == answer[0, 1].size


@pytest.mark.parametrize("way", [*WAYS, "emulated"])
@pytest.mark.parametrize("dtype", ["int8", ">i2", "int32", "int64", "uint8", "uint64"])
@pytest.mark.parametrize("layout", LAYOUTS[:5])
def test_tables_of_any_integers(way, dtype, layout):
    x = np.arange(2 * 3 * 200.0).reshape(1, 2, 3, 200)
    shifts = lay_out(np.array([[0, 100], [2, 1]], dtype), layout)
    expected = spec.shift(x, shifts.tolist())
    assert_array_equal(run(way, mf.shift, x, shifts=shifts), expected)
    assert_array_equal(run(way, mf.shift, x, shifts=shifts.tolist()), expected)


@pytest.mark.parametrize("way", [*WAYS, "emulated"])
@pytest.mark.parametrize("far", [2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_unsigned_tables_beyond_int64(way, far):
    """2**64 - 1 is not -1."""
    x, shifts = np.ones((1, 3, 4, 5)), np.array([[far, 0], [0, far], [1, 2]], np.uint64)
    answer = run(way, mf.shift, x, shifts=shifts)
    assert not answer[:, :2].any() and answer[:, 2].sum() == 3 * 3


def test_kernels_refuse_tables_that_do_not_match():
    _cpu = pytest.importorskip("mulfree_cupy._cpu")
    x, shifts = np.ones((1, 9, 4, 5)), mf.modulo_shifts(9)
    with pytest.raises(ValueError, match="a row for every channel"):
        _cpu.shift(x, shifts[:8], np.empty_like(x), (1, 1))
    with pytest.raises(ValueError, match="shifts must be C-contiguous"):
        _cpu.shift(x, np.asfortranarray(shifts), np.empty_like(x), (1, 1))
    with pytest.raises(TypeError, match="incompatible"):
        _cpu.shift(x, shifts.astype(np.int32), np.empty_like(x), (1, 1))


def test_the_left_over_channels_stay():
    for table in (mf.modulo_shifts, mf.group_shifts):
        for channels in (9, 16, 144):
            shifts = table(channels)
            assert shifts.shape == (channels, 2) and shifts.dtype == np.int64
            assert not shifts[channels // 9 * 9 :].any()
            still = channels - np.count_nonzero(shifts.any(axis=1))
            assert still == channels // 9 + channels % 9
    assert_array_equal(np.unique(mf.modulo_shifts(20, 2, dilation=3)), [-3, 0])


@given(st.integers(9, 40))
def test_modulo_and_group_tables_are_permutations(channels):
    groups = channels // 9
    order = np.arange(channels)
    order[: 9 * groups] = np.arange(9 * groups).reshape(groups, 9).T.ravel()
    assert_array_equal(mf.modulo_shifts(channels)[order], mf.group_shifts(channels))


@settings(max_examples=20)
@given(problem=shift_problems())
def test_out_receives_the_answer(problem):
    x, w, options = problem.x, problem.w, dict(stride=problem.stride)
    for function, arguments in (
        (mf.shift, (x, problem.shifts)),
        (mf.shift_conv, (x, w, problem.shifts)),
        (mf.shift_adder_conv, (x, w, problem.shifts)),
    ):
        expected = function(*arguments, **options)
        for layout in LAYOUTS[:5]:
            out = lay_out(np.full_like(expected, np.nan), layout)
            assert function(*arguments, out=out, **options) is out
            assert_array_equal(out, expected)


@pytest.mark.parametrize("way", WAYS)
def test_empty_arrays_give_empty_answers(way):
    shifts = mf.modulo_shifts(9)
    x, w = np.ones((0, 9, 4, 5)), np.ones((3, 9))
    assert run(way, mf.shift, x, shifts=shifts, stride=2).shape == (0, 9, 2, 3)
    y = run(way, mf.shift_conv, x, w, shifts=shifts, stride=2)
    assert y.shape == (0, 3, 2, 3)
    for function in (mf.shift_conv_backward, mf.shift_adder_conv_backward):
        grad_x, grad_w = run(way, function, y, x, w, shifts=shifts, stride=2)
        assert grad_x.shape == x.shape
        assert_array_equal(grad_w, np.zeros((3, 9)))
    no_channels = np.zeros((0, 2), int)
    for function in (mf.shift_conv, mf.shift_adder_conv):
        y = run(way, function, np.ones((2, 0, 3, 3)), np.ones((2, 0)), no_channels, np.ones(2))
        assert_array_equal(y, np.ones((2, 2, 3, 3)))


X, W, SHIFTS = np.ones((2, 9, 6, 5), np.float32), np.ones((4, 9), np.float32), mf.modulo_shifts(9)
GRAD = np.ones((2, 4, 6, 5), np.float32)
CALLS = {
    "shift": lambda x=X, shifts=SHIFTS, **o: mf.shift(x, shifts, **o),
    "shift_conv": lambda x=X, w=W, shifts=SHIFTS, **o: mf.shift_conv(x, w, shifts, **o),
    "shift_adder_conv": lambda x=X, w=W, shifts=SHIFTS, **o: mf.shift_adder_conv(x, w, shifts, **o),
    "shift_conv_backward": lambda x=X, w=W, shifts=SHIFTS, **o: mf.shift_conv_backward(
        GRAD, x, w, shifts, **o
    ),
    "shift_adder_conv_backward": lambda x=X, w=W, shifts=SHIFTS, **o: mf.shift_adder_conv_backward(
        GRAD, x, w, shifts, **o
    ),
}
BAD = [
    (dict(x=X[0]), ValueError, r"x must have 4 dimensions .*\(9, 6, 5\)"),
    (dict(x=X[:, :, :0]), ValueError, "x must have H >= 1 and W >= 1"),
    (dict(x="image"), TypeError, "x must h"),
    (dict(x=X.astype(object)), TypeError, "x must h.*dtype object"),
    (dict(x=np.ma.masked_equal(X, 0)), TypeError, "x is a masked array"),
    (dict(shifts=SHIFTS[:8]), ValueError, r"shifts must have shape \(9, 2\).*\(8, 2\)"),
    (dict(shifts=SHIFTS[:, 0]), ValueError, r"shifts must have shape \(9, 2\).*\(9,\)"),
    (dict(shifts=SHIFTS * 1.0), TypeError, "shifts must be integers, got dtype float64"),
    (dict(shifts=SHIFTS > 0), TypeError, "shifts must be integers, got dtype bool"),
    (dict(shifts=None), TypeError, "shifts must hold real numbers"),
    (dict(stride=0), ValueError, "stride must be at least 1, got 0"),
    (dict(stride=(1, 2, 3)), TypeError, "stride must be an int or a pair of ints"),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments(name, options, error, message):
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        CALLS[name](**options)


@pytest.mark.parametrize("name", list(CALLS)[1:])
def test_bad_weights(name):
    with pytest.raises(ValueError, match=rf"^{name}: w must have 2 dimensions \(K, C\), got"):
        CALLS[name](w=W[:, :, None, None])
    with pytest.raises(ValueError, match=rf"^{name}: w must have one column .* 9 .*\(4, 8\)"):
        CALLS[name](w=W[:, :8])
    with pytest.raises(TypeError, match=rf"^{name}: .*float32 or float64, got .*x int32, w uint8"):
        if "backward" in name:
            getattr(mf, name)(GRAD.astype(int), X.astype(np.int32), W.astype(np.uint8), SHIFTS)
        CALLS[name](x=X.astype(np.int32), w=W.astype(np.uint8))


def test_half_precision_is_for_gpus():
    half = [a.astype(np.float16) for a in (GRAD, X, W)]
    with pytest.raises(TypeError, match=r"^shift_conv_backward: float16 is for GPUs, .*astype"):
        mf.shift_conv_backward(*half, SHIFTS)
    with mf.emulated_cuda():
        gradients = mf.shift_conv_backward(*half, SHIFTS)
    for ours, theirs in zip(gradients, spec.shift_conv_backward(*half, SHIFTS), strict=True):
        assert ours.dtype == np.float16
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()
    with pytest.raises(TypeError, match=r"^shift_conv: float16 is for GPUs, .*astype"):
        CALLS["shift_conv"](x=X.astype(np.float16), w=W.astype(np.float16))
    with pytest.raises(TypeError, match=r"^shift_adder_conv: .*float32 or float64, got x float16"):
        CALLS["shift_adder_conv"](x=X.astype(np.float16), w=W.astype(np.float16))
    assert CALLS["shift"](x=X.astype(np.float16)).dtype == np.float16


def test_elements_of_another_size():
    for x in (X.astype(np.float32).view("V20"), np.full((1, 9, 2, 2), "abc")):
        with pytest.raises(TypeError, match=r"^shift: x must have elements of 1, 2, 4, 8 or 16"):
            CALLS["shift"](x=x)


@pytest.mark.parametrize("name", list(CALLS)[:3])
def test_bad_out_and_bias(name):
    shape = (2, 9 if name == "shift" else 4, 6, 5)
    for out, message in (
        (np.zeros((2, 2, 6, 5), "f"), "out must have shape"),
        (np.zeros(shape), "out must have shape .*dtype float32"),
        (np.zeros(shape).tolist(), "out must be an array, got list"),
        (np.broadcast_to(np.zeros((), "f"), shape), "out is read-only"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: {message}"):
            CALLS[name](out=out)
    memory = np.ones(600, np.float32)
    x, out = memory[:540].reshape(X.shape), memory[-np.prod(shape) :].reshape(shape)
    with pytest.raises(ValueError, match=f"^{name}: out, of shape .*overlaps the memory of x"):
        CALLS[name](x=x, out=out)
    assert (memory == 1).all()
    if name != "shift":
        with pytest.raises(ValueError, match=rf"^{name}: bias must have shape \(4,\)"):
            CALLS[name](bias=np.ones(5, np.float32))


def test_bad_gradients():
    for name in ("shift_conv_backward", "shift_adder_conv_backward"):
        with pytest.raises(ValueError, match=rf"^{name}: grad must have shape \(2, 4, 3, 3\)"):
            CALLS[name](stride=2)
    with pytest.raises(ValueError, match=r"^shift_backward: grad must have shape \(2, 9, 3, 3\)"):
        mf.shift_backward(X, SHIFTS, X.shape, stride=2)
    with pytest.raises(ValueError, match=r"^shift_backward: x_shape must have 4 dimensions"):
        mf.shift_backward(X, SHIFTS, X.shape[1:])


@pytest.mark.parametrize("name", list(CALLS)[:3])
def test_kernel_needs_cuda(name):
    with pytest.raises(ValueError, match=f"^{name}: no kernel named '9_magic'; there are "):
        CALLS[name](kernel="9_magic")


@pytest.mark.parametrize("table", [mf.modulo_shifts, mf.group_shifts])
def test_bad_tables(table):
    name = table.__name__
    with pytest.raises(
        ValueError, match=rf"^{name}: channels must be at least 3\*3 = 9.*got 8.*mo"
    ):
        table(8)
    with pytest.raises(TypeError, match=f"^{name}: channels must be an int, got 9.0"):
        table(9.0)
    with pytest.raises(ValueError, match=f"^{name}: kernel_size must be at least 1, got 0"):
        table(9, 0)
    with pytest.raises(ValueError, match=f"^{name}: dilation must be at least 1"):
        table(9, dilation=0)
