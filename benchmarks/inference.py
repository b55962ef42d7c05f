"""Inference, compared with PyTorch and ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, reference, timing
from mulfree_cupy import inference, launch, models, nn
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.inference.quantisation import quantize
from mulfree_cupy.nn.description import network_of

OURS, ALONE = "mulfree_cupy", "its convolutions alone"
TORCH, ONNX, ONNX8 = "PyTorch", "ONNX Runtime", "ONNX Runtime int8"


@dataclass(frozen=True)
class Case:
    """A network, the ordinary twin that others compute, and how many images at once."""

    model: str
    twin: str
    batch: int
    bits: int | None = None
    density: float | None = None

    @property
    def name(self) -> str:
        how = f"{self.bits} bits" if self.bits else "float32"
        how = how if self.density is None else f"density {self.density:g}"
        return f"{self.model}, {how}, batch {self.batch}"


@dataclass(frozen=True)
class Goal:
    """A ratio of times, ``over / under``, in one case."""

    case: str
    over: str
    under: str
    value: float
    at_most: bool = False

    def verdict(self, rows: list[dict]) -> str:
        sign = "<=" if self.at_most else ">="
        what = f"time of {self.over} / time of {self.under} {sign} {self.value:g}"
        found = [row for row in rows if row["name"] == self.case]
        ratio = timing.ratio(found[0]["seconds"], self.over, self.under) if found else None
        if ratio is None:
            return f"- {self.case}: {what}: not measured"
        met = ratio <= self.value if self.at_most else ratio >= self.value
        return f"- {self.case}: {what}: {'met' if met else 'not met'}, {ratio:.2f}"


RESNET, VGG = "adder-resnet20", "winograd-relu-vgg-nagadomi"
CASES = [
    Case(RESNET, "conv-resnet20", 128),
    Case(RESNET, "conv-resnet20", 1),
    Case(RESNET, "conv-resnet20", 128, bits=8),
    Case(RESNET, "conv-resnet20", 1, bits=8),
    Case("conv-resnet20", "conv-resnet20", 128),
    Case("conv-resnet20", "conv-resnet20", 1),
    Case(VGG, "spatial-vgg-nagadomi", 64, density=0.4),
    Case(VGG, "spatial-vgg-nagadomi", 64, density=0.1),
]
GOALS = [
    Goal(CASES[0].name, ALONE, OURS, 0.9),
    Goal(CASES[1].name, OURS, TORCH, 1.3, at_most=True),
    Goal(CASES[1].name, OURS, ONNX, 1.5, at_most=True),
    Goal(CASES[2].name, TORCH, OURS, 1.3),
    Goal(CASES[2].name, ONNX, OURS, 1.3),
    Goal(CASES[6].name, TORCH, OURS, 1.5),
    Goal(CASES[7].name, TORCH, OURS, 2.5),
]
LOADING = 0.5  # seconds from the import to the first prediction
NOTES = """\
From raw images to logits. The other libraries compute the twin of ordinary convolutions, in float32
unless it says int8 (ONNX Runtime's static quantisation, QDQ, per channel); PyTorch layer by layer
in evaluation mode, contiguous or channels_last, whichever is faster. Its convolutions alone: the
same kernels on weights packed before, a call a layer on the whole batch, with no normalisation, sum
or pooling. Each ratio is taken within a round; the median over the rounds is shown."""

STEADY = {"rounds": 11, "least": 0.1}
QUICK = {"rounds": 1, "least": 0.001}
PATIENCE = 20.0  # seconds to wait for the machine to be free, a case


def run(threads: int, quick: bool, out: Path | None) -> int:
    """Check and time every case, print the table, and write the figures to `out`."""
    settings = QUICK if quick else STEADY
    quiet = timing.Quiet(PATIENCE)
    record = {
        "benchmark": "inference",
        "machine": timing.machine("torch", "onnxruntime"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "cases": [],
    }
    cases = [Case(RESNET, "conv-resnet20", 2), Case(RESNET, "conv-resnet20", 2, bits=8)]
    for case in timing.progress(cases if quick else CASES, "case"):
        quiet.patience = 0 if quick else PATIENCE
        record["cases"].append(measure(case, threads, quiet, **settings))
        record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
    record["loading"] = loading(1 if quick else 5)
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, "inference-cpu")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure(case: Case, threads: int, quiet: timing.Quiet, rounds: int, least: float) -> dict:
    """Check, then time one case."""
    images = pixels(case.batch)
    network, twin = settled(case.model, case.density), settled(case.twin)
    if case.bits:
        calibration = pixels(64, seed=1)
        network = quantize(network, calibration, bits=case.bits).network
    predictor = inference.Predictor(network)
    expected = network(network.normalised(images))
    # A sum halfway between two integers may be rounded to either.
    tolerance = (1e-2 if case.bits else 1e-5) * np.abs(expected).max()
    if not np.allclose(predictor(images), expected, rtol=0, atol=tolerance):
        raise reference.WrongAnswer(f"{case.name}: the plan's answers are not its layers'")
    calls = {
        OURS: lambda: predictor(images),
        ALONE: convolutions_alone(predictor, case.batch),
        **others(twin, images, threads),
    }
    cases = {name: timing.case(call, least) for name, call in calls.items()}
    seconds = timing.interleaved(cases, rounds, quiet)
    layouts = [name for name in seconds if name.startswith(f"{TORCH} ")]
    timing.choose_fastest(seconds, TORCH, *layouts)
    return {"name": case.name, "seconds": seconds}


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def settled(name: str, density: float | None = None) -> inference.Network:
    """A network with random weights and calibrated normalisations."""
    model = models.build(name, size=32, channels=3, classes=10)
    for _, layer in model.modules():
        if isinstance(layer, nn.BatchNorm):
            layer.momentum = 1.0
        if density is not None and isinstance(layer, nn.WinogradConv) and layer.relu:
            layer.prune(density)
    statistics = {"mean": (125, 123, 114), "std": (63, 62, 67)}
    network = network_of(model, 3, 32, **statistics)
    with no_grad():
        model.train()(Tensor(network.normalised(pixels(64, seed=1))))
    return network_of(model, 3, 32, **statistics)


def convolutions_alone(predictor: inference.Predictor, batch: int) -> Callable[[], None]:
    """Calls of the same kernels on whole batches of arbitrary numbers."""
    calls, places = [], predictor.plan.places
    rng = np.random.default_rng(0)
    for step in predictor.plan.steps:
        weight, options = step.arrays.get("weight"), dict(step.options)
        if step.op not in ("conv", "adder_conv", "winograd_conv"):
            continue
        x = places[step.inputs[0]]
        x = rng.integers(0, 99, (batch, *x.shape)).astype(x.dtype)
        if step.op == "winograd_conv":
            points = options.pop("points")
            packed = mf.WinogradWeights.from_dense(weight, step.arrays["mask"], points=points)
        else:
            op = step.op.removesuffix("_conv")
            packed = mf.pack(weight, op, groups=options.get("groups", 1))
        function = getattr(mf, step.op)
        out = np.empty_like(function(x, packed, **options))
        calls.append(lambda f=function, x=x, w=packed, o=out, k=options: f(x, w, out=o, **k))

    def run() -> None:
        for call in calls:
            call()

    return run


def others(twin: inference.Network, images: np.ndarray, threads: int) -> dict[str, Callable]:
    """What else is installed, checked."""
    expected = inference.Predictor(twin)(images)
    calls: dict[str, Callable] = {}
    if timing.versions("torch"):
        import torch

        from benchmarks.torch_network import torch_network

        torch.set_num_threads(threads)
        for name in ("contiguous_format", "channels_last"):
            network = torch_network(twin, getattr(torch, name))
            calls[f"{TORCH} {name}"] = lambda network=network: network(images)
    if timing.versions("onnxruntime"):
        from benchmarks import onnx_network

        for name, session in {
            ONNX: onnx_network.session(twin, threads),
            ONNX8: onnx_network.quantised_session(twin, pixels(64, seed=1), threads),
        }.items():
            calls[name] = lambda session=session: session(images)
    for name, call in calls.items():
        error = np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max()
        if error > 1e-4 and name != ONNX8:
            raise reference.WrongAnswer(f"{name}: its answers are {error:.1e} from ours")
    return calls


def loading(times: int) -> list[float]:
    """Seconds from the import of the package to the first prediction, in new processes."""
    code = (
        "import time; start = time.perf_counter()\n"
        "import numpy, mulfree_cupy\n"
        "mulfree_cupy.load({!r})(numpy.zeros((1, 3, 32, 32), numpy.uint8))\n"
        "print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        inference.save_npz(path, settled(RESNET))
        command = [sys.executable, "-c", code.format(str(path))]
        runs = (subprocess.run(command, capture_output=True, text=True) for _ in range(times))
        return [float(run.stdout) for run in runs]


def document(record: dict) -> str:
    """Everything as markdown."""
    rows, columns = record["cases"], (OURS, ALONE, TORCH, ONNX, ONNX8)
    cells = []
    for row in rows:
        times = (row["seconds"].get(name) for name in columns)
        ms = (None if t is None else 1e3 * float(np.median(t)) for t in times)
        cells.append([row["name"], *(timing.cell(t, ".2f") for t in ms)])
    table = timing.table(["network", *(f"{name}, ms" for name in columns)], cells)
    seconds = float(np.median(record["loading"]))
    verdicts = [goal.verdict(rows) for goal in GOALS]
    verdicts.append(
        f"- from `import mulfree_cupy` to the first prediction of {RESNET}, NumPy's import "
        f"included, < {LOADING} s: {'met' if seconds < LOADING else 'not met'}, {seconds:.2f} s"
    )
    return "\n\n".join([goals.summary(record), table, NOTES, "Goals:\n\n" + "\n".join(verdicts)])
