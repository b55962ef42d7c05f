"""Comparison of networks: training once each, resuming, counting, plotting."""

import csv
import json
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest

from mulfree_cupy import cli, data, models, nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.report import comparison, figures
from mulfree_cupy.train import Interrupted, Recipe, Run, Training, checkpoint, compare
from mulfree_cupy.train.recipe import History

PRUNED = "winograd-relu-vgg-nagadomi-8"
RECIPE = Recipe("conv-lenet", epochs=1, batch_size=50, augment="none")
THREE = replace(RECIPE, epochs=3)  # before, between and after two prunings


@pytest.fixture(scope="module")
def few():
    """Two hundred digits."""
    train, test = data.load("digits")
    return replace(train, images=train.images[:200], labels=train.labels[:200]), test


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def test_what_is_trained_is_not_trained_again(few, tmp_path):
    options = {"out": tmp_path, "progress": False}
    runs = compare(["conv-lenet", PRUNED], THREE, *few, **options)
    assert [(run.model, run.seed, run.prunings) for run in runs] == [
        ("conv-lenet", 0, ()),
        (PRUNED, 0, (1, 2)),
    ]
    dense, pruned = (checkpoint.load(run.path) for run in runs)
    assert dense.recipe == THREE and len(runs[1].history.test_accuracy) == 3
    masks = [layer.mask for _, layer in pruned.model.modules() if hasattr(layer, "mask")]
    assert all(abs(mask.mean() - 0.4) < 0.01 for mask in masks[1:])

    before = stamps(tmp_path)
    again = compare(["conv-lenet"], THREE, *few, **options, seeds=2)
    assert again[0] == runs[0] and again[1].seed == 1
    after = stamps(tmp_path)
    assert {path: after[path] for path in before} == before and len(after) == len(before) + 1


def test_a_network_that_is_pruned_trains_as_long_as_the_others(few, tmp_path):
    recipe = replace(RECIPE, epochs=6)
    (run,) = compare([PRUNED], recipe, *few, out=tmp_path, progress=False)
    assert len(run.history.test_accuracy) == 6 and run.prunings == (4, 5)


def test_a_network_is_taught_by_one_before_it(few, tmp_path):
    taught = "adder-lenet@conv-lenet"
    options = {"out": tmp_path, "progress": False, "seeds": 2}
    runs = compare(["conv-lenet", "adder-lenet", taught], RECIPE, *few, **options)
    assert [(run.model, run.seed) for run in runs[-2:]] == [(taught, 0), (taught, 1)]
    teachers, alone, pupils = runs[:2], runs[2:4], runs[4:]
    for teacher, single, pupil in zip(teachers, alone, pupils, strict=True):
        saved = checkpoint.load(pupil.path)
        assert (saved.recipe.model, saved.recipe.teacher) == ("adder-lenet", "conv-lenet")
        state = checkpoint.load(teacher.path).model.state_dict()
        for name, array in saved.teacher.state_dict().items():
            np.testing.assert_array_equal(array, state[name])
        assert pupil.history.train_loss != single.history.train_loss
    before = stamps(tmp_path)
    assert compare([*("conv-lenet", "adder-lenet"), taught], RECIPE, *few, **options) == runs
    assert stamps(tmp_path) == before
    assert comparison.measure(runs, few[1])[-1].title == "adder-lenet, taught by conv-lenet"
    for names in ([taught], [taught, "conv-lenet"]):
        with pytest.raises(ValueError, match="the teacher of adder-lenet@conv-lenet must come"):
            compare(names, RECIPE, *few, out=tmp_path / "other", progress=False)


def test_another_comparison_in_the_folder_is_refused(few, tmp_path):
    options = {"out": tmp_path, "progress": False}
    with pytest.raises(ValueError, match="no model named 'conv-alexnet'"):
        compare(["conv-lenet", "conv-alexnet"], RECIPE, *few, **options)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'gpu'"):
        compare(["conv-lenet"], RECIPE, *few, **options, device="gpu")
    assert list(tmp_path.iterdir()) == []  # nothing was trained
    compare(["conv-lenet"], RECIPE, *few, **options)
    with pytest.raises(ValueError, match="belongs to another run: it differs in epochs, rate"):
        compare(["conv-lenet"], replace(RECIPE, epochs=2, rate=0.05), *few, **options)
    train, test = few
    other = replace(train, labels=(train.labels + 1) % 10), test
    with pytest.raises(ValueError, match="belongs to another run: it differs in data"):
        compare(["conv-lenet"], RECIPE, *other, **options)
    (run,) = compare(["conv-lenet"], RECIPE, *few, **options)
    Training.resume(run.path, *few, path=run.path, epochs=2).run(progress=False)
    with pytest.raises(ValueError, match=r"is not of this comparison: epochs 2 instead of 1"):
        compare(["conv-lenet"], RECIPE, *few, **options)
    (tmp_path / "comparison.json").write_text("no JSON")
    with pytest.raises(ValueError, match=r"is not a comparison of mulfree compare, or is damaged"):
        compare(["conv-lenet"], RECIPE, *few, **options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv-lenet", "adder-lenet@"], "the teacher of adder-lenet@ must come before it, and it"),
        (["a@conv-lenet"], "^no model named 'a'; the nearest"),
        (["adder-lenet@adder-lenet"], "must come before it, and it is first"),
        (["conv-lenet", "conv-lenet"], "conv-lenet is there twice; seeds= trains"),
        (["conv-lenet", ""], "^no model named ''"),
        (["conv-lenet", PRUNED], "epochs must be at least 3, got 1: winograd-relu-vgg-nagadomi-8"),
    ],
)
def test_names_are_checked_before_anything_is_trained(few, tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        compare(names, RECIPE, *few, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", [2, 17, 22])
def test_a_comparison_that_stopped_ends_as_one_that_did_not(few, tmp_path, monkeypatch, moment):
    """In the first network, and before and after a pruning of the second."""
    names, recipe = ["conv-lenet", PRUNED], THREE
    step, left = Training._train_step, iter(range(moment))

    def stopped(self, *batch):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *batch)

    monkeypatch.setattr(Training, "_train_step", stopped)
    with pytest.raises(Interrupted):
        compare(names, recipe, *few, out=tmp_path / "a", progress=False)
    monkeypatch.undo()
    ours, theirs = (
        compare(names, recipe, *few, out=tmp_path / name, progress=False) for name in "ab"
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.history.test_accuracy == other.history.test_accuracy
        weights = checkpoint.load(one.path).weights, checkpoint.load(other.path).weights
        for name, array in weights[0].items():
            np.testing.assert_array_equal(array, weights[1][name])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    names = f"conv-lenet,adder-lenet,{PRUNED}"
    options = ["--epochs", "3", "--batch-size", "256", "--out", str(out)]
    assert cli.main(["compare", "--models", names, *options]) == 0
    return out


class TestCommand:
    def test_it_writes_a_table(self, out):
        with (out / "comparison.csv").open(newline="") as file:
            conv, adder, winograd = csv.DictReader(file)
        assert conv["model"] == "conv-lenet" and int(conv["multiplications"]) == 206_462
        assert float(conv["joules"]) > 2 * float(adder["joules"]) > 0
        assert int(winograd["epochs"]) == 3 and float(winograd["seconds"]) > 0
        text = (out / "comparison.md").read_text()
        assert "| conv-lenet " in text and "1442 training and 355 test images. 3 epochs in" in text

    def test_its_page_is_one_file(self, out):
        page = (out / "comparison.html").read_text()
        assert len(re.findall(r'src="data:image/png;base64,', page)) == 5
        assert page.count("<tr>") == 4
        assert not re.search(r'(src|href)="(?!data:)', page)

    def test_it_draws_pictures(self, out):
        names = sorted(path.stem for path in out.glob("*.png"))
        assert names == ["curves", "energy", "features", "filters", "weights"]

    def test_it_goes_on(self, out, capsys):
        before = stamps(out)
        arguments = ["--epochs", "3", "--batch-size", "256", "--out", str(out)]
        assert cli.main(["compare", "--models", "conv-lenet", *arguments]) == 0
        assert stamps(out) == before
        printed = capsys.readouterr().out
        assert "| conv-lenet |" in printed and "comparison.html" in printed
        assert cli.main(["compare", "--epochs", "4", "--out", str(out)]) == 1
        assert "another run: it differs in epochs, batch size" in capsys.readouterr().err
        assert cli.main(["train", "--out", str(out)]) == 1
        assert "holds a comparison; resume it with mulfree compare" in capsys.readouterr().err

    def test_ctrl_c_says_how_to_go_on(self, tmp_path, monkeypatch, capsys):
        def interrupted(*arguments, **options):
            raise Interrupted

        monkeypatch.setattr(Training, "run", interrupted)
        assert cli.main(["compare", "--out", str(tmp_path / "out")]) == 130
        assert "run the same command to resume" in capsys.readouterr().out


def test_the_forms_of_resnet20_are_there():
    for name in models.RESNET20.values():
        model = models.build(name, channels=1, size=8, classes=3)
        assert sum(p.size for p in model.parameters()) > 90_000


@pytest.mark.parametrize("kind", ["conv", "adder"])
def test_the_features_in_a_plane_have_both_signs(kind, few):
    model = models.build(f"{kind}-lenet-plane", size=8)
    features = []
    with nn.observed(lambda module, y, _: module is model.bn4 and features.append(y.data)):
        model(Tensor(few[0].images.astype(np.float32)))
    (found,) = features
    assert found.shape == (200, 2, 1, 1)
    assert (found.min(axis=(0, 2, 3)) < 0).all() and (found.max(axis=(0, 2, 3)) > 0).all()


def test_names_are_text_and_no_page(few, tmp_path):
    """Of data sets and networks."""
    run = Run("a<b>$x_1$", 0, tmp_path / "c.npz", History([1.0], [0.1], [0.2], [0.2], [1.0]))
    recipe = replace(RECIPE, model="conv-lenet")
    Training(recipe, *few, path=run.path).run(progress=False)
    plane = compare([*comparison.PLANE], RECIPE, *few, out=tmp_path / "plane", progress=False)
    test = replace(few[1], name="<i>$y$", classes=tuple(f"<{i}>$" for i in range(10)))
    (row,) = comparison.write(tmp_path, [run], plane, test, ["a & b"])
    assert row.title == "a<b>$x_1$"
    page = (tmp_path / "comparison.html").read_text()
    assert "a&lt;b&gt;$x_1$" in page and "&lt;i&gt;$y$" in page and "a &amp; b" in page
    assert "<i>" not in page and "<b>" not in page


@pytest.mark.parametrize("errors", [[0.5, 0.0], [0.0, 0.0], [1.0, 1.0], [0.1, 0.1]])
def test_curves_without_an_error_are_drawn(errors, tmp_path):
    numbers = [1 - error for error in errors]
    history = History([0.0, 0.0], numbers, numbers, numbers, [1.0, 1.0])
    runs = [Run("a", seed, tmp_path, history) for seed in range(2)]
    figures.learning_curves(tmp_path / "curves.png", {"a": runs, "b": runs[:1]}, "title")
    points = {"a": (1e-6, numbers), "b": (1e-6, numbers[:1]), "c": (0.0, [0.5])}
    figures.accuracy_over_energy(tmp_path / "energy.png", points, "title")
    assert len(list(tmp_path.glob("*.png"))) == 2


class TestFits:
    @pytest.mark.parametrize(("draw", "name"), [("laplace", "Laplace"), ("normal", "Gaussian")])
    def test_the_better_one_is_the_true_one(self, draw, name):
        weights = getattr(np.random.default_rng(0), draw)(0.3, 2.0, 20_000)
        fit = figures.Fit.of(weights)
        assert fit.verdict.startswith(f"{name} fits better\nby 0.0")

    def test_they_are_of_greatest_likelihood(self):
        weights = np.random.default_rng(1).normal(0.3, 2.0, 301)
        fit = figures.Fit.of(weights)
        best = [np.log(d).mean() for d in fit.densities(weights)]
        assert best == pytest.approx([fit.gaussian, fit.laplace])
        for field in ("mean", "deviation", "median", "scale"):
            for factor in (0.97, 1.03):
                worse = replace(fit, **{field: factor * getattr(fit, field)})
                assert [np.log(d).mean() for d in worse.densities(weights)] != best
                assert all(
                    np.log(d).mean() <= b + 1e-12
                    for d, b in zip(worse.densities(weights), best, strict=True)
                )

    def test_densities_sum_to_one(self):
        fit = figures.Fit.of(np.random.default_rng(2).laplace(-1, 0.5, 100))
        x = np.linspace(-20, 20, 100_001)
        for density in fit.densities(x):
            assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-4)


def test_several_seeds_have_a_mean_and_a_deviation(few, tmp_path):
    runs = compare(["conv-lenet"], RECIPE, *few, out=tmp_path, seeds=2, progress=False)
    (row,) = comparison.measure(runs, few[1])
    accuracies = [run.history.test_accuracy[-1] for run in runs]
    assert row.accuracy == pytest.approx(np.mean(accuracies))
    assert row.deviation == pytest.approx(np.std(accuracies, ddof=1)) and row.seeds == 2
    assert f"{row.accuracy:.2%} ± {100 * row.deviation:.2f} |" in comparison.table([row])
    assert "±" not in comparison.table([replace(row, seeds=1)])


def test_the_record_holds_what_runs_have_in_common(few, tmp_path):
    compare(["conv-lenet"], RECIPE, *few, out=tmp_path, progress=False)
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["epochs"] == 1 and len(record["data"]) == 64
    assert not {"model", "seed"} & record.keys()
