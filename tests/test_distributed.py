"""Data-parallel training: ranks that are threads, and those of mpirun."""

import contextvars
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import communicator as ranks
from mulfree_cupy import data, nn
from mulfree_cupy import formulas as spec
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.communicator import Communicator
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward


class Thread(Communicator):
    """A rank that is a thread of this process."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self.shared = rank, size, shared

    def gather(self, array):
        arrays, barrier = self.shared
        arrays[self.rank] = array
        barrier.wait()
        gathered = np.stack(arrays)
        barrier.wait()
        return gathered

    def exchange(self, parts):
        return self.gather(parts)[:, self.rank]


def in_ranks(size, function):
    """What the function returns on each of so many ranks, called with their communicators."""
    shared = [None] * size, threading.Barrier(size, timeout=60)
    answers, errors = [None] * size, []

    def run(rank):
        try:
            answers[rank] = function(Thread(rank, size, shared))
        except BaseException as error:
            errors.append(error)
            shared[1].abort()

    contexts = [contextvars.copy_context() for _ in range(size)]
    threads = [
        threading.Thread(target=context.run, args=(run, rank))
        for rank, context in enumerate(contexts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def values(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 3 * 2**14 + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_is_in_the_order_of_the_ranks(size, count, dtype):
    """Small arrays are gathered, larger ones exchanged in parts; the bits do not depend on it."""
    given = [values(count, dtype, seed) for seed in range(size)]
    expected = given[0].copy()
    for array in given[1:]:
        expected += array

    def summed(communicator):
        array = given[communicator.rank].copy()
        communicator.sum(array)
        return array

    for total in in_ranks(size, summed):
        assert_array_equal(total, expected)


def test_one_rank_changes_nothing():
    array = values(3)
    ranks.ALONE.sum(array)
    assert_array_equal(array, values(3))
    assert ranks.totals(ranks.ALONE, 1, 2.5) == [1, 2.5]
    assert ranks.part_of(7, ranks.ALONE) == slice(0, 7)


def test_gradients_are_summed_in_buckets(monkeypatch):
    """Of one dtype each, and limited in bytes; parameters without a gradient are left out."""
    monkeypatch.setattr(ranks, "_BUCKET", 40)
    shapes = [(2, 3), (2,), (), (100,), (3,), (4,), (1,)]
    dtypes = ["float32", "float32", "float64", "float32", "float32", "float64", "float32"]

    def summed(communicator):
        sizes = []

        class Counting(Thread):
            def sum(self, array):
                sizes.append((array.size, array.dtype.name))
                super().sum(array)

        communicator = Counting(communicator.rank, communicator.size, communicator.shared)
        parameters = [nn.Parameter(values(s, d)) for s, d in zip(shapes, dtypes, strict=True)]
        for seed, parameter in enumerate(parameters[:-1]):
            parameter.grad = values(parameter.shape, parameter.dtype, seed) * (
                1 + communicator.rank
            )
        ranks.sum_gradients(communicator, parameters)
        return [parameter.grad for parameter in parameters], sizes

    for gradients, sizes in in_ranks(2, summed):
        assert sizes == [(8, "float32"), (100, "float32"), (3, "float32"), (5, "float64")]
        for seed, gradient in enumerate(gradients[:-1]):
            expected = values(shapes[seed], dtypes[seed], seed)
            assert_array_equal(gradient, expected + 2 * expected)
        assert gradients[-1] is None


@st.composite
def batches(draw):
    """Sizes of the ranks' parts of a batch, and the shape of an image."""
    counts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shape = draw(st.integers(1, 5)), *draw(st.sampled_from([(), (1, 1), (3, 5), (4, 4)]))
    return counts, shape


def assert_normalised_together(counts, shape, dtype, residual, relu, distance=0.0, rtol=1.0):
    tolerance = rtol * {"float32": 1e-5, "float64": 1e-11}[dtype]
    x = values((sum(counts), *shape), dtype) + np.asarray(distance, dtype)
    added = values(x.shape, dtype, 1) if residual else None
    grad, channels = values(x.shape, dtype, 2), shape[0]
    weight, bias, before = values((3, channels), dtype, 3)
    ends = np.cumsum([0, *counts])

    def normalised(communicator):
        part = slice(*ends[communicator.rank :][:2])
        running = before.copy(), 1 + before**2
        here = None if added is None else added[part]
        y, mean, variance = batch_norm(
            *(x[part], weight, bias, here),
            relu=relu,
            running=running,
            momentum=0.3,
            communicator=communicator,
        )
        gradients = batch_norm_backward(
            *(grad[part], x[part], y, weight, mean, variance),
            relu=relu,
            residual=residual,
            communicator=communicator,
        )
        return y, mean, variance, *running, *gradients[:3], *([gradients[3]] if residual else [])

    answers = in_ranks(len(counts), normalised)
    for one, *others in list(zip(*answers, strict=True))[1:5]:  # the statistics
        for other in others:
            assert_array_equal(one, other)
    y, mean, variance, running_mean, running_variance, grad_x, grad_weight, grad_bias, *flow = zip(
        *answers, strict=True
    )
    expected_mean, expected_variance = spec.moments(x.astype(np.float64))
    close = lambda ours, theirs: assert_allclose(  # noqa: E731
        ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max())
    )
    close(mean[0], expected_mean)
    close(variance[0], expected_variance)
    count = x.size / channels
    unbiased = expected_variance * count / (count - 1)
    close(running_mean[0], 0.7 * before + 0.3 * expected_mean)
    close(running_variance[0], 0.7 * (1 + before**2) + 0.3 * unbiased)
    y = np.concatenate(y)
    close(y, spec.batch_norm(x, weight, bias, added if residual else 0, relu=relu))
    theirs = spec.batch_norm_backward(
        grad, x, y, weight, expected_mean, expected_variance, relu=relu
    )
    close(np.concatenate(grad_x), theirs[0])
    close(sum(grad_weight), theirs[1])
    close(sum(grad_bias), theirs[2])
    if residual:
        assert_array_equal(np.concatenate(flow[0]), theirs[3].astype(dtype))


@settings(max_examples=40, deadline=None)
@given(
    problem=batches(),
    dtype=st.sampled_from(["float32", "float64"]),
    residual=st.booleans(),
    relu=st.booleans(),
)
def test_batch_normalisation_is_that_of_the_whole_batch(problem, dtype, residual, relu):
    counts, shape = problem
    # Two equal values would be far apart after division by their deviation.
    if sum(counts) * np.prod(shape[1:]) > 4:
        assert_normalised_together(counts, shape, dtype, residual, relu, rtol=20)


@pytest.mark.parametrize("counts", [[2, 2], [1, 2], [3, 1, 2]])
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 48, 48), (5, 7, 7), (4,)])
@pytest.mark.parametrize("relu", [False, True])
def test_a_device_normalises_the_whole_batch(counts, shape, relu):
    """Emulated; (2, 48, 48) are several parts of a channel."""
    with mf.emulated_cuda():
        assert_normalised_together(counts, shape, "float32", relu, relu, rtol=20)
        assert_normalised_together(counts, shape, "float64", relu, relu, rtol=20)


def test_a_distant_mean_does_not_cancel():
    assert_normalised_together([3, 5], (2, 6, 6), "float64", False, True, distance=1e4, rtol=100)


def test_evaluation_needs_no_other_rank():
    x, communicator = values((4, 3, 2, 2)), Thread(0, 2, None)
    layer, alone = nn.BatchNorm(3, relu=True).eval(), nn.BatchNorm(3, relu=True).eval()
    layer.communicator = communicator
    answers = []
    for module in (layer, alone):
        image = Tensor(x, requires_grad=True)
        (module(image) * Tensor(values(x.shape, seed=1))).sum().backward()
        answers.append((image.grad, module.weight.grad))
    for ours, theirs in zip(*answers, strict=True):
        assert_array_equal(ours, theirs)


def test_a_single_value_on_a_rank_is_a_batch_together():
    def normalised(communicator):
        layer = nn.BatchNorm(2)
        layer.communicator = communicator
        return layer(Tensor(values((1, 2), seed=communicator.rank))).data

    assert_allclose(np.concatenate(in_ranks(2, normalised)).sum(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("augment", ["none", "crop", "crop and flip"])
def test_the_parts_of_a_batch_are_the_batch(size, augment):
    """In order, with the same augmentation; as batches, as a plan and from a device."""
    from mulfree_cupy.train import AUGMENTATIONS

    train, _ = data.load("digits")
    settings = dict(shuffle=True, augment=AUGMENTATIONS[augment], mean=3.0, std=2.0, seed=5)

    def loader(communicator):
        return data.Loader(train, 100, **settings, communicator=communicator)

    whole = list(loader(ranks.ALONE))
    parts = [list(loader(Thread(rank, size, None))) for rank in range(size)]
    for number, batch in enumerate(whole):
        for i in range(2):
            together = np.concatenate([part[number][i] for part in parts])
            assert_array_equal(together, batch[i])
    assert {len(part[-1][1]) for part in parts} == {42 // size}
    assert sum(len(loader(Thread(rank, size, None)).plan(0)) for rank in range(size)) == len(train)
    with mf.emulated_cuda(check=False):
        feed = data.Feed(loader(Thread(1, size, None)), np)
        for ours, (theirs, _) in zip(feed.first_images(0, 2), parts[1], strict=False):
            assert_array_equal(ours, theirs)
