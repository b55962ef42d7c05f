"""Training steps of ResNet-20: AdderNet and ShiftResNet, compared with PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import timing

BATCH = 256
# The published formula takes minutes and many GB at 256; below 32 what the allocator keeps blurs
# the memory.
PUBLISHED_BATCH, PUBLISHED_MEMORY_BATCH = 8, 32
SHIFT, DEPTHWISE = "mulfree_cupy ShiftResNet e3", "PyTorch depthwise twin"


def run(threads: int, out: Path | None, quick: bool) -> int:
    """Time the steps, measure the memory of each in a separate process, print and write."""
    mf.keep_freed_memory()  # as the command line does; for all that is timed
    batch = 16 if quick else BATCH
    published_batch = 4 if quick else PUBLISHED_BATCH
    published_memory_batch = 4 if quick else PUBLISHED_MEMORY_BATCH
    record = {
        "benchmark": "training",
        "machine": timing.machine("torch", "scipy"),
        "threads": threads,
        "batch": batch,
        "published_batch": published_batch,
        "published_memory_batch": published_memory_batch,
    }
    cases = {name: make(batch, threads) for name, make in STEPS.items() if make is not None}
    if "published formula" in cases:
        cases["published formula"] = STEPS["published formula"](published_batch, threads)
    quiet = timing.Quiet(0 if quick else 60)
    rounds = 1 if quick else 3
    measured = timing.interleaved(
        {name: (lambda step=step: timing.call_seconds(step, 0)) for name, step in cases.items()},
        rounds,
        quiet,
    )
    if "published formula" in measured:
        scale = batch / published_batch
        measured["published formula"] = [scale * s for s in measured["published formula"]]
    record |= {"seconds": measured, "disturbed": [quiet.disturbed, quiet.taken]}
    record["peak_mib"] = {
        name: _peak_mib(
            name, published_memory_batch if name == "published formula" else batch, batch, threads
        )
        for name in cases
    }
    record["profile"] = _profile(batch)
    text = document(record)
    print(text)
    if out is not None:
        timing.write_json(record, out, "training-cpu")
        (out / f"training-cpu-{record['machine']['date']}.md").write_text(text + "\n", "utf-8")
    return 0


def document(record: dict) -> str:
    """The table, the goals and how they were met."""
    seconds, memory = record["seconds"], record["peak_mib"]
    rows = []
    for name, taken in seconds.items():
        ratio = timing.ratio(seconds, name, "mulfree_cupy AdderNet")
        rows.append(
            [
                name,
                timing.cell(float(np.median(taken)), ".3f"),
                timing.cell(ratio, ".2f"),
                timing.cell(memory[name], ".0f"),
            ]
        )
    machine, profile = record["machine"], record["profile"]
    head = ["ResNet-20 training step", "s", "x ours", "MiB, growing with the batch"]
    disturbed, taken = record["disturbed"]
    ratio = timing.ratio(seconds, SHIFT, DEPTHWISE)
    shift = [] if ratio is None else [f"ShiftResNet-20 e3 takes {ratio:.2f} of its {DEPTHWISE}."]
    return "\n\n".join(
        [
            f"{machine['date']}, {machine['cpu']}, {record['threads']} threads, batch "
            f"{record['batch']} of 3x32x32, commit {machine['commit']}; {disturbed} of {taken} "
            "measurements disturbed by other processes.",
            timing.table(head, rows),
            "The published formula (unfold, broadcast) was run at batch "
            f"{record['published_batch']} and scaled, for its memory at batch "
            f"{record['published_memory_batch']}. Published for the whole step on an RTX 2080 Ti: "
            "1.61 s (reference PyTorch code), 0.316 s (a hand-written CUDA port). "
            f"Convolutions take {profile['convolutions']:.0%} of our step.",
            *shift,
        ]
    )


def _ours(model: str) -> Callable:
    def make(batch: int, threads: int) -> Callable[[], object]:
        from mulfree_cupy import models, optim
        from mulfree_cupy.autograd import Tensor, apply

        network = models.build(model)
        optimiser = optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        images, labels = _batch(batch)

        def step() -> None:
            loss = apply("cross_entropy", network(Tensor(images)), labels=labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return step

    return make


def _torch(kind: str) -> Callable:
    def make(batch: int, threads: int) -> Callable[[], object]:
        import torch

        from benchmarks import torch_resnet

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        network = torch_resnet.NETWORKS[kind]()
        optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        images, labels = map(torch.from_numpy, _batch(batch))
        if kind != "adder":  # the layout in which both are faster
            network = network.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return step

    return make


def _batch(batch: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(batch, 3, 32, 32)).astype(np.float32)
    return images, np.arange(batch) % 10


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


STEPS = {
    "mulfree_cupy AdderNet": _ours("adder-resnet20"),
    "mulfree_cupy conv twin": _ours("conv-resnet20"),
    "PyTorch conv twin": _torch("conv") if _has_torch() else None,
    "published formula": _torch("adder") if _has_torch() else None,
    SHIFT: _ours("shiftresnet20-e3"),
    DEPTHWISE: _torch("depthwise") if _has_torch() else None,
}


SMALLEST = 2  # the batch whose memory is taken for the libraries' and the weights'


def _peak_mib(name: str, measured: int, batch: int, threads: int) -> float:
    """Memory that grows with the batch: measured in a separate process, scaled to `batch`.

    (Linux's VmHWM: ru_maxrss would begin with that of this process.)
    """
    code = f"""
import json, re
from benchmarks.training import STEPS
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
tiny = STEPS[{name!r}]({SMALLEST}, {threads}); tiny()
before = peak()
step = STEPS[{name!r}]({measured}, {threads}); step(); step()
print(json.dumps(peak() - before))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=timing.ROOT
    )
    return json.loads(answer.stdout) * batch / (measured - SMALLEST)


def _profile(batch: int) -> dict:
    from mulfree_cupy import models
    from mulfree_cupy.train import profile

    times = profile(models.build("adder-resnet20"), *_batch(batch))
    return {
        "step": times.step,
        "convolutions": times.convolutions,
        "layers": [[t.name, t.kind, t.forward, t.backward] for t in times.layers],
    }
