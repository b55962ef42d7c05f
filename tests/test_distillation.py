"""Training by a teacher: its loss against the formula, its runs against interruption."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy import cli, data, models, nn
from mulfree_cupy import formulas as spec
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.data.feed import Progress
from mulfree_cupy.ops.cross_entropy import cross_entropy, softmax
from mulfree_cupy.train import (
    RECIPES,
    CrossEntropy,
    Distillation,
    Interrupted,
    Plan,
    Recipe,
    Training,
    checkpoint,
    load_teacher,
    prune,
)
from mulfree_cupy.train.device import DeviceSteps

RECIPE = Recipe("adder-lenet", epochs=3, batch_size=40, augment="crop", seed=4)


@pytest.fixture(scope="module")
def digits():
    train, test = data.load("digits")
    return replace(train, images=train.images[:200], labels=train.labels[:200]), test


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """The checkpoint of a trained conv twin."""
    path = tmp_path_factory.mktemp("teacher") / "checkpoint.npz"
    Training(replace(RECIPE, model="conv-lenet", epochs=2), *digits, path=path).run(progress=False)
    return path


class Answers(nn.Module):
    """Planes that pass a normalisation, and logits, both parameters: whatever the images are."""

    def __init__(self, rng, shape=(6, 2, 3, 3), classes=5):
        self.planes = nn.Parameter(rng.normal(size=shape))
        self.logits = nn.Parameter(3 * rng.normal(size=(shape[0], classes)))
        self.norm = nn.BatchNorm(shape[1])

    def forward(self, x):
        return self.logits + self.norm(self.planes).sum() * Tensor(np.zeros(()))


def test_the_loss_is_its_formula():
    """And the gradients are its derivatives, also through the normalisation of the features."""
    rng = np.random.default_rng(0)
    model, teacher, labels = Answers(rng), Answers(rng), rng.integers(0, 5, 6)
    recipe = Recipe("", temperature=3.0, teacher_share=0.7, teacher_features=2.5)
    objective = Distillation(model, teacher, recipe)
    loss, right, backward = objective(np.zeros(6), labels)
    backward()

    def by_formula(model):
        features = [network.norm(network.planes).data for network in (model, teacher)]
        logits = model.logits.data, teacher.logits.data
        of_answers = spec.distillation(*logits, labels, 3.0, 0.7)
        return of_answers + 2.5 * spec.kernel_distance(*features)

    assert_allclose(loss, by_formula(model), rtol=1e-12)
    assert right == (model.logits.data.argmax(axis=1) == labels).sum()
    for parameter in (model.planes, model.logits):
        for place in [(0,) * parameter.ndim, (-1,) * parameter.ndim]:
            values = []
            for step in (1e-6, -1e-6):
                parameter.data[place] += step
                values.append(by_formula(model))
                parameter.data[place] -= step
            slope = (values[0] - values[1]) / 2e-6
            assert_allclose(parameter.grad[place], slope, rtol=1e-5, atol=1e-8)
    assert teacher.logits.grad is None


def test_shares_of_classes_have_a_cross_entropy():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(7, 4)), rng.integers(0, 4, 7)
    assert_allclose(softmax(logits), spec.softmax(logits), rtol=1e-14)
    for given, expected in zip(
        cross_entropy(logits, np.eye(4)[labels]), spec.cross_entropy(logits, labels), strict=True
    ):
        assert_allclose(given, expected, atol=1e-15)
    shares = softmax(rng.normal(size=(7, 4)))
    loss, right, gradient = cross_entropy(logits, shares)
    assert_allclose(loss, -(shares * np.log(spec.softmax(logits))).sum(axis=1).mean())
    assert right == (logits.argmax(axis=1) == shares.argmax(axis=1)).sum()
    assert_allclose(gradient, (spec.softmax(logits) - shares) / 7)
    with pytest.raises(ValueError, match="shape and dtype of the logits, .*float32"):
        cross_entropy(logits, shares.astype("f"))


def test_of_no_share_nothing_is_learnt_from_a_teacher(digits, teacher):
    name, network = load_teacher(teacher, digits[0])
    recipe = replace(RECIPE, teacher=name, teacher_share=0.0, epochs=1)
    plain, taught = Training(RECIPE, *digits), Training(recipe, *digits, teacher=network)
    images, labels = next(iter(plain.loader))
    assert plain._train_step(images, labels) == taught._train_step(images, labels)
    for one, other in zip(plain.model.parameters(), taught.model.parameters(), strict=True):
        assert_array_equal(one.data, other.data)


def interrupted(run, monkeypatch, steps):
    step, left = Training._train_step, iter(range(steps))

    def stopping(self, *batch):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_train_step", stopping)
        with pytest.raises(Interrupted):
            run.run(progress=False)


@pytest.mark.parametrize("learns", [False, True])
def test_a_run_with_a_teacher_resumes_bit_for_bit(digits, teacher, tmp_path, monkeypatch, learns):
    recipe = replace(RECIPE, teacher="conv-lenet", teacher_learns=learns, teacher_features=1.0)

    def begun(path=None):
        trained = None if learns else load_teacher(teacher, digits[0])[1]
        return Training(recipe, *digits, path=path, teacher=trained)

    whole, path = begun(), tmp_path / "checkpoint.npz"
    whole.run(progress=False)
    interrupted(begun(path), monkeypatch, 7)
    resumed = Training.resume(path, *digits)
    assert (resumed.epoch, resumed.step) == (1, 3)
    resumed.run(progress=False)
    for one, other in zip(whole.networks, resumed.networks, strict=True):
        for name, array in one.state_dict().items():
            assert_array_equal(array, other.state_dict()[name], err_msg=name)
    assert whole.history.train_loss == resumed.history.train_loss
    before = load_teacher(teacher, digits[0])[1].state_dict()
    same = all(np.array_equal(before[n], a) for n, a in whole.teacher.state_dict().items())
    assert same is not learns


def test_a_teacher_that_learns_ends_as_it_would_alone(digits):
    """Nothing of its pupil goes into it."""
    recipe = replace(RECIPE, teacher="conv-lenet", teacher_learns=True, epochs=1)
    run = Training(recipe, *digits)
    run.run(progress=False)
    alone = Training(replace(RECIPE, model="conv-lenet", epochs=1, calibration=0), *digits)
    alone.run(progress=False)
    for name, array in alone.model.state_dict().items():
        assert_array_equal(array, run.teacher.state_dict()[name], err_msg=name)


def test_a_predictor_is_of_the_pupil(digits, teacher, tmp_path):
    name, network = load_teacher(teacher, digits[0])
    path = tmp_path / "checkpoint.npz"
    run = Training(replace(RECIPE, teacher=name, epochs=1), *digits, path=path, teacher=network)
    run.run(progress=False)
    images = digits[1].images[:9]
    normalised = (images - run.mean[:, None, None]) / run.std[:, None, None]
    expected = run.model.eval()(Tensor(normalised.astype("f"))).data
    assert_allclose(mf.load(path)(images), expected, rtol=1e-3, atol=1e-3)


def test_a_device_learns_from_a_teacher_as_the_host_does(digits, teacher):
    name, network = load_teacher(teacher, digits[0])
    recipe = replace(RECIPE, model=name, teacher=name, teacher_features=1.0)
    host, other = (Training(recipe, *digits, teacher=network) for _ in range(2))
    for _ in host._host_steps():
        pass
    with mf.emulated_cuda(check=False):
        steps = DeviceSteps(other.networks, other.objective, other.optimiser, other.loader, np)
        for _ in steps.epoch(0, Progress(), lambda: None):
            pass
        done = steps.progress()
    assert_allclose(done.loss, host.sums["loss"], rtol=1e-3)
    for name, array in host.model.state_dict().items():
        assert_allclose(other.model.state_dict()[name], array, rtol=2e-2, atol=2e-3, err_msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("learns", [False, True])
def test_a_graph_learns_from_a_teacher_as_its_steps_do(digits, teacher, cupy, learns):
    runs = []
    for graph in (True, False):
        trained = None if learns else load_teacher(teacher, digits[0])[1]
        recipe = replace(RECIPE, teacher="conv-lenet", teacher_learns=learns, teacher_features=1.0)
        run = Training(recipe, *digits, teacher=trained, device="cuda")
        run.device_steps = DeviceSteps(
            run.networks, run.objective, run.optimiser, run.loader, run.xp
        )
        if not graph:
            run.device_steps.replay.obstacle = "none is wanted"
        run.run(progress=False)
        assert run.device_steps.replay.replayed is graph
        runs.append(run)
    for name, array in runs[0].model.state_dict().items():
        assert_array_equal(array, runs[1].model.state_dict()[name], err_msg=name)


def test_recipes_and_teachers_that_do_not_fit_are_refused(digits, teacher, tmp_path):
    for changes, message in (
        ({"teacher_share": 1.5}, "teacher_share must be at most 1, got 1.5"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"teacher_features": -1}, "teacher_features must be a finite number >= 0, got -1"),
        ({"teacher_learns": True}, "teacher_learns needs the name of a teacher"),
        ({"teacher_learns": True, "teacher": RECIPE.model}, "must be another network"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(RECIPE, **changes)
    with pytest.raises(TypeError, match="teacher must be the name of a network, got 3"):
        replace(RECIPE, teacher=3)
    with pytest.raises(ValueError, match="'conv-lenet' and none"):
        Training(replace(RECIPE, teacher="conv-lenet"), *digits)
    with pytest.raises(ValueError, match="got '' and one"):
        Training(RECIPE, *digits, teacher=models.build("conv-lenet", channels=1, size=8))
    other = replace(digits[0], images=digits[0].images[:, :, ::2, ::2].copy())
    with pytest.raises(ValueError, match="was trained on images of"):
        load_teacher(teacher, other)
    with pytest.raises(ValueError, match="cannot teach on digits: it normalises"):
        load_teacher(teacher, replace(digits[0], images=255 - digits[0].images))
    path = tmp_path / "checkpoint.npz"
    run = Training(replace(RECIPE, epochs=1), *digits, path=path)
    run._save()
    with pytest.raises(ValueError, match="cannot teach: it was not trained for an epoch"):
        load_teacher(path, digits[0])
    run.run(progress=False)
    for changes in ({"teacher": "conv-lenet"}, {"teacher_learns": True}):
        with pytest.raises(ValueError, match="its teacher, or the lack of one, cannot change"):
            Training.resume(path, *digits, epochs=2, **changes)


def test_a_checkpoint_must_hold_its_teacher(digits, teacher, tmp_path):
    name, network = load_teacher(teacher, digits[0])
    run = Training(
        replace(RECIPE, teacher=name), *digits, path=tmp_path / "one.npz", teacher=network
    )
    run._save()
    with np.load(run.path) as file:
        arrays = dict(file)
    some = next(entry for entry in arrays if entry.startswith("teacher/"))
    for broken, message in (
        ({n: a for n, a in arrays.items() if n != some}, "missing"),
        ({**arrays, some: arrays[some] * np.float32("nan")}, "not finite"),
    ):
        np.savez(tmp_path / "other.npz", **broken)
        with pytest.raises(ValueError, match=message):
            checkpoint.load(tmp_path / "other.npz")


def test_a_pruned_network_keeps_its_teacher(digits, teacher, tmp_path):
    name, network = load_teacher(teacher, digits[0])
    recipe = replace(RECIPE, model="spatial-vgg-nagadomi-8", teacher=name, epochs=1)
    path = tmp_path / "checkpoint.npz"
    Training(recipe, *digits, path=path, teacher=network).run(progress=False)
    plan = Plan((0.5,), epochs=1)
    *_, last = prune(path, plan, *digits, out=tmp_path / "pruned", progress=False)
    kept = checkpoint.load(last.path)
    assert kept.recipe.teacher == name
    for entry, array in network.state_dict().items():
        assert_array_equal(array, kept.teacher.state_dict()[entry])


def test_the_command_line_takes_teachers(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def mulfree(*words):
        status = cli.main(["train", *words])
        return status, capsys.readouterr()

    full = tmp_path / "conv" / "checkpoint.npz"
    assert mulfree("--model", "conv-lenet", "--epochs", "1", "--out", "conv")[0] == 0
    (tmp_path / "conv-lenet").mkdir()  # a folder is no checkpoint
    for given in (str(full), "conv-lenet"):
        assert mulfree("--epochs", "1", "--teacher", given)[0] == 0
    saved = [checkpoint.load(tmp_path / f"mulfree-run{n}" / "checkpoint.npz") for n in ("", "-2")]
    assert [s.recipe.teacher_learns for s in saved] == [False, True]
    resumed = mulfree("--resume", "mulfree-run/checkpoint.npz", "--epochs", "2")
    assert resumed[0] == 0
    for words, message in (
        (("--teacher-share", "0.5"), "--teacher-share needs a --teacher"),
        (
            ("--resume", str(full), "--epochs", "3", "--temperature", "2"),
            "--temperature needs a teacher, and that run has none",
        ),
        (
            ("--teacher", "addr-lenet"),
            "--teacher must be a checkpoint or the name of a network: no model named 'addr-lenet'; "
            f"the nearest of {len(models.MODELS)} are adder-lenet",
        ),
        (("--teacher", "none.npz"), "there is no checkpoint none.npz"),
        (("--teacher", "conv"), "conv is a folder; the checkpoint in it is conv/checkpoint.npz"),
        (
            ("--teacher", "conv-lenet", "--resume", "mulfree-run/checkpoint.npz"),
            "a resumed one keeps its teacher, or has none",
        ),
    ):
        status, printed = mulfree(*words)
        assert status == 1 and message in printed.err


def test_a_recipe_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--epochs", "1", "--recipe", "fast"]
    assert cli.main([*train, "--out", "one"]) == cli.main([*train, "--batch-size", "50"]) == 0
    for folder, batch_size in (("one", RECIPES["fast"]["batch_size"]), ("mulfree-run", 50)):
        assert checkpoint.load(tmp_path / folder / "checkpoint.npz").recipe.batch_size == batch_size
    resume = ["train", "--resume", "one/checkpoint.npz", "--epochs", "2", "--recipe", "paper"]
    assert cli.main([*resume, "--out", "back"]) == 0
    back = checkpoint.load(tmp_path / "back" / "checkpoint.npz").recipe
    assert (back.batch_size, back.nesterov) == (256, False)
    assert {name: getattr(Recipe(""), name) for name in RECIPES["paper"]} == RECIPES["paper"]


def test_a_loss_of_labels_alone_leaves_the_gradient_to_backward():
    model = Answers(np.random.default_rng(2))
    _, _, backward = CrossEntropy(model)(np.zeros(6), np.arange(6) % 5)
    assert model.logits.grad is None
    backward()
    assert_allclose(model.logits.grad, spec.cross_entropy(model.logits.data, np.arange(6) % 5)[2])
