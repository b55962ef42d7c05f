import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import problems

import mulfree_cupy as mf
from mulfree_cupy.autograd import (
    GradientError,
    KinkError,
    Tensor,
    apply,
    check_gradients,
    detect_changes,
    no_grad,
)
from mulfree_cupy.autograd.rules import RULES, SURROGATES

rng = np.random.default_rng(0)
A, B, ROW = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=4)
POSITIVE = np.abs(A) + 0.5
IMAGE, FILTERS = rng.normal(size=(2, 4, 5, 6)), rng.normal(size=(6, 2, 3, 2))

ROWS = rng.normal(size=(3, 4))
SHIFTS = np.array([[0, 0], [-1, 1], [2, -3], [9, 0]])

CASES = {
    "absolute": lambda: (abs, A),
    "add": lambda: (lambda a, b: a + b, A, ROW),
    "avg_pool": lambda: (
        lambda a: apply("avg_pool", a, kernel_size=3, stride=2, padding=1),
        IMAGE,
    ),
    "batch_norm": lambda: (
        lambda x, w, b, r: apply("batch_norm", x, w, b, r, relu=True, eps=1e-3),
        *(IMAGE, rng.normal(size=4), rng.normal(size=4), rng.choice([-9.0, 9.0], IMAGE.shape)),
    ),
    "concatenate": lambda: (
        lambda a, b, c: apply("concatenate", a, b, c, axis=1),
        *(IMAGE, IMAGE[:, :1], IMAGE[:, 2:]),
    ),
    "conv": lambda: (
        lambda x, w, b: apply("conv", x, w, b, stride=(2, 1), padding=1, groups=2),
        IMAGE,
        FILTERS,
        rng.normal(size=6),
    ),
    "cross_entropy": lambda: (
        lambda a: apply("cross_entropy", a, labels=np.array([0, 3, 1])),
        A,
    ),
    "divide": lambda: (lambda a, b: a / b, A, POSITIVE),
    "dropout": lambda: (lambda a: apply("dropout", a, mask=(B > 0) * 2.0), A),
    "exp": lambda: (lambda a: apply("exp", a), A),
    "getitem": lambda: (lambda a: a[[0, 2, 0], 1:], A),
    "log": lambda: (lambda a: apply("log", a), POSITIVE),
    "matmul": lambda: (lambda a, b: a @ b, A, B.T),
    "maximum": lambda: (lambda a, b: apply("maximum", a, b), A, B),
    "max_pool": lambda: (
        lambda a: apply("max_pool", a, kernel_size=3, stride=2, padding=1),
        IMAGE,
    ),
    "masked": lambda: (lambda a: apply("masked", a, mask=B > 0), A),
    "mean": lambda: (lambda a: a.mean(axis=0), A),
    "multiply": lambda: (lambda a, b: a * b, A, ROW[:, None][:3]),
    "negative": lambda: (lambda a: -a, A),
    "power": lambda: (lambda a: a**2.5, POSITIVE),
    "relu": lambda: (lambda a: apply("relu", a), A),
    "reshape": lambda: (lambda a: a.reshape(2, 6), A),
    "shift": lambda: (lambda x: apply("shift", x, shifts=SHIFTS, stride=2), IMAGE),
    "shift_conv": lambda: (
        lambda x, w, b: apply("shift_conv", x, w, b, shifts=SHIFTS, stride=(1, 2)),
        *(IMAGE, ROWS, rng.normal(size=3)),
    ),
    "sqrt": lambda: (lambda a: apply("sqrt", a), POSITIVE),
    "subtract": lambda: (lambda a, b: a - b, ROW, B),
    "sum": lambda: (lambda a: a.sum(axis=(0, 2), keepdims=True), IMAGE),
    "transpose": lambda: (lambda a: a.transpose(0, -2, 3, 1), IMAGE),
    "winograd_conv": lambda: (
        lambda x, u, b: apply(
            "winograd_conv", x, u, b, weights=mf.WinogradWeights.from_dense(u.data), relu=True
        ),
        *(IMAGE, rng.normal(size=(4, 4, 3, 4)), rng.normal(size=3)),
    ),
}


@pytest.mark.parametrize("operation", sorted(RULES.keys() - SURROGATES.keys()))
def test_every_rule_is_a_derivative(operation):
    function, *inputs = CASES[operation]()
    check_gradients(function, *inputs)


@settings(max_examples=20)
@given(problem=problems(dtypes=("float64",), most=3))
def test_conv_is_differentiated_for_all_geometries(problem):
    check_gradients(
        lambda x, w: apply("conv", x, w, **problem.options), problem.x, problem.w, rtol=1e-5
    )


def test_a_composition_is_differentiated():
    def network(x, w, v):
        hidden = apply("relu", apply("conv", x, w, groups=2)).mean(axis=(2, 3))
        return (hidden @ v) ** 2 / (1 + abs(hidden).sum())

    check_gradients(network, IMAGE, FILTERS, rng.normal(size=(6, 3)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 5)])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_with_given_statistics(shape, relu):
    statistics = dict(mean=rng.normal(size=3), variance=rng.uniform(1, 2, size=3))
    check_gradients(
        lambda x, w, b: apply("batch_norm", x, w, b, relu=relu, eps=1e-3, **statistics),
        *(rng.normal(size=shape), rng.normal(size=3), rng.normal(size=3)),
    )


def test_max_pool_is_the_largest_of_each_window():
    x = rng.normal(size=(2, 3, 7, 6))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = apply("max_pool", Tensor(x), kernel_size=3, stride=2, padding=1)
    assert_array_equal(y.data, windows[:, :, ::2, ::2].max(axis=(4, 5)))


def test_max_pool_gives_equal_values_one_gradient():
    x = Tensor(np.zeros((1, 1, 4, 4)), requires_grad=True)
    apply("max_pool", x, kernel_size=2, stride=2, padding=0).sum().backward()
    assert_array_equal(x.grad[0, 0], np.tile([[1, 0], [0, 0]], (2, 2)))


def pooled(operation, image, kernel_size, *, stride=1, padding=0, dtype=float, grad=None):
    x = Tensor(np.array(image, dtype)[None, None], requires_grad=dtype is float)
    y = apply(operation, x, kernel_size=kernel_size, stride=stride, padding=padding)
    if dtype is float:
        y.backward(np.ones(y.shape) if grad is None else np.array(grad, float)[None, None])
        return y.data[0, 0], x.grad[0, 0]
    return y.data[0, 0]


def test_max_pool_passes_the_gradient_of_a_nan_and_keeps_it_in_the_image():
    nan, inf = np.nan, np.inf
    y, grad = pooled("max_pool", [[1, nan, 3], [0, nan, 2]], 2)
    assert_array_equal(y, [[nan, nan]])
    assert_array_equal(grad, [[0, 2, 0], [0, 0, 0]])
    assert_array_equal(pooled("max_pool", [[-inf, -inf]], (1, 2), padding=(0, 1))[1], [[2, 1]])
    _, grad = pooled("max_pool", [[1, 1, 1]], (1, 3), grad=[[inf]])
    assert_array_equal(grad, [[inf, 0, 0]])


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "float16"])
def test_pools_of_other_numbers(dtype):
    lowest = False if dtype == "bool" else -5 if dtype[0] == "i" or dtype[0] == "f" else 0
    image = np.full((2, 2), lowest, dtype)
    y = pooled("max_pool", image, 2, padding=1, dtype=dtype)
    assert y.dtype == dtype
    assert_array_equal(y, np.full((3, 3), lowest))


def test_avg_pool_of_integers_is_no_integer():
    x = [[10, 20], [30, 45]]
    assert_array_equal(pooled("avg_pool", x, 2, dtype=np.uint8), [[26.25]])
    assert_array_equal(pooled("avg_pool", np.full((2, 2), 250), 2, dtype=np.uint8), [[250]])


def test_means_of_many_halves_are_halves():
    ones = Tensor(np.ones((1, 1, 300, 300), np.float16), requires_grad=True)
    for y in (apply("avg_pool", ones, kernel_size=300, stride=300, padding=0), ones.mean()):
        assert y.dtype == np.float16 and y.data.ravel() == [1]
        y.backward()
        assert ones.grad.dtype == np.float16


@pytest.mark.parametrize("padding", [2, (0, 2), (3, 1)])
def test_max_pool_refuses_windows_of_nothing(padding):
    with pytest.raises(ValueError, match=r"max_pool: padding .* smaller than the kernel \(2, 2\)"):
        pooled("max_pool", np.ones((4, 4)), 2, padding=padding)


INF, NAN = np.inf, np.nan
EDGES = [  # a function, where, and PyTorch's gradients of its sum
    (lambda x: x**0, [0, INF, NAN, -2], [0, 0, 0, 0]),
    (lambda x: x**1, [0, -1, INF], [1, 1, 1]),
    (lambda x: x**2, [0, -3], [0, -6]),
    (lambda x: x**0.5, [0], [INF]),
    (lambda x: x**-1, [2], [-0.25]),
    (lambda x: apply("sqrt", x), [0, 4], [INF, 0.25]),
    (lambda x: apply("log", x), [0], [INF]),
    (abs, [0, -0.0, -INF], [0, 0, -1]),
    (lambda x: apply("relu", x), [0, NAN, -1, INF, -INF], [0, 1, 0, 1, 0]),
    (lambda x: apply("maximum", x, 1.0), [0, 1, 2, NAN], [0, 0.5, 1, 1]),
    (lambda x: apply("maximum", 1.0, x), [0, 1, 2, NAN], [0, 0.5, 1, 1]),
    (lambda x: x / x.detach(), [1e-200, 1e200], [1e200, 1e-200]),
    (lambda x: 1e200 / x, [1e200], [-1e-200]),
    (lambda x: 1e-200 / x, [1e-200], [-1e200]),
]


@pytest.mark.parametrize(("function", "at", "expected"), EDGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rules_at_their_edges(function, at, expected):
    x = Tensor(np.array(at, float), requires_grad=True)
    function(x).sum().backward()
    assert_allclose(x.grad, expected, rtol=1e-12)


def test_no_gradient_is_infinite_where_relu_stops_it():
    x = Tensor([-1.0, 2.0], requires_grad=True)
    apply("relu", x).backward(np.array([INF, INF]))
    assert_array_equal(x.grad, [0, INF])


def test_the_mean_of_nothing():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    y = x.mean()
    assert np.isnan(y.data)
    y.backward()
    assert x.grad.shape == (0, 3)


@pytest.mark.parametrize(
    ("operation", "filters", "options"),
    [("adder_conv", FILTERS, {"groups": 2}), ("shift_adder_conv", ROWS, {"shifts": SHIFTS})],
)
def test_adders_record_the_published_surrogates(operation, filters, options):
    x, w = Tensor(IMAGE, True), Tensor(filters, True)
    bias = Tensor(np.zeros(len(filters)), True)
    y = apply(operation, x, w, bias, **options)
    seed = rng.normal(size=y.shape)
    y.backward(seed)
    backward = getattr(mf, f"{operation}_backward")
    grad_x, grad_w = backward(seed, IMAGE, filters, **options)
    assert_array_equal(x.grad, grad_x)
    assert_array_equal(w.grad, grad_w)
    assert_allclose(bias.grad, seed.sum(axis=(0, 2, 3)))


def test_check_gradients_refuses_surrogates_and_says_why():
    with pytest.raises(ValueError, match=r"surrogate gradients.*adder_conv: AdderNet trains on"):
        check_gradients(lambda x, w: apply("adder_conv", x, w).sum(), IMAGE[:, :2], FILTERS)


def test_check_gradients_finds_a_wrong_rule(monkeypatch):
    monkeypatch.setitem(RULES, "exp", lambda a: (np.exp(a), lambda g: (g * a,)))
    with pytest.raises(GradientError, match="by the rules and"):
        check_gradients(lambda a: apply("exp", a), A)


@pytest.mark.parametrize("distance", [0.0, 2e-5, -7e-5])
def test_check_gradients_detects_a_kink(distance):
    with pytest.raises(KinkError, match="kink near the inputs"):
        check_gradients(lambda a: apply("relu", a), np.array([1.0, distance]))


def test_gradients_accumulate_over_calls():
    x = Tensor([1.0, 2.0], requires_grad=True)
    for expected in (3.0, 6.0):
        (x * 3).sum().backward()
        assert_array_equal(x.grad, [expected, expected])


def test_a_tensor_used_twice_gets_both_gradients():
    x = Tensor([2.0], requires_grad=True)
    y = x * x
    (y * x + y).backward()
    assert x.grad.item() == 3 * 4 + 2 * 2


@given(st.sampled_from([(3, 4), (1, 4), (4,), (3, 1), (1, 1), ()]))
def test_broadcast_inputs_get_gradients_of_their_own_shape(shape):
    a, b = Tensor(np.ones(shape), True), Tensor(A, True)
    (a * b).sum().backward()
    assert a.grad.shape == shape
    assert_allclose(a.grad.sum(), A.sum())


def test_each_gradient_is_an_array_of_its_own():
    """Though `add` hands out one array twice, and `sum` a view that cannot be written."""
    a, b, seed = Tensor([1.0, 2.0], True), Tensor([3.0, 4.0], True), np.ones(2)
    (a + b).backward(seed)
    a.grad *= 5
    assert_array_equal(b.grad, [1, 1])
    assert_array_equal(seed, [1, 1])
    c = Tensor([1.0, 2.0], True)
    c.sum().backward()
    c.grad *= 2
    assert_array_equal(c.grad, [2, 2])


def test_what_a_rule_makes_for_one_tensor_is_not_copied(monkeypatch):
    made = []

    def spied(a, b):
        def pullback(g):
            made.append(g * 3)
            return made[-1], made[-1]

        return a + b, pullback

    monkeypatch.setitem(RULES, "spied", spied)
    a, b = Tensor([1.0, 2.0], True), Tensor([3.0, 4.0], True)
    apply("spied", a, b).sum().backward()
    assert a.grad is made[0] and b.grad is not made[0]
    assert_array_equal(b.grad, [3, 3])
    before = a.grad
    apply("spied", a, b).sum().backward()
    assert_array_equal(a.grad, [6, 6])
    assert_array_equal(before, [3, 3])


def test_a_pullback_may_have_no_gradient(monkeypatch):
    """A rule may return None for an input, also for one with a graph."""
    monkeypatch.setitem(RULES, "first", lambda a, b: (a + b, lambda g: (g, None)))
    monkeypatch.setitem(RULES, "neither", lambda a: (a + 0, lambda g: (None,)))
    a, b = Tensor([1.0, 2.0], True), Tensor([3.0, 4.0], True)
    behind = b * 2
    apply("first", a, behind).sum().backward()
    assert_array_equal(a.grad, [1, 1])
    assert b.grad is None
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        behind.sum().backward()
    (apply("neither", a * 3) + a).sum().backward()
    assert_array_equal(a.grad, [2, 2])


NUMBERS = [
    *(2, True, 2.0, np.int64(2), np.float64(2), np.float32(2), np.uint8(2), np.bool_(True)),
    np.longdouble(2),
]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_do_not_change_the_dtype(dtype, number):
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    answers = (x * number, number * x, x + number, number - x, x / number, number / x, x**number)
    for y in (*answers, apply("maximum", x, number)):
        assert y.dtype == dtype
        y.sum().backward()
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("exponent", [Tensor(2.0), np.ones(3), "2", None])
def test_exponents_are_numbers(exponent):
    with pytest.raises(TypeError, match="power: the exponent must be a number, got"):
        Tensor(ROW) ** exponent


def test_numbers_beside_booleans_and_integers_count_as_in_numpy():
    for dtype in (bool, np.uint8, np.int64):
        a = np.array([0, 1], dtype)
        for number in (True, 2, 0.5, np.int64(2), np.float32(0.5)):
            for y, want in ((Tensor(a) * number, a * number), (number + Tensor(a), number + a)):
                assert_array_equal(y.data, want)


def test_numbers_that_integers_cannot_hold_are_refused():
    with pytest.raises(OverflowError, match="300 out of bounds for uint8"):
        Tensor(np.ones(2, np.uint8)) * np.int64(300)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x * 2, x.data), r"input 0 of 'multiply', of shape \(3, 4\)"),
        (lambda x: (y := apply("exp", x), y.data), r"the answer of 'exp', of shape \(3, 4\)"),
        (lambda x: (x.transpose() @ ROWS, x.data.T), r"input 0 of"),
    ],
)
def test_changes_in_place_are_detected(function, message):
    x = Tensor(A.copy(), requires_grad=True)
    with detect_changes():
        y, written = function(x)
    written[0, 0] += 1
    with pytest.raises(RuntimeError, match=f"backward: {message}.* written to after the forward"):
        y.sum().backward()


def test_what_is_replaced_is_not_changed_in_place():
    x, elsewhere = Tensor(A.copy(), requires_grad=True), Tensor(A.copy(), requires_grad=True)
    with detect_changes():
        y = (x * ROW).sum()
    x.data = x.data + 1
    z = (elsewhere * ROW).sum()
    elsewhere.data[...] = 0  # nobody looks
    (y + z).backward()
    assert_array_equal(x.grad, np.broadcast_to(ROW, A.shape))


def test_integers_are_not_cut_to_integers():
    x = Tensor(np.array([1, 2], np.uint8))
    assert_array_equal((x * 0.5).data, [0.5, 1])
    assert (x * 2).dtype == np.uint8
    assert x.mean().item() == 1.5


def test_dtypes_stay_single_precision():
    x = Tensor(A.astype(np.float32), requires_grad=True)
    y = ((x * 2 + 1) / 3).mean()
    y.backward()
    assert y.dtype == x.grad.dtype == np.float32


def test_no_grad_records_nothing():
    x = Tensor(A, requires_grad=True)
    with no_grad():
        y = (x * 2).sum()
    assert y.node is None
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        y.backward()
    assert (x * 2).requires_grad


def test_a_tensor_is_a_numpy_array_where_no_gradient_is_lost():
    data = np.arange(6.0).reshape(2, 3)
    tensor = Tensor(data)
    assert np.asarray(tensor) is data or np.shares_memory(np.asarray(tensor), data)
    assert not np.shares_memory(np.array(tensor), data)
    np.testing.assert_array_equal(np.asarray(tensor, np.float32), data.astype(np.float32))
    with pytest.raises(ValueError, match="copy"):
        np.array(tensor, np.float32, copy=False)
    answer = Tensor(data, requires_grad=True) * 2
    with pytest.raises(TypeError, match=r"shape \(2, 3\) that requires a gradient would lose it"):
        np.asarray(answer)
    with no_grad():
        np.testing.assert_array_equal(np.asarray(Tensor(data, requires_grad=True) * 2), 2 * data)
    x, w = np.ones((1, 2, 4, 4)), np.ones((3, 2, 3, 3))
    with pytest.raises(TypeError, match="requires a gradient would lose it"):
        mf.adder_conv(Tensor(x, requires_grad=True), w)
    np.testing.assert_array_equal(mf.adder_conv(Tensor(x), w), mf.adder_conv(x, w))


def test_a_tensor_of_one_element_is_a_number():
    loss = Tensor(np.array([0.5]), requires_grad=True).sum()
    assert float(loss) == 0.5 and f"{loss:.3f}" == "0.500" and f"{loss}" == str(loss)
    assert bool(loss) and not Tensor(np.zeros((1, 1)))
    several = Tensor(A)
    for number in (float, bool, "{:.3f}".format):
        with pytest.raises(ValueError, match="size 1|more than one element"):
            number(several)


def test_the_graph_is_freed_as_it_is_walked():
    x = Tensor(A, requires_grad=True)
    y = x * 2
    loss = y.sum()
    loss.backward()
    assert y.node.inputs == () and y.node.pullback is None
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        loss.backward()
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        (y * 3).sum().backward()


def test_values_are_freed_as_the_graph_is_walked(monkeypatch):
    alive = []

    def spied(a):
        return a + 0, lambda g: (alive.append(later() is not None), (g,))[1]

    monkeypatch.setitem(RULES, "spied", spied)
    x = Tensor(A, requires_grad=True)
    y = apply("spied", x) * 2
    later = weakref.ref(y.data)
    y = y.sum()
    y.backward()
    assert alive == [False]


def test_a_long_chain_does_not_recurse():
    x = y = Tensor(1.0, requires_grad=True)
    for _ in range(5000):
        y = y + 1
    y.backward()
    assert x.grad == 1


def test_errors_are_clear():
    x = Tensor(A, requires_grad=True)
    with pytest.raises(ValueError, match=r"tensor of shape \(3, 4\) has no one gradient"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"grad must have the tensor's shape \(3, 4\), got \(4,\)"):
        (x * 2).backward(ROW)
    with pytest.raises(NotImplementedError, match="no derivative rule for 'sine'; there are abs"):
        apply("sine", x)
    with pytest.raises(
        TypeError, match="only floating-point numbers have gradients, got dtype int"
    ):
        Tensor([1, 2], requires_grad=True)
    with pytest.raises(
        ValueError, match=r"matmul: .* at least 2 dimensions, got \(3, 4\) and \(4,"
    ):
        x @ ROW


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"\(3, 4\), dtype float64, and labels of shape \(2,\)"),
        ([[0], [1], [2]], r"labels of shape \(3, 1\)"),
        ([0.0, 1.0, 2.0], "dtype float64"),
        ([0, -1, 2], r"labels must be in 0..3, got -1..2"),
        ([0, 4, 2], r"labels must be in 0..3, got 0..4"),
    ],
)
def test_cross_entropy_refuses_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=f"cross_entropy: .*{message}"):
        apply("cross_entropy", Tensor(A), labels=np.array(labels))


def test_arrays_on_the_left_are_lifted():
    x = Tensor(ROW, requires_grad=True)
    y = A * x - x
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert_allclose(x.grad, A.sum(axis=0) - 3)
    v = Tensor(ROW[:, None], requires_grad=True)
    (A @ v).sum().backward()
    assert_allclose(v.grad[:, 0], A.sum(axis=0))
