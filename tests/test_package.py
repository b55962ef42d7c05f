"""The package as shipped: the wheel, the import, installation without a compiler, the docs."""

import doctest
import inspect
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mulfree_cupy as mf
from mulfree_cupy import launch
from mulfree_cupy.launch import numpy_kernels, source

ROOT = Path(__file__).parent.parent
FUNCTIONS = [
    getattr(mf, name) for name in mf.__all__ if inspect.isfunction(getattr(mf, name, None))
]


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def build_wheel(directory, **environment):
    """Build from a copy, so that no earlier build's leftovers help."""
    copy = directory / "source"
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", directory, copy],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(directory.glob("*.whl")))


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a compiler, which takes seconds where the kernels take minutes."""
    directory = tmp_path_factory.mktemp("wheel")
    return build_wheel(directory, CC="no-such-compiler", CXX="no-such-compiler")


@needs_git
def test_the_wheel_holds_the_cuda_sources_and_the_emulator(wheel):
    names = wheel.namelist()
    tracked = subprocess.run(
        ["git", "ls-files", "cuda", "cpu/emulator"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert tracked and "mulfree_cupy/py.typed" in names
    for file in tracked:
        inside = file.replace("cpu/emulator/", "emulator_headers/")
        assert f"mulfree_cupy/{inside}" in names


@pytest.mark.slow
@needs_git
def test_a_release_holds_the_compiled_kernels_for_any_linux(tmp_path):
    wheel = build_wheel(tmp_path, MULFREE_REQUIRE_KERNELS="1")
    assert any(name.startswith("mulfree_cupy/_cpu") for name in wheel.namelist())
    pytest.importorskip("auditwheel")
    repair = [sys.executable, "-m", "auditwheel", "repair", "-w", tmp_path / "out", wheel.filename]
    subprocess.run(repair, check=True, capture_output=True)
    (repaired,) = (tmp_path / "out").iterdir()
    assert "manylinux" in repaired.name


@needs_git
def test_a_release_without_compiled_kernels_fails(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        build_wheel(tmp_path, CXX="no-such-compiler", CC="x", MULFREE_REQUIRE_KERNELS="1")
    assert not list(tmp_path.glob("*.whl"))


# Records its arguments, and compiles nothing.
COMPILER = """#!/bin/sh
echo "$*" >> "$LOG"
while [ "$1" != -o ]; do shift; done
mkdir -p "$(dirname "$2")" && : > "$2"
"""


@needs_git
def test_every_source_of_the_machine_is_compiled_once(tmp_path):
    log, compiler = tmp_path / "log", tmp_path / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "source"], check=True)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path / "source",
        env={**os.environ, "CXX": str(compiler), "CC": str(compiler), "LOG": str(log)}
        | {"MULFREE_REQUIRE_KERNELS": "1"},
        check=True,
        capture_output=True,
    )
    calls = [line.split() for line in log.read_text().splitlines() if "cpu/" in line]
    compiled = [word for call in calls if "-c" in call for word in call if word.endswith(".cpp")]
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "cpu").glob("**/*.cpp")}
    others = {name for name in sources if "kernels_" in name and name not in compiled}
    assert sorted(compiled) == sorted(sources - others - {"cpu/emulator/runtime.cpp"})
    assert list((tmp_path / "source/mulfree_cupy").glob("_cpu*"))


def test_modules_come_when_asked_for():
    code = (
        "import sys, mulfree_cupy as mf\n"
        "assert 'mulfree_cupy.models' not in sys.modules\n"
        "assert {'models', 'train', 'conv'} <= set(dir(mf)) and 'importlib' not in dir(mf)\n"
        "for name in dir(mf): getattr(mf, name)\n"
        "mf.models.build('adder-lenet'), mf.train.Recipe\n"
    )
    assert python(code).stderr == ""
    with pytest.raises(AttributeError, match="module 'mulfree_cupy' has no attribute 'modles'"):
        mf.modles  # noqa: B018


USER = """
import numpy as np
import mulfree_cupy as mf
x = np.zeros((1, 3, 8, 8), np.float32)
y = mf.adder_conv(x, x, pading=1)
z = mf.conv(x, x, stride="2")
mf.models.build(3)
mf.addr_conv(x, x)
reveal_type(mf.pack(x, "adder"))
"""


def test_mypy_checks_a_users_file(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "user.py"]
    path = {**os.environ, "MYPYPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
    assert 'Unexpected keyword argument "pading" for "adder_conv"' in run.stdout
    assert 'Argument "stride" to "conv" has incompatible type "str"' in run.stdout
    assert 'Argument 1 to "build" has incompatible type "int"' in run.stdout
    assert 'Module has no attribute "addr_conv"; maybe "adder_conv"?' in run.stdout
    assert "PackedWeights | " in run.stdout and "Found 4 errors" in run.stdout


def without_code(page):
    return re.sub("```.*?```", "", page, flags=re.DOTALL)


@needs_git
def test_the_links_of_the_source_distribution_lead_to_its_files(tmp_path):
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "source"], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", tmp_path, "source"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (folder,) = (tmp_path / "sdist").iterdir()
    pages = [folder / "README.md", *folder.glob("docs/**/*.md")]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", without_code(page.read_text()))
        if "://" not in link
    ]
    assert len(pages) > 5 and len(links) > 5
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


@needs_git
def test_an_install_without_a_compiler_succeeds(wheel, tmp_path):
    assert not any(name.startswith("mulfree_cupy/_cpu") for name in wheel.namelist())
    wheel.extractall(tmp_path / "site")
    code = """
import sys, warnings, numpy as np
# An editable install in this environment must not lend its compiled kernels.
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in repr(finder)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mulfree_cupy as mf
    for _ in range(3):
        assert mf.adder_conv(np.ones((1, 2, 3, 3)), np.zeros((1, 2, 3, 3))).item() == -18
assert len(caught) == 1, caught
assert "slow NumPy kernels" in str(caught[0].message), caught[0]
assert mf.__file__.startswith(PATH), mf.__file__
"""
    code = code.replace("PATH", repr(str(tmp_path)))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_import_loads_numpy_and_nothing_heavy():
    heavy = {"cupy", "scipy", "torch", "matplotlib", "sklearn", "cuda"}
    result = python(f"import sys, mulfree_cupy; print({heavy!r} & set(sys.modules))")
    assert result.stdout.strip() == "set()", result


def test_unknown_cpu_features_are_an_error():
    code = (
        "import numpy as np, mulfree_cupy as mf; mf.adder_matmul(np.ones((1, 1)), np.ones((1, 1)))"
    )
    result = python(code, MULFREE_CPU_FEATURES="AVX2")
    assert result.returncode == 1
    assert "MULFREE_CPU_FEATURES: CPU features 'AVX2' are not available; this" in result.stderr


def test_the_numpy_kernels_are_the_compiled_ones_by_name():
    compiled = launch.cpu_kernels()
    for name, twin in inspect.getmembers(numpy_kernels, inspect.isfunction):
        if not name.startswith("_") and twin.__module__ == numpy_kernels.__name__:
            assert callable(getattr(compiled, name))


def test_every_cuda_file_opens_with_its_idea_and_cost():
    for kernel in mf.kernels():
        assert kernel.idea and kernel.cost, kernel
        if kernel.name[0].isdigit():
            assert kernel.fixes, kernel


def test_an_unknown_source_is_named_with_those_that_exist():
    with pytest.raises(FileNotFoundError, match="no CUDA source named 'adder/0.cu'; .*1_naive.cu"):
        source.read("adder/0.cu")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_docstrings_are_numpydoc_with_examples(function):
    validation = pytest.importorskip("numpydoc.validate")
    # Sections missing, misnamed or out of order; parameters missing or out of order.
    wanted = {"GL05", "GL06", "GL07", "GL08", "SS01", "PR01", "PR03", "RT01", "YD01"}
    faults = validation.validate(f"{function.__module__}.{function.__qualname__}")["errors"]
    assert [f for f in faults if f[0] in wanted] == []
    assert doctest.DocTestFinder().find(function)[0].examples or function is mf.emulated_cuda
