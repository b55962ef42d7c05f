"""The programs of examples/ that show other libraries, where these are installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("example", "libraries", "printed"),
    [
        ("dask_blocks", ["dask.array"], ["row 1234, column 3210", "image: ok", "2 workers: "]),
        ("jax_templates", ["jax", "sklearn"], ["200 steps", "the hardest of 1297 images"]),
        ("joblib_workers", ["joblib"], ["by 2 processes of 1 thread: the same classes"]),
        ("sklearn_pipeline", ["sklearn"], ["of 500 digits right", "support vector machine"]),
        ("torch_function", ["torch"], ["unfolded images: ok", "step 100: loss"]),
        ("xarray_scenes", ["xarray"], ["selected by name: ok"]),
    ],
)
def test_an_example_runs(example, libraries, printed, tmp_path):
    for library in libraries:
        pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{example}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for text in printed:
        assert text in done.stdout
