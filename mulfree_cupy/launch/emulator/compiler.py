"""Compile kernels for the CPU, and keep what was compiled.

A kernel is compiled twice at most: plain, and instrumented for checks and counts. The runtime they
are linked with is compiled once. Everything lies in ``$MULFREE_CACHE_DIR``, else in
``$XDG_CACHE_HOME/mulfree_cupy``, under a hash of all that went into it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from mulfree_cupy.launch import source
from mulfree_cupy.launch.emulator.translation import translate

_WARNINGS = ["-w", "-fno-diagnostics-show-caret", "-fdiagnostics-color=never"]
_KERNEL = [
    "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing",
    "-fno-exceptions", "-U_FORTIFY_SOURCE", "-fcf-protection=none",
]  # fmt: skip
# The calls of -fsanitize=thread reach the emulator's own functions. Without scalar replacement a
# float4 stays one access, as it is on a GPU.
_INSTRUMENTED = ["-fsanitize=thread", "-fno-tree-loop-distribute-patterns"]
_GCC = [
    "-fno-gnu-unique", "-fno-tree-sra", "-fno-ipa-sra", "-fsanitize=bounds-strict",
    "--param=tsan-distinguish-volatile=1", "--param=tsan-instrument-func-entry-exit=0",
]  # fmt: skip
_CLANG = [
    "-fsanitize=array-bounds", "-mllvm", "-tsan-distinguish-volatile=1",
    "-mllvm", "-tsan-instrument-func-entry-exit=0",
]  # fmt: skip


class CompilationError(RuntimeError):
    """The C++ compiler refused a kernel; the message carries its words and the kernel's lines."""


def compile_kernel(code: str, name: str, options: tuple[str, ...], instrumented: bool) -> ctypes.CDLL:
    """The loaded library of one kernel, from the cache or compiled now."""
    compiler = find_compiler()
    flags = tuple(_flags(options))
    key = _hash(code, name, *flags, str(instrumented), _version(compiler), _headers_hash())
    file = cache_directory() / f"{key}.so"
    library = _load(file)
    if library is None:
        _build(file, code, name, flags, instrumented, compiler)
        library = _load(file)
    if library is None:
        raise RuntimeError(f"the emulator cannot load the kernel it has just compiled, {file}")
    return library


def cache_directory() -> Path:
    """Where compiled kernels are kept; made if it is not there."""
    chosen = os.environ.get("MULFREE_CACHE_DIR")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(chosen) if chosen else Path(root) / "mulfree_cupy"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_compiler() -> str:
    """The C++ compiler: ``$CXX``, else g++, else clang++."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++"):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise RuntimeError(
        "the emulator needs a C++ compiler at run time and found none: install g++ "
        "(Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select "
        "--install) or point the environment variable CXX at one"
    )


@functools.cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout


@functools.cache
def _headers_hash() -> str:
    files = sorted(f for f in source.headers().rglob("*") if f.is_file() and f.suffix != ".py")
    return _hash(*(f.read_bytes() for f in files), Path(__file__).read_bytes())


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:40]


def _flags(options: tuple[str, ...]):
    """Of CUDA's options those that a host compiler knows: macros, include folders, the standard."""
    standard, rest = "-std=c++17", iter(options)
    for option in rest:
        short = re.match(r"-[DUI]", option)
        if short and len(option) == 2:
            yield option + next(rest, "")
        elif short:
            yield option
        elif match := re.match(r"--?(define-macro|undefine-macro|include-path)=(.*)", option):
            yield {"d": "-D", "u": "-U", "i": "-I"}[match[1][0]] + match[2]
        elif match := re.match(r"--?std=c\+\+(\d+)", option):
            # The emulator's own headers are C++17.
            standard = f"-std=c++{match[1]}" if match[1] in ("17", "20", "23") else standard
    yield standard


def _load(file: Path) -> ctypes.CDLL | None:
    """The library, if it is there and whole: its SHA-256 stands behind its end."""
    try:
        data = file.read_bytes()
        if hashlib.sha256(data[:-32]).digest() == data[-32:]:
            return ctypes.CDLL(str(file))
        file.unlink()
    except OSError:
        pass
    return None


def _build(file, code, name, flags, instrumented, compiler) -> None:
    headers = source.headers()
    with tempfile.TemporaryDirectory(prefix="mulfree") as scratch:
        folder = Path(scratch)
        runtime = _Runtime(compiler, headers)
        (folder / "kernel.cpp").write_text(f'#line 1 "{name}"\n{code}\n')
        preprocess = [compiler, "-E", "-x", "c++", *flags, *_WARNINGS, "-I", str(headers / "include")]
        preprocess += ["-include", str(headers / "emulator.h"), str(folder / "kernel.cpp")]
        preprocessed = _run(preprocess, name).stdout
        preprocessed = preprocessed.replace(str(folder / "kernel.cpp"), name)
        translation = translate(preprocessed, name, str(headers))
        (folder / "kernel.ii").write_text(
            f"{translation.text}\n"
            'extern "C" __attribute__((visibility("default"))) const mulfree_emulator::Kernel *mulfree_kernel() '
            f"{{ return mulfree_emulator::describe(&{name}); }}\n"
            'extern "C" __attribute__((visibility("default"))) const char mulfree_parameters[] = '
            f'"{",".join(translation.parameters)}";\n'
        )
        is_clang = "clang" in _version(compiler)
        extra = [*_INSTRUMENTED, *(_CLANG if is_clang else _GCC)] if instrumented else []
        standard = [f for f in flags if f.startswith("-std")]
        build = [compiler, *standard, *_WARNINGS, *_KERNEL, *extra, f"-fdebug-prefix-map={folder}=/mulfree"]
        if not is_clang and not instrumented:
            build.append("-fno-gnu-unique")
        _run([*build, "-c", "kernel.ii", "-o", "kernel.o"], name, cwd=folder)
        _run([compiler, "-shared", "-Wl,-Bsymbolic", "kernel.o", str(runtime.wait()), "-o", "kernel.so"], name, cwd=folder)
        data = (folder / "kernel.so").read_bytes()
    _write(file, data + hashlib.sha256(data).digest())


class _Runtime:
    """The runtime's object file, compiled beside the first kernel."""

    def __init__(self, compiler: str, headers: Path) -> None:
        key = _hash(_version(compiler), _headers_hash())
        self.file = cache_directory() / f"{key}.o"
        self.process = None
        if not self.file.exists():
            self.scratch = tempfile.NamedTemporaryFile(suffix=".o", delete=False)  # noqa: SIM115
            command = [compiler, "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
            command += ["-w", "-c", str(headers / "runtime.cpp"), "-o", self.scratch.name]
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def wait(self) -> Path:
        if self.process is not None:
            _, errors = self.process.communicate()
            data = Path(self.scratch.name).read_bytes()
            os.unlink(self.scratch.name)
            if self.process.returncode:
                raise CompilationError(f"the emulator's runtime does not compile:\n{errors}")
            _write(self.file, data)
        return self.file


def _write(file: Path, data: bytes) -> None:
    """Put the file there at once and whole, whoever else may be writing it."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
        scratch.write(data)
    os.replace(scratch.name, file)


def _run(command: list[str], name: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise CompilationError(f"kernel {name!r} does not compile:\n{done.stderr.strip()}")
    return done
