"""The benchmarks: their arithmetic, their checks, and that every command runs. No times."""

import json
import platform
import re
import subprocess
import sys
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
import pytest

from mulfree_cupy import formulas as spec

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mulfree_cupy as mf  # noqa: E402
from benchmarks import (  # noqa: E402
    adder,
    binary,
    errors,
    goals,
    inference,
    layers,
    peers,
    reference,
    report,
    shift,
    timing,
    winograd,
)
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    cases,
    devices,
    process,
    rates,
    run,
)
from benchmarks.gpu import reference as gpu_reference  # noqa: E402
from benchmarks.gpu import shift as gpu_shift  # noqa: E402
from benchmarks.gpu import tables as gpu_tables  # noqa: E402
from benchmarks.gpu import winograd as gpu_winograd  # noqa: E402
from mulfree_cupy import data, launch  # noqa: E402
from mulfree_cupy.inference import Predictor  # noqa: E402
from mulfree_cupy.report import pruning  # noqa: E402
from mulfree_cupy.report.comparison import Row  # noqa: E402
from mulfree_cupy.report.output import write_table  # noqa: E402
from mulfree_cupy.train import Recipe, Training  # noqa: E402

QUICK = layers.QUICK


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def assert_publishable(file):
    """No host name and no folder of this machine in what gets committed."""
    text = file.read_text(encoding="utf-8")
    host = platform.node()
    assert str(ROOT) not in text and str(Path.home()) not in text
    assert not host or f'"{host}"' not in text


class TestLayers:
    def test_the_list_is_the_published_one(self):
        assert [a.name for a in layers.LAYERS[:3]] == [
            "N128 16->16@32",
            "N128 32->32@16",
            "N128 64->64@8",
        ]
        assert len({a.name for a in layers.LAYERS}) == 10

    @pytest.mark.parametrize("layer", layers.LAYERS + QUICK, ids=lambda a: a.name)
    def test_shapes_agree_with_the_package(self, layer):
        x, w = np.empty((0, *layer.x_shape[1:])), np.empty(layer.w_shape)
        assert mf.conv(x, w, **layer.options).shape[1:] == layer.out_shape[1:]
        assert layer.terms == np.prod(layer.out_shape) * layer.channels * layer.kernel**2

    def test_select(self):
        assert layers.select(None) == layers.LAYERS
        assert [a.name for a in layers.select(["s2"])] == [
            a.name for a in layers.LAYERS if a.stride == 2
        ]
        with pytest.raises(ValueError, match="no layer matches"):
            layers.select(["N7"])


class TestTiming:
    def test_rounds_are_interleaved(self):
        order = []
        cases = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
        seconds = timing.interleaved(cases, 3, measure=lambda case: case())
        assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
        assert order == list("ababab")

    def test_what_others_disturbed_is_measured_again(self, monkeypatch):
        others = iter([0, 9, 10, 10, 20, 29])  # before and after each case
        monkeypatch.setattr(timing, "others_seconds", lambda: next(others))
        quiet, measured = timing.Quiet(patience=0.1), iter([1.0, 2.0, 3.0])
        assert quiet(lambda: next(measured)) == 2
        assert quiet(lambda: next(measured)) == 3  # patience is spent
        assert quiet.disturbed == 1

    def test_ratio_is_taken_within_rounds(self):
        seconds = {"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
        assert timing.ratio(seconds, "a", "b") == 2
        assert timing.ratio(seconds, "a", "absent") is None

    def test_call_seconds_runs_once_untimed(self):
        calls = []
        assert timing.call_seconds(lambda: calls.append(1), 0) > 0
        assert len(calls) == 2

    def test_table_and_cells(self):
        lines = timing.table(["a", "bb"], [["x", "1"], ["long", timing.cell(None)]]).splitlines()
        assert lines[0] == "| a    | bb |"
        assert lines[1] == "| ---- | -: |"
        assert lines[3] == "| long |  - |"
        assert timing.cell(0.567, ".0%") == "57%"

    def test_rounded(self):
        assert timing.rounded({"a": [1.234567891, 2], "b": "c"}) == {"a": [1.2346, 2], "b": "c"}

    def test_machine_record(self):
        record = timing.machine("numpy", "no-such-package")
        assert record["versions"]["numpy"] == np.__version__
        assert "no-such-package" not in record["versions"]
        assert timing.without_paths(f"{ROOT}/cuda/x.cu: {Path.home()}") == "./cuda/x.cu: ~"


class TestReference:
    @pytest.mark.parametrize("layer", QUICK, ids=lambda a: a.name)
    def test_agrees_with_the_spec(self, layer):
        x, w, grad = layer.floats()
        np.testing.assert_allclose(
            reference.adder(layer, x, w),
            reference.rows(spec.adder_conv(x, w, **layer.options)),
        )
        np.testing.assert_allclose(
            reference.conv(layer, x, w),
            reference.rows(spec.conv(x, w, **layer.options)),
            atol=1e-9,
        )
        ours = reference.adder_backward(layer, grad, x, w)
        expected = spec.adder_conv_backward(grad, x, w, **layer.options)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)

    @pytest.mark.parametrize(
        "answer, message",
        [
            (np.array([1.0, np.nan]), "off by nan"),
            (np.array([1.0, 2.1]), "off by 0.1"),
            (np.array([1.0]), "has shape"),
        ],
    )
    def test_a_wrong_answer_stops(self, answer, message):
        with pytest.raises(reference.WrongAnswer, match=message):
            reference.agree(QUICK[0], "it", answer, np.array([1.0, 2.0]), 1e-5)


class TestAdder:
    def test_a_wrong_peer_stops_the_run(self):
        layer = QUICK[0]
        x, w, _ = layer.floats()
        negated = -spec.adder_conv(x, w, **layer.options)
        wrong = peers.Peer("wrong", lambda: negated, layer.batch, reference.rows)
        with pytest.raises(reference.WrongAnswer, match=r"8->8@8: wrong is off"):
            adder.check_peers(layer, x, w, [wrong])

    def test_a_wrong_kernel_stops_the_run(self, monkeypatch, capsys):
        monkeypatch.setattr(adder.mf, "conv", lambda x, w, **o: spec.adder_conv(x, w, **o))
        assert main(["adder", "--quick", "--threads", "1"]) == 1
        assert "conv is off" in capsys.readouterr().err

    def test_without_the_peers(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setitem(sys.modules, "faiss", None)
        assert adder.run(QUICK, 1, tmp_path, quick=True) == 0
        printed = capsys.readouterr().out
        assert "left out, not installed: torch, faiss" in printed
        assert "times torch.cdist >= 20: not measured" in printed
        (file,) = tmp_path.glob("adder-cpu-*.json")
        record = json.loads(file.read_text(encoding="utf-8"))
        assert [row["name"] for row in record["layers"]] == [a.name for a in QUICK]
        assert len(record["layers"][0]["seconds"]["scipy cdist"]) == record["rounds"]
        assert file.with_suffix(".md").exists()
        assert_publishable(file)

    def test_with_the_peers(self, tmp_path):
        pytest.importorskip("torch")
        done = command("adder", "--quick", "--threads", 1, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob("adder-cpu-*.json")
        (first, _) = json.loads(file.read_text(encoding="utf-8"))["layers"]
        assert {"published", "torch.cdist", "conv2d", "conv2d int8"} <= first["seconds"].keys()
        assert file.with_suffix(".png").exists()
        assert_publishable(file)

    @pytest.mark.parametrize(
        "disturbed, ends", [(0, "commit abc"), (10, "of 100 measurements"), (11, "be quoted")]
    )
    def test_a_disturbed_run_says_so(self, disturbed, ends):
        machine = {"date": "2026-01-01", "cpu": "a CPU", "versions": {}, "commit": "abc"}
        counted = {"measurements": 100, "disturbed": disturbed}
        record = {"machine": machine, "threads": 2, "cpu_features": "avx2", **counted}
        assert goals.summary(record).endswith(ends)

    def test_goals(self):
        def row(name, speed, backward, peak):
            heads = {column.head: None for column in adder.GOALS}
            measured = {"speed relative to conv2d": speed, "backward / forward": backward}
            measured["of max/add peak"] = peak
            return {"name": name, "ratios": heads | measured}

        rows = [row("good", 0.3, 2, 2.0), row("bad", 0.5, 3, None), row("N1 s2", 0.9, 2.5, 0.5)]
        lines = goals.verdicts(rows, adder.GOALS).splitlines()
        assert "- of max/add peak >= 80%: met on all 1 layers" in lines  # of stride 1, measured
        assert "- backward / forward <= 2.50: on 2 of 3 layers, not on bad" in lines
        record = {"layers": rows, "cpu_features": "avx2"}
        speed, *_ = adder.verdicts(record).splitlines()
        assert (
            speed
            == "- speed relative to conv2d, geometric mean of all layers >= 0.54: not met, 0.51"
        )
        rows[0]["ratios"]["speed relative to conv2d"] = None
        assert "layers: not measured" in adder.verdicts(record)

    def test_means_are_of_the_layers_that_the_goal_names(self):
        ratios = {"N1 1->1@8": 4.0, "N1 1->1@8 s2": 1.0, "N1 1->1@8 1x1 s2": 9.0}
        rows = [{"name": name, "ratios": {adder.UINT8: r}} for name, r in ratios.items()]
        mean = next(m for m in adder.MEANS if m.head == adder.UINT8)
        assert mean.verdict(rows, "avx512").endswith("the 3x3 layers >= 2.20: not met, 2.00")
        assert mean.verdict(rows, "baseline").endswith("the 3x3 layers: 2.00")

    def test_one_instruction_set_for_all(self, tmp_path):
        features = launch.cpu_kernels().available_features()[0]
        done = command(
            "adder", "--quick", "--threads", 1, "--features", features, "--out", tmp_path
        )
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob(f"adder-cpu-{features}-*.json")
        assert json.loads(file.read_text(encoding="utf-8"))["cpu_features"] == features
        done = command("adder", "--quick", "--features", "mmx")
        assert done.returncode == 1 and "MULFREE_CPU_FEATURES" in done.stderr


class TestBinary:
    def test_quick_run(self, tmp_path):
        done = command("binary", "--quick", "--threads", 1, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob("binary-cpu-*.json")
        record = json.loads(file.read_text(encoding="utf-8"))
        timed = {"binary_conv", "packed", "conv", "uint8", "1 bit", "2 bits", "3 bits", "4 bits"}
        assert timed <= record["layers"][0]["seconds"].keys()
        assert "2 bits relative to uint8 >= 2.00" in binary.document(record)
        assert_publishable(file)
        assert_publishable(file.with_suffix(".md"))

    def test_goals_are_for_layers_of_many_channels(self):
        assert [binary.is_wide(f"N8 {c}->64@8") for c in (16, 32, 64, 128)] == [False] * 2 + [
            True
        ] * 2

    @pytest.mark.parametrize("name", ["binary_conv", "3 bits"])
    def test_a_wrong_answer_is_found(self, name):
        layer = QUICK[0]
        x, w, _ = layer.floats()
        calls = {
            n: lambda: mf.binary_conv(x, w, **layer.options) for n in ("binary_conv", "packed")
        }
        calls |= {binary.name(bits): binary.low_bit(layer, bits) for bits in binary.BITS}
        binary.check(layer, x, w, calls)
        right = calls[name]
        calls[name] = lambda: right() + np.eye(layer.out_size, dtype="i4")
        with pytest.raises(reference.WrongAnswer, match=f"{name} is off"):
            binary.check(layer, x, w, calls)


class TestWinograd:
    def test_quick_run(self, tmp_path):
        pytest.importorskip("scipy")
        done = command("winograd", "--quick", "--threads", 1, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob("winograd-cpu-*.json")
        (layer,) = json.loads(file.read_text(encoding="utf-8"))["layers"]
        timed = {"dense", "sparse 0.05", "blocks 1", "scipy 0.4", "default 0.4", "default 0.1"}
        assert timed <= layer["seconds"].keys()
        assert_publishable(file)
        assert_publishable(file.with_suffix(".md"))

    def test_break_even_is_found_between_densities(self):
        def even(*ratios):
            return winograd.break_even(dict(zip(winograd.DENSITIES, ratios, strict=True)))

        assert even(3, 1.4, 0.8, 0.7, 0.5, 0.3, 0.2) == "0.47"
        assert even(*[0.9] * 7) == "1.00"
        assert even(*[1.1] * 7) == "< 0.05"
        assert even(*[None] * 7) == "-"

    def test_break_even_of_gpu_kernels(self):
        def row(kernel, density, median, operation="winograd_conv"):
            names = {"layer": "A", "operation": operation, "kernel": kernel, "density": density}
            return {**names, "seconds": {"median": median}}

        measured = zip(gpu_winograd.DENSITIES, (3, 1.5, 0.5, 0.3), strict=True)
        sparse = [row("2_sparse", density, median) for density, median in measured]
        conv = row("default", 1, 2.0, "conv beside winograd_conv")
        table = gpu_winograd.even_table([*sparse, row("1_dense", 1, 1.0), conv])
        cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
        assert cells == ["A", "0.30", "0.60", "-", "-", "-", "-"]

    def test_goals(self):
        rows = [
            {"name": name, "channels": channels, "seconds": {"conv2d": [2.2], "default 0.4": [1.0]}}
            for name, channels in (("narrow", 64), ("wide", 128))
        ]
        first, second, *_ = winograd.goals(rows, "avx512").splitlines()
        assert first.endswith("goal 1 to 2.5: met on 1 of 2 layers, not on wide")
        assert second.endswith("not measured")
        first, *_ = winograd.goals(rows, "avx2").splitlines()
        assert first.endswith("goal 1 to 1.9: met on 2 of 2 layers")


class TestShift:
    def test_quick_run(self, tmp_path, capsys):
        assert shift.run(layers.QUICK_SHIFT, layers.QUICK_SHIFT, 1, tmp_path, quick=True) == 0
        printed = capsys.readouterr().out
        (file,) = tmp_path.glob("shift-cpu-*.json")
        record = json.loads(file.read_text(encoding="utf-8"))
        assert shift.document(record).splitlines()[-1] in printed
        assert len(record["moves"]) == len(record["layers"]) == len(layers.QUICK_SHIFT)
        assert_publishable(file)

    def test_a_wrong_answer_is_refused(self, monkeypatch):
        monkeypatch.setattr(shift.mf, "shift_conv", lambda x, w, s: mf.conv(x, w[:, :, None, None]))
        with pytest.raises(reference.WrongAnswer, match="N2 12->8@8 1x1: shift_conv is off"):
            shift.run(layers.QUICK_SHIFT, [], 1, None, quick=True)


class TestErrors:
    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch):
        monkeypatch.setattr(errors, "EMULATED", QUICK[:1])
        monkeypatch.setattr(errors, "EMULATED_SHIFT", [])

    def test_quick_run(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        assert errors.run(2, tmp_path, quick=True) == 0
        printed = capsys.readouterr().out
        (file,) = tmp_path.glob("errors-cpu-*.json")
        record = json.loads(file.read_text(encoding="utf-8"))
        assert errors.document(record).splitlines()[2] in printed
        assert len(record["layers"]) == 4 and len(record["in_emulator"]) == 1
        found = record["layers"][0]["errors"]
        assert found["conv"].keys() == {errors.OURS, "F(2x2, 3x3)", "F(4x4, 3x3)"}
        assert found["adder_conv uint8"] == {errors.OURS: [0, 0]}
        assert 0 < found["adder_conv"][errors.OURS][0] < 1e-6
        assert found.keys() == record["in_emulator"][0]["errors"].keys()
        shifts = record["layers"][-1]["errors"]
        assert shifts["shift"] == {errors.OURS: [0, 0]} and "shift_adder_conv grad_w" in shifts
        assert_publishable(file)
        assert report.records(tmp_path, "errors") == [record]

    def test_with_torch(self):
        pytest.importorskip("torch")
        found = errors.measure(QUICK[0], shift=False)["errors"]
        beside = {operation for operation, ways in found.items() if errors.TORCH in ways}
        assert beside == {
            *("adder_conv", "adder_conv near 100", "conv", "conv grad_x", "conv grad_w"),
        }

    def test_an_error_is_set_against_its_terms_and_the_largest_answer(self):
        exact, terms = np.array([10.0, -2.0, 0.0]), np.array([20.0, 4.0, 0.0])
        assert errors.error(np.array([10.0, -1.5, 0.0]), exact, terms) == [0.125, 0.05]
        assert errors.error(np.array([10.0, -2.0, 0.5]), exact, terms) == [0.5, 0.05]

    @pytest.mark.parametrize("layer, shift", [(QUICK[0], False), (layers.QUICK_SHIFT[0], True)])
    def test_formulas_agree_with_the_spec(self, layer, shift):
        x, w, grad = layer.floats()
        if shift:
            shifts, points = mf.modulo_shifts(layer.channels), w[:, :, 0, 0]
            exact = errors.expected_of_shifts(layer, x, w, grad)
            grads = spec.shift_adder_conv_backward(grad, x, points, shifts)
            expected = {
                "shift_conv": reference.rows(spec.shift_conv(x, points, shifts)),
                "shift_conv grad_x": spec.shift_conv_backward(grad, x, points, shifts)[0],
                "shift_adder_conv": reference.rows(spec.shift_adder_conv(x, points, shifts)),
                "shift_adder_conv grad_x": grads[0],
                "shift_adder_conv grad_w": grads[1][:, :, None, None],
            }
        else:
            exact = errors.expected(layer, x, w, grad)
            grads = spec.conv_backward(grad, x, w, **layer.options)
            expected = {
                "conv": reference.rows(spec.conv(x, w, **layer.options)),
                "conv grad_x": grads[0],
                "conv grad_w": grads[1],
            }
        for operation, answer in expected.items():
            np.testing.assert_allclose(exact[operation][0], answer, rtol=1e-12, atol=1e-12)
            assert (exact[operation][1] >= np.abs(answer) - 1e-12).all()

    @pytest.mark.parametrize("wrong", [1, np.nan])
    def test_a_wrong_answer_stops_the_run(self, monkeypatch, wrong):
        conv = mf.conv
        monkeypatch.setattr(mf, "conv", lambda x, w, **options: conv(x, w, **options) + wrong)
        with pytest.raises(reference.WrongAnswer, match="N2 8->8@8: conv by mulfree_cupy is off"):
            errors.measure(QUICK[0], shift=False)


class TestEmulator:
    def test_quick_run(self, tmp_path):
        done = command("emulator", "--quick", "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob("emulator-cpu-*.json")
        record = json.loads(file.read_text(encoding="utf-8"))
        assert record["seconds"].keys() == {"unchecked", "checked", "traced"}
        assert record["calls"]["new kernel"][0] > record["calls"]["in memory"][0]
        assert_publishable(file)


class TestGpu:
    def test_stops_without_a_gpu(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(run.devices, "unavailable", lambda: "there is none")
        assert main(["gpu", "--out", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "python -m benchmarks gpu: no GPU to run on: there is none"
        assert not any(tmp_path.iterdir())

    def test_emulated_run(self, tmp_path, capsys):
        assert run.run(tmp_path, emulated=True, commit="abc") == 0
        assert capsys.readouterr().out.startswith("plan: at most 3000 s\n  alone    adder: ")
        (file,) = tmp_path.glob("gpu-emulator-abc-*.json")
        record = json.loads(file.read_text(encoding="utf-8"))
        assert not record["errors"] and not record["left_out"]
        assert record["seconds"].keys() == {"adder", "binary", "shift", "step", "winograd"}
        assert all(row.get("checked") or "refused" in row for row in record["rows"])
        checked = {(r["kernel"], r["dtype"]) for r in record["rows"] if r.get("checked")}
        assert {("2_shared_tile", "float32"), ("default", "uint8")} <= checked
        assert {("3_tensor_cores", "float32"), ("1_naive", "float32")} <= checked
        assert {("1_tiled_modulo", "float32"), ("4_fused_conv", "float16")} <= checked
        assert "nothing is timed" in file.with_suffix(".md").read_text(encoding="utf-8")
        assert_publishable(file)

    def test_a_wrong_kernel_costs_its_own_row_alone(self, monkeypatch):
        def wrong(x, w, out=None, kernel=None, **options):
            out[...] = 1
            return out

        device = devices.Emulated()
        monkeypatch.setattr(process.adder.mf, "adder_conv", wrong)
        section = list(process.lines("adder", device, 0, timed=False, quick=False, tiny=True))
        rows = [line["row"] for line in section if "row" in line]
        assert all("off by" in r["wrong"] for r in rows if r["operation"] == "adder_conv")
        assert all(r.get("checked") for r in rows if r["operation"] == "conv")

    def test_what_a_kernel_does_not_write_is_wrong(self):
        out = np.zeros(3, np.float32)
        row = {"layer": "A", "operation": "a", "kernel": "b"}
        case = cases.Case(row, lambda: out, lambda: [np.zeros(3)], 1, [out])
        assert "off by nan" in cases.measure(devices.Emulated(), case, timed=False)["wrong"]

    @pytest.mark.parametrize("stride", [1, 2])
    def test_answers_made_on_the_device(self, stride):
        layer = layers.Layer(2, 3, 4, 7, stride=stride)
        x, w, grad = layer.floats()
        for term in ("conv", "adder"):
            taps = gpu_reference.window(3, 3, 1)
            sums = gpu_reference.Sums(devices.Emulated(), term, taps, x, w, stride, layer.out_shape)
            forward = getattr(spec, "conv" if term == "conv" else "adder_conv")
            backward = getattr(spec, f"{forward.__name__}_backward")
            options = {"stride": stride, "padding": 1}
            np.testing.assert_allclose(sums.forward(), forward(x, w, **options), rtol=1e-12)
            grad_x, grad_w = backward(grad, x, w, **options)
            np.testing.assert_allclose(sums.by_x(grad), grad_x, atol=1e-12)
            np.testing.assert_allclose(sums.by_w(grad), grad_w, atol=1e-12)

    @pytest.mark.parametrize("m", [2, 4])
    def test_winograd_answers_made_on_the_device(self, m):
        x, w, grad = layers.Layer(2, 3, 4, 7).floats()
        weights = mf.WinogradWeights.from_spatial(w.astype(np.float64), m)
        np.testing.assert_allclose(
            gpu_reference.winograd(np, x, weights.dense, m), spec.conv(x, w, padding=1), atol=1e-10
        )
        grad_x, grad_u = gpu_reference.winograd(np, x, weights.dense, m, grad)
        matrices = mf.winograd_matrices(m)
        right = spec.winograd_conv_backward(grad, x, weights.dense, matrices)
        np.testing.assert_allclose(grad_x, right[0], atol=1e-10)
        np.testing.assert_allclose(grad_u, right[1], atol=1e-10)

    def write(self, monkeypatch, tmp_path, script):
        """One step whose process runs this text; the record."""
        content = {"device": {"name": "x"}, "machine": {"commit": "abc", "date": "2026-01-01"}}
        content |= {"rows": [], "errors": {}, "left_out": [], "rates": {}}
        record = run.Record(tmp_path, content)
        monkeypatch.setattr(run.Step, "command", lambda *a: [sys.executable, "-u", "-c", script])
        run._run(run.Step("adder", 5, 5), record, True, False, None)
        assert record.file.is_file() or not record.content["rows"]
        return record.content

    BEGIN = "import json, sys, os; print(json.dumps({'begin': {'layer': 'A', 'kernel': 'b'}}));"

    def test_a_process_that_dies_in_a_case_is_followed_by_another(self, monkeypatch, tmp_path):
        script = self.BEGIN + "os.abort() if '--first=0' in sys.argv else print('{\"row\": {}}')"
        content = self.write(monkeypatch, tmp_path, script)
        assert [row.get("wrong", "right") for row in content["rows"]] == [
            "exit status -6: []",
            "right",
        ]

    def test_a_section_that_fails_is_recorded(self, monkeypatch, tmp_path):
        content = self.write(monkeypatch, tmp_path, f"raise RuntimeError('no {ROOT}/x.cu')")
        assert content["errors"]["adder"][-1] == "RuntimeError: no ./x.cu"

    def test_out_of_time(self, monkeypatch, tmp_path):
        script = self.BEGIN + "print('{\"row\": {}}'); import time; time.sleep(60)"
        content = self.write(monkeypatch, tmp_path, script)
        assert content["left_out"] == ["adder after 1 cases"] and len(content["rows"]) == 1

    def test_the_plan_keeps_within_its_minutes(self):
        assert int(re.search(r"at most (\d+) s", run.plan(run.STEPS, quick=True))[1]) <= 180
        assert int(re.search(r"at most (\d+) s", run.plan(run.STEPS, quick=False))[1]) <= 420

    def test_shift_is_set_against_a_copy_and_against_its_1x1(self):
        def row(operation, kernel, milliseconds, most_blocks=None, dtype="float32"):
            seconds = {"median": 1e-3 * milliseconds}
            named = dict(operation=operation, kernel=kernel, dtype=dtype, most_blocks=most_blocks)
            return dict(named, layer="a", bytes=10**9, seconds=seconds)

        movers = [row("shift", kernel, 4, most, dtype) for kernel, most, dtype in gpu_shift.MOVERS]
        copies = [row("shift", "copy", 1, None, d) for d in {m[2] for m in gpu_shift.MOVERS}]
        rows = [*copies, *movers, row("shift_conv", "4_fused_conv", 3)]
        rows.append(row("shift_conv", "3_table", 6))
        assert " 1.00 |" in gpu_shift.moves_table(rows)
        assert gpu_shift.moves_table(rows).count(" 25% |") == len(movers)
        assert "0.50 |" in gpu_shift.convolutions_table(rows)

    @pytest.mark.parametrize("rate", rates.RATES, ids=lambda rate: rate.entry)
    def test_rates_count_what_their_source_does(self, rate):
        code = (rates.SOURCES / rate.file).read_text(encoding="utf-8")
        assert f" {rate.entry}(" in code
        chains, steps = (
            int(re.search(rf"#define {n} (\d+)", code)[1]) for n in ("CHAINS", "STEPS")
        )
        # Four differences an instruction; 32768 bits a product of the 32 threads of a warp.
        each = {np.float32: 1, np.float16: 2, np.uint32: 4, np.int32: 32768 // 32}[rate.dtype]
        if rate.entry == "popc_of_xor":
            each = 32  # bits
        assert rate.results == chains * steps * each

    @pytest.mark.parametrize(
        "exit_status, result, good",
        [(0, "5 passed", True), (0, "5 skipped", False), (1, "1 failed, 4 passed", False)],
    )
    def test_what_counts_as_success(self, exit_status, result, good):
        tests = {"exit_status": exit_status, "result": result}
        record = {"emulated": False, "tests": tests, "rows": [], "errors": {}}
        assert run.succeeded(record) == good
        assert not run.succeeded({**record, "rows": [{"wrong": "off by 1"}]})

    def test_terms_per_clock(self):
        record = {"device": {"multiprocessors": 132}}
        row = {"terms": 132 * 64 * 1000, "seconds": {"median": 1e-6}, "clock_hz": 1e9}
        assert gpu_tables.terms_per_clock(record, row) == pytest.approx(64)
        assert gpu_tables.terms_per_clock(record, {**row, "seconds": None}) is None


class TestReport:
    def test_fill(self):
        text = "a\n<!-- benchmark:adder -->\nold\n<!-- /benchmark:adder -->\nb <!-- benchmark:x -->"
        new = report.fill(text, {"adder": "new"})
        assert new == text.replace("old", "new")
        assert report.fill(new, {"adder": "new"}) == new
        assert report.fill(text, {}) == text

    def test_newest_is_of_a_gpu_only(self, tmp_path):
        def write(name, date, **more):
            machine = {"date": date, "time": "00:00 UTC"}
            record = {"benchmark": "gpu", "machine": machine, **more}
            (tmp_path / name).write_text(json.dumps(record), encoding="utf-8")

        write("a.json", "2026-01-02")
        write("b.json", "2026-01-01")
        write("c.json", "2026-01-03", emulated=True)
        assert report.newest(tmp_path, "gpu")["machine"]["date"] == "2026-01-02"
        assert report.newest(tmp_path, "adder") is None

    def test_status_of_every_kernel(self):
        lines = report.status_table(None).splitlines()[2:]
        assert len(lines) == len(mf.kernels())
        assert all(report.NOT_RUN in line for line in lines)

        rows = [
            {"operation": "adder_conv", "kernel": "1_naive", "seconds": {}},
            {"operation": "adder_conv", "kernel": "2_shared_tile", "wrong": "!"},
            {"operation": "adder_conv", "kernel": "3_register_tile", "refused": "?"},
            {"operation": "im2col", "kernel": "default"},
        ]
        machine = {"date": "2026-01-01", "commit": "abc"}
        record = {"machine": machine, "device": {"name": "H200"}, "rows": rows}
        status = dict(
            [c.strip() for c in line.strip("| ").split("|")]
            for line in report.status_table(record).splitlines()[2:]
        )
        assert status["adder/1_naive.cu"] == "right on H200, 2026-01-01, commit abc"
        assert status["convolution/im2col.cu"] == "right on H200, 2026-01-01, commit abc"
        assert status["adder/2_shared_tile.cu"] == "WRONG on a GPU"
        assert status["adder/3_register_tile.cu"] == report.NOT_RUN
        record |= {"tests": {"exit_status": 0}, "kernels": ["sgd/update.cu"]}
        tested, later = (
            next(line for line in report.status_table(record).splitlines() if name in line)
            for name in ("sgd/update.cu", "sgd/square_sums.cu")
        )
        assert "tests passed on H200" in tested and report.NOT_RUN in later


def test_help_names_every_command():
    done = command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("adder", "emulator", "gpu", "report"))


def test_predictions_are_checked_timed_and_written(tmp_path, capsys):
    assert inference.run(1, quick=True, out=tmp_path) == 0
    text = capsys.readouterr().out
    for case in ("adder-resnet20, float32, batch 2", "adder-resnet20, 8 bits, batch 2"):
        assert re.search(rf"\| {case} +\| +\d+\.\d\d \|", text)
    assert "batch 128: time of its convolutions alone / time of mulfree_cupy >= 0.9: not" in text
    (record,) = tmp_path.glob("inference-cpu-*.json")
    assert len(json.loads(record.read_text())["cases"]) == 2


def test_a_wrong_plan_is_noticed(monkeypatch):
    monkeypatch.setattr(Predictor, "__call__", lambda self, images: np.zeros((len(images), 10)))
    with pytest.raises(reference.WrongAnswer, match="the plan's answers are not its layers'"):
        inference.run(1, quick=True, out=None)


def test_a_training_step_is_timed_and_documented(tmp_path, capsys):
    from benchmarks import training

    assert training.run(threads=2, out=tmp_path, quick=True) == 0
    printed = capsys.readouterr().out
    assert "mulfree_cupy AdderNet" in printed and "Convolutions take" in printed
    (file,) = tmp_path.glob("training-cpu-*.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["peak_mib"].keys() == record["seconds"].keys()


def test_curves_of_several_seeds_are_written_down_together(tmp_path, capsys):
    digits = data.load("digits")
    paths = [tmp_path / f"{seed}.npz" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        recipe = Recipe("adder-lenet", epochs=1, batch_size=400, seed=seed)
        Training(recipe, *digits, path=path).run(progress=False)
    paths = list(map(str, paths))
    options = ["--name", "digits", "--title", "Digits", "--out", str(tmp_path / "out")]
    assert main(["curves", *paths, *options]) == 0
    assert "| adder-lenet, seed 1 |      1 |" in capsys.readouterr().out
    (file,) = (tmp_path / "out").glob("digits-curves-*.json")
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert list(runs) == ["adder-lenet, seed 0", "adder-lenet, seed 1"]
    assert main(["curves", paths[1], *options]) == 0
    assert "| adder-lenet |" in capsys.readouterr().out


def test_pruning_curves_are_written_down_together(tmp_path, capsys):
    rows = [pruning.Row(1, 1, 0.9, 2.25, 3, 2, 2.5), pruning.Row(0.4, 0.4, 0.875, 5, 9, 4, 7)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pruning.write(tmp_path / name / "pruning.png", {f"vgg-{name}": rows})
        (tmp_path / name / "plan.json").write_text('{"epochs": 1}')
    folders = [str(tmp_path / name) for name in ("a", "b")]
    options = ["--name", "digits", "--title", "Digits", "--out", str(tmp_path / "out")]
    assert main(["pruning", *folders, *options]) == 0
    assert "| vgg-b   |        40.0% |        87.50% |" in capsys.readouterr().out
    (file,) = (tmp_path / "out").glob("digits-pruning-*.json")
    record = json.loads(file.read_text())
    assert record["runs"]["vgg-a"][1]["network_dynamic"] == 7
    assert record["plans"] == {"vgg-a": {"epochs": 1}, "vgg-b": {"epochs": 1}}
    assert file.with_suffix(".png").exists() and len(pruning.read(file.with_suffix(".csv"))) == 2
    assert main(["pruning", str(tmp_path), *options]) == 1
    assert "pruning.csv" in capsys.readouterr().err


def test_a_comparison_is_written_down(tmp_path, capsys):
    row = Row("CNN", "conv-x", 3, 2, 0.875, 0.01, 10, 20, 0, 0, 2e-6, 1e-6, 5, 20, 40, 1e-3)
    folder, out = tmp_path / "a", tmp_path / "out"
    head = [field.name for field in fields(Row)]
    write_table(folder / "comparison.csv", head, [astuple(row), astuple(row)])
    recipe = '{"epochs": 3, "batch_size": 64, "rate": 0.1}'
    (folder / "comparison.json").write_text(recipe)
    for name in ("energy", "curves", "weights", "filters", "features"):
        (folder / f"{name}.png").write_bytes(b"\x89PNG")
    options = ["--name", "digits", "--title", "Digits", "--out", str(out)]
    assert main(["comparison", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "Digits. 3 epochs, batch 64, rate 0.1, mean ± deviation of 2 runs." in printed
    assert "| CNN (conv-x) | 87.50% ± 1.00 |" in printed
    (file,) = out.glob("digits-comparison-*.json")
    assert [Row(**found) for found in json.loads(file.read_text())["rows"]] == [row, row]
    assert len(list(out.glob("*.png"))) == 5 and file.with_suffix(".md").exists()


def test_recipes_are_tried_and_kept(tmp_path, capsys):
    names = [
        "batch 64",
        "rate of each step, warm-up of an epoch",
        "labels smoothed by 0.1",
        "weights averaged",
    ]
    words = ["recipe", "--data", "digits", "--model", "conv-lenet", "--epochs", "2"]
    words += ["--folder", str(tmp_path), "--name", "digits", "--title", "Digits"]
    assert main([*words, "--only", *names, "--out", str(tmp_path / "out")]) == 0
    (file,) = (tmp_path / "out").glob("digits-recipe-*.json")
    runs = json.loads(file.read_text())["runs"]
    losses = {run["history"]["train_loss"][0] for run in runs.values()}
    assert list(runs) == names and len(losses) == 3  # an average changes no training
    assert "| batch 64 " in capsys.readouterr().out
    kept = [(tmp_path / f"{name}.json").stat().st_mtime_ns for name in names]
    assert main([*words, "--only", *names]) == 0
    assert kept == [(tmp_path / f"{name}.json").stat().st_mtime_ns for name in names]
    with pytest.raises(SystemExit, match="no run 'nothing'; there are paper, batch 128"):
        main([*words, "--only", "nothing"])
