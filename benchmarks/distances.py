"""Distances of rows and the nearest of them on the CPU, beside scikit-learn, SciPy and FAISS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, timing
from benchmarks.goals import Column
from mulfree_cupy import launch

NEIGHBOURS = 5


@dataclass(frozen=True)
class Rows:
    """Rows a (m, length) and b (p, length), whose numbers are uniform."""

    m: int
    p: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.m} x {self.p} x {self.length}"

    @property
    def terms(self) -> int:
        return self.m * self.p * self.length

    def drawn(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        return tuple(rng.integers(0, 256, (n, self.length)).astype(dtype) for n in (self.m, self.p))


SIZES = [Rows(1000, 1000, 100), Rows(10_000, 1000, 784)]
QUICK_SIZES = [Rows(50, 40, 30)]
PEER_TERMS = 10**8  # of slow peers: the first rows of a, and the time scaled to all of them


def columns(dtype: str) -> list[Column]:
    goal = 40 if dtype == "uint8" else 20
    return [
        Column("times scikit-learn", "scikit-learn", "pairwise_l1", ".0f", goal),
        Column("times SciPy", "SciPy", "pairwise_l1", ".0f", goal),
        Column("times FAISS", "FAISS", "pairwise_l1", ".1f"),
        Column("of the peak", "peak", "pairwise_l1", ".0%"),
        Column("nearest, times NearestNeighbors", "NearestNeighbors", "nearest_l1", ".0f", 5),
        Column("nearest, times FAISS", "FAISS nearest", "nearest_l1", ".1f", 1),
    ]


NOTES = f"""\
A term is one abs(a - b). Each ratio is taken within a round; the median over the rounds is shown.
scikit-learn: `pairwise_distances(metric="manhattan")`, and `NearestNeighbors(metric="manhattan",
algorithm="brute")`, with as many jobs as threads; SciPy: `cdist(..., "cityblock")`, which has one
thread; FAISS: `pairwise_distances` with METRIC_L1 and a search of `IndexFlat`, of float32 in both
tables, as it has no uint8. The nearest are {NEIGHBOURS}. scikit-learn and SciPy are given as many
rows of a as make up {PEER_TERMS:.0e} terms, and their time is scaled to all of them.
peak: the time the terms would take at the rate of the register tile, measured in the same rounds
on numbers in the first-level cache."""

STEADY = {"rounds": 5, "least": 0.02}
QUICK = {"rounds": 2, "least": 0.001}
PATIENCE = 5  # seconds a row for repeating what other processes disturbed


def run(threads: int, out: Path | None, quick: bool) -> int:
    """Check and time, print the tables, write them to `out`; the exit status."""
    settings = QUICK if quick else STEADY
    quiet = timing.Quiet()
    record = {
        "benchmark": "distances",
        "machine": timing.machine("scikit-learn", "scipy", "faiss-cpu"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "float32": [],
        "uint8": [],
    }
    for rows in QUICK_SIZES if quick else SIZES:
        for dtype in "float32", "uint8":
            quiet.patience = 0 if quick else PATIENCE
            record[dtype].append(measure(rows, dtype, threads, quiet, **settings))
            record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, "distances-cpu")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure(
    rows: Rows, dtype: str, threads: int, quiet: timing.Quiet, rounds: int, least: float
) -> dict:
    """Check every answer, then time everything in `rounds` interleaved rounds."""
    a, b = rows.drawn(dtype)
    calls: dict[str, Callable[[], object]] = {
        "pairwise_l1": lambda: mf.pairwise_l1(a, b),
        "nearest_l1": lambda: mf.nearest_l1(a, b, NEIGHBOURS),
    }
    few = max(1, min(rows.m, PEER_TERMS // (rows.p * rows.length)))
    slow = slow_peers(a[:few], b, threads)
    calls |= faiss_peers(a.astype(np.float32), b.astype(np.float32), threads)
    check(rows, a[:few], b, calls, slow)
    cases = {name: timing.case(call, least) for name, call in calls.items()}
    cases |= {name: timing.case(call, least, rows.m / few) for name, call in slow.items()}
    peak = getattr(launch.cpu_kernels(), "peak", None)
    if peak is not None:
        kind = "l1_u8" if dtype == "uint8" else "l1_f32"
        cases["peak"] = lambda: rows.terms / peak(kind, least)
    seconds = timing.interleaved(cases, rounds, quiet)
    ratios = goals.ratios(seconds, columns(dtype))
    return {"name": rows.name, "terms": rows.terms, "seconds": seconds, "ratios": ratios}


def slow_peers(a, b, threads: int) -> dict[str, Callable[[], object]]:
    """Those of scikit-learn and SciPy that are installed."""
    found: dict[str, Callable[[], object]] = {}
    try:
        from scipy.spatial.distance import cdist

        found["SciPy"] = lambda: cdist(a, b, "cityblock")
        from sklearn.metrics import pairwise_distances
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        return found
    jobs = {"metric": "manhattan", "n_jobs": threads}
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute", **jobs).fit(b)
    found["scikit-learn"] = lambda: pairwise_distances(a, b, **jobs)
    found["NearestNeighbors"] = lambda: neighbours.kneighbors(a)
    return found


def faiss_peers(a, b, threads: int) -> dict[str, Callable[[], object]]:
    try:
        import faiss
    except ImportError:
        return {}
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlat(b.shape[1], faiss.METRIC_L1)
    index.add(b)
    return {
        "FAISS": lambda: faiss.pairwise_distances(a, b, faiss.METRIC_L1),
        "FAISS nearest": lambda: index.search(a, NEIGHBOURS),
    }


def check(rows: Rows, a, b, calls: dict, slow: dict) -> None:
    """Hold all distances, and those of the nearest, to float64 sums on the first rows."""
    count = min(len(a), 20)
    wide = b.astype(np.float64)
    expected = np.array([np.abs(wide - row).sum(axis=1) for row in a[:count].astype(np.float64)])
    for name, call in {**calls, **slow}.items():
        answer = call()
        near = isinstance(answer, tuple)
        answer = np.asarray(answer[0] if near else answer)[:count]
        right = np.sort(expected, axis=1)[:, :NEIGHBOURS] if near else expected
        if not np.allclose(answer, right, rtol=1e-5, atol=0):
            raise SystemExit(f"{rows.name}: {name} is wrong by {np.abs(answer - right).max():.3g}")


def document(record: dict) -> str:
    """Everything as markdown."""
    parts = [goals.summary(record)]
    for dtype in "float32", "uint8":
        parts += [f"{dtype}:", table(record[dtype], dtype)]
    parts.append(NOTES)
    return "\n\n".join(
        [*parts, *(verdicts(record[dtype], dtype) for dtype in ("float32", "uint8"))]
    )


def verdicts(rows: list[dict], dtype: str) -> str:
    return f"{dtype}:\n\n{goals.verdicts(rows, columns(dtype))}"


def table(rows: list[dict], dtype: str) -> str:
    def first(row: dict) -> list[str]:
        seconds = float(np.median(row["seconds"]["pairwise_l1"]))
        return [row["name"], f"{seconds * 1e3:.2f}", f"{row['terms'] / seconds / 1e9:.0f}"]

    return goals.table(["rows of a, of b, length", "ms", "G terms/s"], rows, first, columns(dtype))
