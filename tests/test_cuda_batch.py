"""Batches made on the device against the loader's, and their progress: emulated, and on a GPU."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import data
from mulfree_cupy import formulas as spec
from mulfree_cupy.data.augment import Moves
from mulfree_cupy.data.feed import Progress

ways = pytest.mark.parametrize("way", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
AUGMENTS = {
    "none": None,
    "crop": data.RandomCrop(3),
    "flip": data.RandomFlip(),
    "crop, flip": data.Compose(data.RandomCrop(2), data.RandomFlip()),
    "flip, crop": data.Compose(data.RandomFlip(), data.RandomCrop(2)),
    "flip, flip": data.Compose(data.RandomFlip(), data.RandomFlip(0.7)),
}


@contextlib.contextmanager
def entered(way):
    """The array module of a way, and its setting."""
    if way == "emulated":
        with mf.emulated_cuda():
            yield np
        return
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    yield cupy


def host(array):
    return array if isinstance(array, np.ndarray) else array.get()


def loader(count, channels, size, batch_size, augment, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, channels, *size), np.uint8)
    dataset = data.Dataset(images, rng.integers(0, 9, count), tuple("abcdefghi"), "toy")
    mean, std = rng.uniform(50, 200, channels), rng.uniform(1, 90, channels)
    options = dict(shuffle=True, augment=augment, mean=mean, std=std, seed=seed, dtype=dtype)
    return data.Loader(dataset, batch_size, **options)


@ways
@settings(max_examples=25)
@given(
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    batch_size=st.integers(1, 9),
    augment=st.sampled_from(list(AUGMENTS.values())),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_the_batches_of_the_device_are_the_loaders(
    way, channels, size, batch_size, augment, dtype, seed
):
    ours = loader(13, channels, size, batch_size, augment, seed, dtype)
    ours.epoch = 3
    with entered(way) as xp:
        feed = data.Feed(ours, xp)
        feed.start(3)
        for images, labels in ours:
            x, shown = feed.take(len(labels))
            feed.tally(xp.zeros((), dtype), xp.zeros((), np.int64), len(labels))
            assert x.dtype == dtype
            assert_array_equal(host(x), images)
            assert_array_equal(host(shown), labels)


@ways
def test_a_batch_is_the_formula(way):
    ours = loader(9, 3, (5, 7), 4, AUGMENTS["crop, flip"])
    with entered(way) as xp:
        feed = data.Feed(ours, xp)
        feed.start(1, Progress(step=1))
        x, _ = feed.take(4)
    expected = spec.batch(ours.dataset.images, ours.plan(1)[4:8], ours.mean, ours.std)
    np.testing.assert_allclose(host(x), expected, rtol=1e-6, atol=1e-6)


@ways
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_progress_adds_up_and_remembers_the_first_fault(way, bad):
    losses, right = np.float32([1.5, 0.1, 2.25, bad, 7.0, bad]), np.int32([3, 0, 8, 8, 1, 2])
    with entered(way) as xp:
        feed = data.Feed(loader(48, 1, (2, 2), 8, None), xp)
        feed.start(0, Progress(loss=10.0, right=4.0))
        for step in range(6):
            if step == 3:
                before = feed.read()
            feed.tally(xp.asarray(losses[step]), xp.asarray(right[step]), 8)
        after = feed.read().wait()
    total = 10.0 + float(losses[0]) * 8 + float(losses[1]) * 8 + float(losses[2]) * 8
    np.testing.assert_array_equal(before.wait(), Progress(total, 4 + 11, 3, -1))
    np.testing.assert_array_equal(after, (bad, 4 + 22, 6, 3))


def test_an_epoch_is_planned_whole():
    ours = loader(50, 1, (4, 4), 7, AUGMENTS["crop, flip"])
    plan = ours.plan(2)
    assert plan.dtype == np.int32
    assert_array_equal(np.sort(plan[:, 0]), np.arange(50))
    assert np.abs(plan[:, 1:3]).max() == 2 and set(plan[:, 3]) == {0, 1}
    assert (plan != ours.plan(3)).any()


def test_moves_after_one_another():
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 6, 5), np.uint8)
    for augment in AUGMENTS.values():
        if augment is not None:
            rngs = [np.random.default_rng(5) for _ in range(2)]
            moved = spec.move(images, *augment.draw(rngs[0], 40))
            assert_array_equal(augment(images, rngs[1]), moved)


def test_what_no_moves_can_tell_is_refused():
    rng = np.random.default_rng(0)
    twice = data.Compose(data.RandomCrop(), data.Compose(data.RandomCrop()))
    with pytest.raises(ValueError, match="draw: an image can be cropped once"):
        twice.draw(rng, 9)
    with pytest.raises(TypeError, match="draw: <function .* draws no moves, as RandomCrop"):
        loader(5, 1, (4, 4), 2, data.Compose(lambda images, rng: images)).plan(0)
    one = np.ones(1, int)
    assert Moves(one, 0 * one, one > 0).then(Moves(0 * one, 0 * one, one > 0)).flip == [False]


def test_a_batch_has_no_more_images_than_the_plan_says():
    train, _ = data.load("digits")
    mean, std = data.statistics(train)
    feed = data.Feed(data.Loader(train, 50, shuffle=True, mean=mean, std=std, seed=0), np)
    with pytest.raises(ValueError, match="count must be at most the batch size 50, got 51"):
        feed.take(51)
