"""The pages and the site: their statements are tested against the package."""

import importlib
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy import formulas, lessons

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = [
    "mulfree_cupy",
    *(f"mulfree_cupy.{name}" for name in ("nn", "optim", "models", "data", "train", "inference")),
    *(f"mulfree_cupy.{name}" for name in ("autograd", "formulas", "lessons")),
    "mulfree_cupy.launch.emulator",
    *(f"mulfree_cupy.compat.{name}" for name in ("chainer", "dask", "jax", "sklearn")),
]


def run(*command):
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_code_and_the_counts_of_the_lessons_are_current():
    done = run("-m", "docs.fill", "--check")
    assert done.returncode == 0, f"run `python -m docs.fill`: {done.stdout}{done.stderr}"


def test_every_rung_of_the_lessons_has_its_code_and_its_counts():
    for operation in ("convolution", "adder", "shift", "winograd", "binary"):
        page = (DOCS / f"lessons/{operation}.md").read_text(encoding="utf-8")
        names = " ".join(re.findall("<!-- counts: (.*?) -->", page)).split()
        counted = {lessons.find(name).rung for name in names}
        rungs = [k for k in mf.kernels() if k.operation == operation and k.rung]
        assert rungs
        for kernel in rungs:
            assert f"<!-- code:{kernel.path} " in page, kernel.path
            assert kernel.rung in counted, kernel.path


def public_names(module):
    """The public names of a module: `__all__`, or what it defines."""
    defined = (name for name, value in vars(module).items() if of(module, value))
    names = getattr(module, "__all__", None) or defined
    return {n for n in names if n[0] != "_" and not inspect.ismodule(getattr(module, n))}


def of(module, value):
    return inspect.isfunction(value) and value.__module__ == module.__name__


def documented():
    """The names on the pages of the reference, by their modules."""
    found = {}
    for page in sorted((DOCS / "reference").glob("*.rst")):
        text = page.read_text(encoding="utf-8")
        if module := re.search(r"^\.\. currentmodule:: (\S+)$", text, re.MULTILINE):
            listed = re.findall(r"^   ([A-Za-z]\w*)$", text, re.MULTILINE)
            constants = re.findall(r"^\.\. py:data:: (\w+)$", text, re.MULTILINE)
            found[module[1]] = [*listed, *constants]
    return found


def test_the_reference_has_every_public_name_once():
    found = documented()
    assert sorted(found) == sorted(MODULES)
    for name, listed in found.items():
        module = importlib.import_module(name)
        assert len(set(listed)) == len(listed), name
        expected = public_names(module)
        if module is mf:
            expected -= {"EmulationFault"}  # on the emulator's page
        if module is formulas:
            expected |= {"WINOGRAD"}
        missing, gone = sorted(expected - set(listed)), sorted(set(listed) - expected)
        assert not missing and not gone, f"docs/reference: of {name} {missing} missing, {gone} gone"


def test_the_files_that_an_operation_touches_exist():
    page = (DOCS / "adding.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|md|rst|cu|cpp|hpp))`", page)
    assert len(named) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_words_of_the_engine_are_where_the_glossary_says():
    page = (DOCS / "engine.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+\.hpp)`", page)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "cpu/engine" / name).exists()] == []


def numbers(*shape):
    return lambda dtype: (np.arange(np.prod(shape)).reshape(shape) % 3).astype(dtype)


def calls():
    """A small call of each operation in the table of the first page, of a dtype."""
    x, w, grad = numbers(2, 4, 6, 6), numbers(3, 4, 3, 3), numbers(2, 3, 6, 6)
    wide, mixing, shifts = numbers(2, 9, 6, 6), numbers(3, 9), mf.modulo_shifts(9)
    cols, square, image = numbers(2, 36, 36), numbers(5, 5), numbers(9, 8)

    def transformed(dtype):
        return mf.WinogradWeights.from_dense(numbers(4, 4, 3, 4)(dtype))

    return {
        "conv": lambda d: mf.conv(x(d), w(d), padding=1),
        "conv_backward": lambda d: mf.conv_backward(grad(d), x(d), w(d), padding=1),
        "im2col": lambda d: mf.im2col(x(d), 3, padding=1),
        "col2im": lambda d: mf.col2im(cols(d), (2, 4, 6, 6), 3, padding=1),
        "adder_conv": lambda d: mf.adder_conv(x(d), w(d), padding=1),
        "adder_matmul": lambda d: mf.adder_matmul(square(d), square(d)),
        "pairwise_l1": lambda d: mf.pairwise_l1(square(d), square(d)),
        "nearest_l1": lambda d: mf.nearest_l1(square(d), square(d), 2),
        "match_template_l1": lambda d: mf.match_template_l1(image(d), square(d)),
        "adder_conv_backward": lambda d: mf.adder_conv_backward(grad(d), x(d), w(d), padding=1),
        "binary_conv": lambda d: mf.binary_conv(x(d), w(d), padding=1),
        "binary_conv_backward": lambda d: mf.binary_conv_backward(grad(d), x(d), w(d), padding=1),
        "pack_signs": lambda d: mf.pack_signs(x(d)),
        "shift": lambda d: mf.shift(wide(d), shifts),
        "shift_backward": lambda d: mf.shift_backward(wide(d), shifts, (2, 9, 6, 6)),
        "shift_conv": lambda d: mf.shift_conv(wide(d), mixing(d), shifts),
        "shift_conv_backward": lambda d: mf.shift_conv_backward(
            grad(d), wide(d), mixing(d), shifts
        ),
        "shift_adder_conv": lambda d: mf.shift_adder_conv(wide(d), mixing(d), shifts),
        "shift_adder_conv_backward": lambda d: mf.shift_adder_conv_backward(
            grad(d), wide(d), mixing(d), shifts
        ),
        "winograd_conv": lambda d: mf.winograd_conv(x(d), transformed(d)),
        "winograd_conv_backward": lambda d: mf.winograd_conv_backward(
            grad(d), x(d), transformed(d)
        ),
        "adaptive_rate": lambda d: mf.adaptive_rate(w(d)),
    }


def table_of_operations():
    """(operation, dtype, where it is served, dtype of the answer) of every cell."""
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    table = re.search("<!-- operations -->\n(.*?)<!-- /operations -->", page, re.DOTALL)[1]
    head, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    for row in rows:
        for dtypes, cell in zip(head[1:], row[1:], strict=True):
            served, _, answer = cell.partition(" → ")
            names = re.findall(r"`(\w+)`", row[0])
            for name, dtype in itertools.product(names, dtypes.split(", ")):
                yield name, dtype, served, answer or dtype


def held(device):
    made, cells = calls(), list(table_of_operations())
    assert {name for name, *_ in cells} == set(made)
    for name, dtype, served, answer in cells:
        if device in served:
            y = made[name](np.dtype(dtype))
            assert (y[0] if isinstance(y, tuple) else y).dtype == answer, (name, dtype)
        else:
            with pytest.raises(TypeError):
                made[name](np.dtype(dtype))


def test_the_first_page_says_which_dtypes_the_cpu_serves():
    held("CPU")


@pytest.mark.slow
def test_the_first_page_says_which_dtypes_a_gpu_serves():
    with mf.emulated_cuda(check=False):
        held("GPU")


def test_the_example_for_cupy_prints_what_the_page_says():
    page = (DOCS / "convolution_for_cupy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", page, re.DOTALL)
    (printed,) = re.findall(r"<!-- printed -->\n```text\n(.*?)```", page, re.DOTALL)
    done = run("-c", code)
    assert done.stdout == printed, done.stderr


def test_every_example_is_shown():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for example in (ROOT / "examples").glob("*.py"):
        assert f"../examples/{example.name}" in page and f"_examples/{example.stem}.txt" in page
        draws = "--picture" in example.read_text(encoding="utf-8")
        assert (f"_examples/{example.stem}.png" in page) == draws


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    for package in ("sphinx", "numpydoc", "myst_parser", "pydata_sphinx_theme", "skimage", "tqdm"):
        pytest.importorskip(package)
    done = run("-m", "sphinx", "-W", "-q", "-b", "html", "-d", tmp_path / "trees", DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 200
    loaded = re.compile(r'<(?:script|link|img)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')
    assert [(p.name, m) for p in pages for m in loaded.findall(p.read_text())] == []
