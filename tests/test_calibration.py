"""Recomputed BatchNorm statistics: the formula, and that nothing else changes."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import cli, data, models, nn
from mulfree_cupy import formulas as spec
from mulfree_cupy.train import (
    Recipe,
    Training,
    calibrated,
    checkpoint,
    evaluate,
    gather_statistics,
)
from mulfree_cupy.train.folder import taken

RECIPE = Recipe("adder-lenet", epochs=2, batch_size=64, augment="none", seed=4)


@pytest.fixture(scope="module")
def digits():
    train, test = data.load("digits")
    return replace(train, images=train.images[:400], labels=train.labels[:400]), test


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint.npz"
    run = Training(RECIPE, *digits, path=path)
    run.run(progress=False)
    return path, run


def statistics(model):
    return {name: a for name, a in model.state_dict().items() if "running" in name}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_statistics_are_averages_over_batches_of_any_size(shape, dtype):
    rng = np.random.default_rng(0)
    batches = [rng.normal(700, 3, (n, *shape)).astype(dtype) for n in (5, 2, 9)]
    first, second = nn.BatchNorm(3, relu=True), nn.BatchNorm(3)
    first.weight.data = np.array([0.5, 2.0, 1.0], np.float32)
    gather_statistics(nn.Sequential(first, second), iter(batches))
    between = [spec.batch_norm(x, first.weight.data, np.zeros(3), relu=True) for x in batches]
    for layer, inputs in ((first, batches), (second, between)):
        mean, variance = spec.gathered(inputs)
        assert_allclose(layer.running_mean, mean, rtol=1e-5, atol=1e-5)
        assert_allclose(layer.running_var, variance, rtol=1e-4)


def test_spoilt_statistics_are_mended(digits, trained):
    """To the very bits that training gathered."""
    _, run = trained
    before = statistics(run.model)
    rng = np.random.default_rng(0)
    for _, layer in run.model.modules():
        if isinstance(layer, nn.BatchNorm):
            layer.running_mean += rng.normal(size=len(layer.running_mean)) * 100
            layer.running_var[:] = np.nan
    gather_statistics(run.model, run.loader.first_images(1, 7))
    for name, array in statistics(run.model).items():
        assert_array_equal(array, before[name], err_msg=name)
    assert run.evaluate() == run.history.test_accuracy[-1]


def test_training_tests_with_gathered_statistics(digits, trained):
    """The weights are those of a run that gathers none, whose statistics lag."""
    _, run = trained
    plain = Training(replace(RECIPE, calibration=0), *digits)
    history = plain.run(progress=False)
    gathered, running = statistics(run.model), statistics(plain.model)
    for name, array in run.model.state_dict().items():
        if name not in gathered:
            assert_array_equal(array, plain.model.state_dict()[name])
    assert any((gathered[name] != running[name]).any() for name in gathered)
    assert history.running_accuracy == history.test_accuracy
    assert history.train_loss == run.history.train_loss
    assert run.history.running_accuracy[0] == history.test_accuracy[0]
    assert run.history.test_accuracy[-1] > run.history.running_accuracy[-1] + 0.1


def dropping():
    model = models.build("winograd-vgg-nagadomi-8", channels=1, size=8, classes=10).train()
    list(model.modules())[3][1].training = False  # a layer that somebody has frozen
    return model


def test_the_rest_of_the_network_stays(digits):
    model = dropping()
    images = digits[0].images[:64].astype(np.float32)
    draws = [m.rng.bit_generator.state for _, m in model.modules() if isinstance(m, nn.Dropout)]
    places = {id(array) for name, *_, array in model.named_state() if "running" in name}
    momenta = [m.momentum for _, m in model.modules() if isinstance(m, nn.BatchNorm)]
    modes = [m.training for _, m in model.modules()]
    weights = {n: a for n, a in model.state_dict().items() if "running" not in n}
    assert draws and not all(modes)
    gather_statistics(model, [images])
    assert draws == [
        m.rng.bit_generator.state for _, m in model.modules() if isinstance(m, nn.Dropout)
    ]
    assert places == {id(array) for name, *_, array in model.named_state() if "running" in name}
    assert modes == [m.training for _, m in model.modules()]
    assert momenta == [m.momentum for _, m in model.modules() if isinstance(m, nn.BatchNorm)]
    for name, array in weights.items():
        assert_array_equal(model.state_dict()[name], array)


def test_what_raises_leaves_the_statistics(digits, trained):
    _, run = trained
    before = statistics(run.model)

    def broken():
        yield next(iter(run.loader))[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_statistics(run.model, broken())
    with pytest.raises(ValueError, match="gather_statistics: there is no batch to gather"):
        gather_statistics(run.model, [])
    for name, array in statistics(run.model).items():
        assert_array_equal(array, before[name])
    assert run.evaluate() == run.history.test_accuracy[-1]


def test_a_network_without_normalisation_is_refused():
    with pytest.raises(ValueError, match="gather_statistics: the network has no BatchNorm"):
        gather_statistics(nn.Sequential(nn.ReLU()), [np.ones((2, 3), np.float32)])


def test_the_bits_do_not_depend_on_the_threads(digits, trained):
    _, run = trained
    answers, threads = [], mf.get_num_threads()
    try:
        for number in (1, 2, 3):
            mf.set_num_threads(number)
            gather_statistics(run.model, run.loader.first_images(1, 7))
            answers.append(statistics(run.model))
    finally:
        mf.set_num_threads(threads)
    for name, array in answers[0].items():
        assert all(np.array_equal(array, other[name]) for other in answers[1:])


def test_a_device_gathers_what_the_host_does(digits):
    """Emulated, from a feed: whole batches and the short one at the end."""
    few = replace(digits[0], images=digits[0].images[:100], labels=digits[0].labels[:100])
    mean, std = data.statistics(few)
    loader = data.Loader(few, 40, shuffle=True, mean=mean, std=std, seed=1)
    model = models.build("adder-lenet", channels=1, size=8, classes=10)
    gather_statistics(model, loader.first_images(3, 99))
    host = statistics(model)
    with mf.emulated_cuda(check=False):
        gather_statistics(model, data.Feed(loader, np).first_images(3, 99))
    for name, array in statistics(model).items():
        assert_allclose(array, host[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_first_images_of_an_epoch(digits):
    mean, std = data.statistics(digits[0])
    loader = data.Loader(digits[0], 64, shuffle=True, mean=mean, std=std, seed=1)
    loader.epoch = 5
    whole = [images for images, _ in loader]
    assert loader.epoch == 6
    for count in (0, 2, 7, 8):
        first = list(loader.first_images(5, count))
        assert len(first) == min(count, 7) and loader.epoch == 6
        for some, all_of_them in zip(first, whole, strict=False):
            assert_array_equal(some, all_of_them)


@pytest.mark.gpu
def test_a_gpu_gathers_what_the_host_does(digits):
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    import rehearsal

    run = Training(RECIPE, *digits, device="cuda")
    run.run(progress=False)
    assert run.device_steps.replay.replayed  # the statistics are where they were
    if rehearsal.active():
        pytest.skip("a rehearsal computes no statistics")
    device = statistics(run.model)
    run.model.to(np)
    gather_statistics(run.model, run.loader.first_images(1, 7))
    for name, array in statistics(run.model).items():
        assert_allclose(array, device[name], rtol=1e-3, atol=1e-3, err_msg=name)


# The command.


@pytest.fixture
def plain(tmp_path):
    """A folder with a run of two epochs that gathered nothing."""
    out = tmp_path / "run"
    train = ["train", "--epochs", "2", "--calibration", "0", "--out", str(out)]
    assert cli.main(train) == 0
    return out / "checkpoint.npz"


def test_the_command_mends_a_checkpoint(plain, tmp_path, capsys):
    assert "running statistics" not in capsys.readouterr().out
    before, copy = checkpoint.load(plain), tmp_path / "copy.npz"
    bytes_before = plain.read_bytes()
    assert cli.main(["calibrate", str(plain), "--out", str(copy)]) == 0
    assert plain.read_bytes() == bytes_before
    assert cli.main(["calibrate", str(plain)]) == 0
    assert plain.read_bytes() == copy.read_bytes()
    after, (_, test) = checkpoint.load(plain), data.load("digits")
    accuracies = [evaluate(saved.model, test, saved.mean, saved.std) for saved in (before, after)]
    told = "adder-lenet on digits: test accuracy {:.2%} before, {:.2%} after, of 355 images"
    assert told.format(*accuracies) in capsys.readouterr().out
    assert accuracies[1] > accuracies[0] + 0.2
    assert (after.recipe, after.history, after.epoch) == (before.recipe, before.history, 2)
    for name, array in before.velocities.items():
        assert_array_equal(array, after.velocities[name])
    # As many as training gathers by default, so the very bits.
    run = tmp_path / "gathered"
    assert cli.main(["train", "--epochs", "2", "--out", str(run)]) == 0
    told = rf"Test accuracy {accuracies[1]:.2%} \(\d+\.\d+% with the running statistics\) after 2"
    assert re.search(told, capsys.readouterr().out)
    gathered = checkpoint.load(run / "checkpoint.npz").weights
    assert all(np.array_equal(array, gathered[name]) for name, array in after.weights.items())


def test_a_calibrated_run_goes_on_to_the_same_weights(plain, tmp_path):
    copy = tmp_path / "copy" / "checkpoint.npz"
    assert cli.main(["calibrate", str(plain), "--out", str(copy)]) == 0
    assert os.listdir(copy.parent) == ["checkpoint.npz"]
    for path in (plain, copy):
        assert cli.main(["train", "--resume", str(path), "--epochs", "3"]) == 0
    one, other = (checkpoint.load(path) for path in (plain, copy))
    assert one.history.train_loss == other.history.train_loss
    for name, array in one.weights.items():
        assert "running" in name or np.array_equal(array, other.weights[name])


def test_what_the_command_refuses(plain, tmp_path, capsys):
    def refused(*arguments):
        before = plain.read_bytes()
        capsys.readouterr()
        assert cli.main(["calibrate", *map(str, arguments)]) == 1
        assert plain.read_bytes() == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    for images in (1, 63, 1443):
        told = refused(plain, "--images", images)
        assert f"must be from 64, a batch, to the 1442 of digits, got {images}" in told
    assert "exists already; choose another --out" in refused(plain, "--out", plain)
    assert "there is no checkpoint" in refused(tmp_path / "none" / "none.npz")
    assert not (tmp_path / "none").exists()
    with taken(plain.parent, resumed="checkpoint.npz"):
        assert "another run is active" in refused(plain)
    with np.load(plain) as entries:
        arrays = dict(entries)
    facts = json.loads(str(arrays["facts"]))
    facts["sums"] = {"loss": 1.0, "right": 1, "seen": 64}
    facts["recipe"]["epochs"] = 3
    inside = tmp_path / "inside.npz"
    np.savez(inside, **{**arrays, "facts": np.array(json.dumps(facts))})
    assert "inside.npz is inside an epoch, and a run resumed" in refused(inside)


def test_other_images_and_statistics_that_are_not_finite_are_refused(digits, trained, tmp_path):
    path, run = trained
    train, test = digits
    with pytest.raises(ValueError, match="trained on other classes than those of digits"):
        calibrated(path, replace(train, classes=tuple("abcdefghij")))
    mean, std = data.statistics(train)
    saved = calibrated(path, train)
    assert evaluate(saved.model, test, mean, std) == run.history.test_accuracy[-1]
    saved.model.conv1.weight.data = np.full_like(saved.model.conv1.weight.data, 3e38)
    checkpoint.save(tmp_path / "large.npz", replace(saved, model=saved.model))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="running_mean holds"):
        calibrated(tmp_path / "large.npz", train)
