"""Gradient descent's kernels against the formula: emulated with all checks on, and on a GPU."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy import nn, optim
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.launch.sgd import TENSORS

WAYS = ["cpu", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
ways = pytest.mark.parametrize("way", WAYS)


@contextlib.contextmanager
def entered(way):
    """The module of arrays, and the setting in which they are served in this way."""
    if way == "gpu":
        cupy = pytest.importorskip("cupy")
        if not cupy.is_available():
            pytest.skip("no GPU")
        yield cupy
    else:
        with mf.emulated_cuda() if way == "emulated" else contextlib.nullcontext():
            yield np


def numbers(array):
    return array.get() if hasattr(array, "get") else array


class Twin:
    """Parameters of these shapes under an optimiser, and their float64 twins under the formula."""

    def __init__(self, xp, shapes, adders, dtype="float32", scale=1.0, decays=(), **options):
        self.xp, self.rng, self.scale, self.dtype = xp, np.random.default_rng(0), scale, dtype
        self.w = [self.rng.normal(size=shape).astype(dtype) for shape in shapes]
        self.v = [np.zeros(shape) for shape in shapes]
        self.parameters = [
            nn.Parameter(xp.asarray(w), adder, decay)
            for w, adder, decay in zip(self.w, adders, decays or [True] * len(adders), strict=True)
        ]
        self.optimiser = optim.SGD(self.parameters, **options)

    def step(self, missing=()):
        o = self.optimiser
        for i, parameter in enumerate(self.parameters):
            g = (self.rng.normal(size=parameter.shape) * self.scale).astype(self.dtype)
            parameter.grad = None if i in missing else self.xp.asarray(g)
            if i not in missing:
                self.w[i], self.v[i] = spec.sgd(
                    *(self.w[i], g, self.v[i]),
                    rate=o.rate,
                    momentum=o.momentum,
                    nesterov=o.nesterov,
                    decay=o.weight_decay * parameter.decays,
                    adaptive=parameter.adder and o.adder == "adaptive",
                    eta=o.eta,
                    scale=o.adder_scale if parameter.adder and o.adder == "fixed" else 1,
                )
        o.step()

    def check(self):
        tolerance = {"float32": 3e-6, "float64": 1e-13}[self.dtype]
        for w, parameter in zip(self.w, self.parameters, strict=True):
            assert parameter.dtype == self.dtype
            assert_allclose(numbers(parameter.data), w, rtol=tolerance, atol=tolerance)


@ways
@settings(max_examples=25)
@given(
    sizes=st.lists(st.sampled_from([1, 7, 16, 255, 1023, 1024, 1025, 2100, 5000]), max_size=5),
    adder=st.sampled_from(["adaptive", "fixed", "adaptive in backward"]),
    momentum=st.sampled_from([0.0, 0.9]),
    nesterov=st.booleans(),
    decay=st.sampled_from([0.0, 5e-2]),
    dtype=st.sampled_from(["float32", "float64"]),
    data=st.data(),
)
def test_a_step_is_the_formula(way, sizes, adder, momentum, nesterov, decay, dtype, data):
    adders, decays = ([data.draw(st.booleans()) for _ in sizes] for _ in range(2))
    with entered(way) as xp:
        twin = Twin(
            *(xp, [(size,) for size in sizes], adders, dtype),
            decays=decays,
            rate=0.1,
            momentum=momentum,
            nesterov=nesterov and momentum > 0,
            weight_decay=decay,
            adder=adder,
            adder_scale=3.0,
        )
        twin.step()
        twin.optimiser.rate = 0.03
        twin.step()
        twin.check()


@ways
def test_more_tensors_than_a_table_holds(way):
    shapes = [(3, 1 + i % 5, 7) for i in range(2 * TENSORS + 9)]
    shapes[6], shapes[-1] = (), (4, 0)
    adders = [i % 3 > 0 for i in range(len(shapes))]
    with entered(way) as xp:
        twin = Twin(xp, shapes, adders, rate=0.1, momentum=0.9)
        for missing in ([0, 1, 200], [2]):
            twin.step(missing)
        twin.check()


@ways
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(way, scale):
    with entered(way) as xp:
        twin = Twin(xp, [(40, 60)], [True], scale=scale, rate=0.1)
        twin.step()
        twin.check()


@ways
def test_zeros_stay_zeros_and_one_nan_or_infinity_makes_all_nan(way):
    with entered(way) as xp:
        for value, expected in ((0, 1), (np.nan, np.nan), (np.inf, np.nan)):
            w = nn.Parameter(xp.ones(3000, np.float32), adder=True)
            w.grad = xp.zeros(3000, np.float32)
            w.grad[7] = value
            optim.SGD([w], 0.1).step()
            assert_array_equal(numbers(w.data), np.full(3000, expected))


@ways
def test_both_dtypes_at_once(way):
    with entered(way) as xp:
        one, two = nn.Parameter(xp.ones(3, "f")), nn.Parameter(xp.ones(3, "d"))
        one.grad, two.grad = xp.ones(3, "f"), xp.ones(3, "d")
        optim.SGD([one, two], 0.25).step()
        for parameter in (one, two):
            assert_array_equal(numbers(parameter.data), [0.75] * 3)


@ways
def test_views_are_arrays_like_others(way):
    with entered(way) as xp:
        w = nn.Parameter(xp.asarray(np.arange(12.0).reshape(3, 4)).T)
        w.grad = xp.asarray(np.arange(24.0).reshape(4, 6))[:, ::2]
        expected = numbers(w.data) - numbers(w.grad)
        optim.SGD([w], 1.0).step()
        assert_array_equal(numbers(w.data), expected)


DEVICES = WAYS[1:]


@pytest.mark.parametrize("way", DEVICES)
def test_later_steps_are_in_place_and_arrays_of_others_are_left_alone(way):
    with entered(way) as xp:
        mine = xp.ones((5, 5), np.float32)
        w = nn.Parameter(mine, adder=True)
        optimiser = optim.SGD([w], 0.1, momentum=0.9)

        def step():
            w.grad = xp.ones_like(w.data)
            optimiser.step()
            return w.data, optimiser.velocities[0], optimiser._rate_on_device

        first = step()
        saved = optimiser.state_dict()
        assert_array_equal(numbers(mine), np.ones((5, 5)))
        optimiser.rate = 0.05
        second = step()
        assert all(a is b for a, b in zip(first, second, strict=True))
        assert_allclose(numbers(w.data), 1 - 0.1 * 0.2 - 0.05 * 0.38, rtol=1e-6)
        optimiser.load_state_dict(saved)
        assert optimiser.velocities[0] is first[1]
        assert_array_equal(numbers(first[1]), saved["velocity.0"])
        w.data = mine
        step()
        assert_array_equal(numbers(mine), np.ones((5, 5)))


@pytest.mark.parametrize("way", DEVICES)
def test_gradients_that_do_not_fit_are_refused(way):
    with entered(way) as xp:
        w = nn.Parameter(xp.ones((2, 3), np.float32))
        for wrong in (xp.ones(3, np.float32), xp.ones((2, 3))):
            w.grad = wrong
            with pytest.raises(ValueError, match=r"SGD.step: the gradient of a parameter of shape"):
                optim.SGD([w], 0.1).step()


@ways
@pytest.mark.parametrize("change", ["load nothing", "momentum later", "dtype", "Fortran"])
def test_a_velocity_that_is_missing_or_another_is_made_to_fit(way, change):
    with entered(way) as xp:
        w = nn.Parameter(xp.ones((2, 3), np.float32))
        o = optim.SGD([w], rate=0.1, momentum=0 if change == "momentum later" else 0.5)

        def step(v):
            w.grad = xp.ones((2, 3), w.dtype)
            before = numbers(w.data).copy()
            o.step()
            right = o.momentum * v + 1
            assert_allclose(numbers(w.data), before - 0.1 * right, rtol=1e-6)
            return right

        v = step(np.zeros((2, 3)))
        if change == "load nothing":
            o.load_state_dict({})
            v = np.zeros((2, 3))
        elif change == "momentum later":
            o.momentum, v = 0.5, np.zeros((2, 3))
        elif change == "dtype":
            w.data = w.data.astype(np.float64)
        else:
            v = np.arange(6.0).reshape(3, 2).T
            w.data = w.data.copy()
            o.load_state_dict({"velocity.0": v})
        step(step(v))


def test_a_velocity_of_another_shape_is_refused():
    with mf.emulated_cuda():
        w = nn.Parameter(np.ones(3, np.float32))
        o = optim.SGD([w], rate=0.1, momentum=0.5)
        w.grad = np.ones(3, np.float32)
        o.step()
        w.data = w.grad = np.ones(4, np.float32)
        with pytest.raises(ValueError, match=r"velocity of a parameter of shape \(4,\) .* \(3,\)"):
            o.step()


def test_a_step_is_two_launches():
    with mf.emulated_cuda(trace=True) as report:
        twin = Twin(np, [(64, 64), (5,), (3, 5, 7)], [True, False, True], rate=0.1, momentum=0.9)
        twin.step()
    elements = 64 * 64 + 5 + 3 * 5 * 7
    assert set(report.counts) == {"square_sums", "update"}
    assert report.counts["square_sums"].global_loads == elements - 5
    sums = 4 * 4 + 1  # each of the blocks of an adder tensor reads all its sums
    assert report.counts["update"].global_loads == 3 * elements + sums + 6 * 256  # and the rate
    assert report.counts["update"].global_stores == 2 * elements


@ways
def test_a_network_learns_alike(way):
    def loss_after(way):
        with entered(way) as xp:
            rng = np.random.default_rng(1)
            layer = nn.Linear(6, 3, rng).to(xp)
            optimiser = optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
            x, y = (xp.asarray(rng.normal(size=(8, n)).astype(np.float32)) for n in (6, 3))
            for _ in range(3):
                optimiser.zero_grad()
                loss = ((layer(Tensor(x)) - Tensor(y)) ** 2).mean()
                loss.backward()
                optimiser.step()
            return float(loss.data)

    assert_allclose(loss_after(way), loss_after("cpu"), rtol=1e-5)
