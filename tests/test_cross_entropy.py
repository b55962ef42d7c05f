"""The loss against its formula: on the CPU, emulated with all checks on, and on a GPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, run
from test_cuda_optim import entered, numbers, ways

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.autograd import Tensor, apply
from mulfree_cupy.launch import cross_entropy as launchers
from mulfree_cupy.launch import emulator
from mulfree_cupy.ops.cross_entropy import cross_entropy


@ways
@settings(max_examples=40)
@given(
    rows=st.sampled_from([1, 2, 8, 9, 31, 257, 300]),
    classes=st.sampled_from([1, 2, 10, 31, 32, 33, 70]),
    dtype=st.sampled_from(["float32", "float64"]),
    layout=st.sampled_from(LAYOUTS[:4:3]),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_loss_is_its_formula(way, rows, classes, dtype, layout, whole, seed):
    rng = np.random.default_rng(seed)
    logits = 4 * rng.normal(size=(rows, classes)) + rng.choice([0, 500, -500])
    logits = lay_out((np.rint(logits) if whole else logits).astype(dtype), layout)
    labels = rng.integers(0, classes, rows)
    loss, right, gradient = run(way, cross_entropy, logits, labels)
    expected = spec.cross_entropy(logits, labels)
    tolerance = {"float32": 1e-6, "float64": 1e-13}[dtype]
    assert loss.dtype == gradient.dtype == dtype and loss.shape == right.shape == ()
    assert_allclose(loss, expected[0], rtol=tolerance, atol=tolerance)
    assert_array_equal(right, expected[1])
    assert_allclose(gradient, expected[2], rtol=3 * tolerance, atol=tolerance / rows)


@ways
def test_nan_and_infinity_go_through(way):
    logits = np.zeros((4, 40), np.float32)
    logits[0, 35], logits[1, 3], logits[2, 38] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        loss, right, gradient = run(way, cross_entropy, logits, np.array([35, 3, 38, 0]))
    assert_array_equal([loss, right], [np.nan, 3])
    assert_array_equal(np.isnan(gradient).all(axis=1), [True, True, False, False])


def test_labels_on_a_device_that_are_no_class_make_the_loss_nan():
    logits, labels = np.ones((3, 5), np.float32), np.array([1, 5, -1], np.int32)
    loss, right, gradient = np.ones((), "f"), np.ones((), np.int64), np.ones((3, 5), "f")
    with mf.emulated_cuda():
        launchers.cross_entropy(emulator.device, logits, labels, loss, right, gradient)
    assert np.isnan(loss) and right == 0
    assert_array_equal(np.isnan(gradient), [[False] * 5, [True] * 5, [True] * 5])


@ways
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_labels_may_come_from_host_and_device(way, dtype):
    logits, labels = np.eye(4, 6, dtype=np.float32), np.arange(4).astype(dtype)
    expected = spec.cross_entropy(logits, labels)
    with entered(way) as xp:
        for given_labels in (labels, xp.asarray(labels)):
            loss, right, _ = cross_entropy(xp.asarray(logits), given_labels)
            assert_allclose(numbers(loss), expected[0], rtol=1e-6)
            assert_array_equal(numbers(right), 4)


@ways
def test_the_rule_is_the_gradient(way):
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(6, 10)).astype(np.float32), np.arange(6)
    with entered(way) as xp:
        logits = Tensor(xp.asarray(values), requires_grad=True)
        (apply("cross_entropy", logits, labels=labels) * 2).backward()
        gradient = numbers(logits.grad)
    assert_allclose(gradient, 2 * spec.cross_entropy(values, labels)[2], atol=1e-7)


def test_the_loss_is_two_launches():
    with mf.emulated_cuda(trace=True) as report:
        cross_entropy(np.ones((20, 10), np.float32), np.arange(20) % 10)
    rows, mean = (report.counts[f"cross_entropy_{name}"] for name in ("rows", "mean"))
    assert len(report.counts) == 2
    assert rows.global_stores == 200 + 2 * 20 and mean.global_loads == 2 * 20
    assert rows.global_loads == 20 * (32 + 10 + 10 + 32 + 1)  # of label and maximum in every lane


def test_an_empty_batch_has_no_mean():
    with mf.emulated_cuda():
        loss, right, gradient = cross_entropy(np.ones((0, 10)), np.zeros(0, int))
    assert np.isnan(loss) and right == 0 and gradient.shape == (0, 10)
