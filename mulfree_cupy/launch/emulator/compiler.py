"""Compilation of kernels for the CPU, and the cache.

A kernel is compiled at most twice: plain, and instrumented for checks and counts. The runtime they
are linked with is compiled once. Everything is cached in ``$MULFREE_CACHE_DIR``, else in
``$XDG_CACHE_HOME/mulfree_cupy``, under a hash of all inputs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mulfree_cupy.files import reason
from mulfree_cupy.launch import source
from mulfree_cupy.launch.emulator.translation import (
    Translation,
    overload,
    refusal,
    translate,
)
from mulfree_cupy.launch.emulator.variables import called_by, initial_values, linker_script

_WARNINGS = ["-w", "-fno-diagnostics-show-caret", "-fdiagnostics-color=never"]
# DWARF 5 has addr2line (of binutils 2.40) name wrong files where functions have their own sections.
_KERNEL = [
    "-O2", "-g1", "-gdwarf-4", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off",
    "-fno-strict-aliasing", "-fno-exceptions", "-U_FORTIFY_SOURCE", "-fcf-protection=none",
    "-fdata-sections", "-ffunction-sections", "-fno-builtin-printf", "-fstack-clash-protection",
    "-fno-gnu-unique", "-fno-builtin-malloc", "-fno-builtin-free", "-fno-finite-loops",
    "-fno-builtin-fmaxf", "-fno-builtin-fminf", "-fno-builtin-fmax", "-fno-builtin-fmin",
]  # fmt: skip
# C library functions that write through a pointer, which the runtime wraps with checks, those that
# would drop the NaN of an inactive lane, and those that end the process.
_WRAPPED = (
    "sincos", "sincosf", "modf", "modff", "frexp", "frexpf", "remquo", "remquof",
    "fmaxf", "fminf", "fmax", "fmin",
    "exit", "_exit", "_Exit", "quick_exit", "abort",
)  # fmt: skip
# The calls inserted by -fsanitize=thread are the emulator's functions. Without scalar replacement a
# float4 stays one access, as it is on a GPU; without merging equal code each line keeps its own.
_INSTRUMENTED = [
    "-fsanitize=thread", "-fno-optimize-sibling-calls", "-fstack-protector-strong",
    "-fno-builtin-memcpy", "-fno-builtin-memmove", "-fno-builtin-memset",
    "-fno-tree-sra", "-fno-ipa-sra", "-fno-tree-loop-distribute-patterns",
    "-fno-crossjumping", "-fno-tree-tail-merge", "-fno-ipa-icf",
    "-fsanitize=bounds-strict",
    "--param=tsan-distinguish-volatile=1", "--param=tsan-instrument-func-entry-exit=0",
]  # fmt: skip
_PLAIN = ["-fno-stack-protector"]
_EXPORT = 'extern "C" __attribute__((visibility("default")))'
MOST_KEPT = 512 << 20  # bytes of compiled kernels in the cache
HEADERS = "/mulfree_emulator"  # what the headers' folder is called in a compiled kernel


class CompilationError(RuntimeError):
    """The C++ compiler refused a kernel; the message carries its words and the kernel's lines."""


def compile_kernel(
    code: str, name: str, options: tuple[str, ...], instrumented: bool
) -> ctypes.CDLL:
    """The loaded library of one kernel, from the cache or compiled now."""
    compiler = find_compiler()
    flags = tuple(_flags(options))
    mode = "instrumented" if instrumented else "plain"
    file = cache_directory() / f"{_key(code, name, flags, mode, compiler)}.so"
    library = _load(file)
    if library is None:
        _build(file, code, name, flags, instrumented, compiler)
        _prune(file.parent)
        library = _load(file)
    if library is None:
        raise RuntimeError(f"the emulator cannot load the kernel it has just compiled, {file}")
    return library


def compile_variables(code: str, options: tuple[str, ...]) -> bytes:
    """An object file with all variables of the text, from the cache or compiled now."""
    compiler = find_compiler()
    flags = tuple(_flags(options))
    file = cache_directory() / f"{_key(code, '', flags, 'variables', compiler)}.variables"
    data = _read(file)
    if data is None:
        with _prepared(code, flags, True, compiler) as (prepared, folder):
            _compile(folder, code, None, flags, prepared)
            data = (folder / "kernel.o").read_bytes()
        _write(file, data + hashlib.sha256(data).digest())
    return data


def expand(code: str, name: str, options: tuple[str, ...]) -> str:
    """The text that `compile_kernel` compiles, with the lines and columns that findings name."""
    compiler = find_compiler()
    flags = tuple(_flags(options))
    with _prepared(code, flags, True, compiler) as (prepared, folder):
        text = _preprocess(prepared, folder, code, name, flags)
        return translate(text, name, (prepared.headers, prepared.cache)).text


def cache_directory() -> Path:
    """The cache directory; created if needed."""
    chosen = os.environ.get("MULFREE_CACHE_DIR")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(chosen) if chosen else Path(root) / "mulfree_cupy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"{folder} cannot be the folder of compiled kernels ({reason(error)}): set "
            "MULFREE_CACHE_DIR to another"
        ) from error
    return folder


def find_compiler() -> str:
    """GCC's C++ compiler: ``$CXX`` unless that is Clang, which misses findings; else g++."""
    chosen = os.environ.get("CXX")
    if chosen and not shutil.which(chosen):
        raise RuntimeError(f"the environment variable CXX names {chosen}, which is not there")
    for candidate in filter(None, [chosen, "g++"]):
        found = shutil.which(candidate)
        if found and "clang" not in _version(found):
            return found
    raise RuntimeError(
        "the emulator needs GCC's C++ compiler at run time and found none (Clang will not do): "
        "install g++ (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or point "
        "the environment variable CXX at one"
    )


@functools.cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{compiler} is no C++ compiler: --version fails; CXX names another")
    return done.stdout


@functools.cache
def _without_warnings(compiler: str) -> list[str]:
    """The option that skips a pass of warnings, in which GCC 12 crashes at new with delete."""
    option = "-fdisable-tree-waccess3"
    probe = [compiler, option, "-fsyntax-only", "-x", "c++", os.devnull]
    return [option] if subprocess.run(probe, capture_output=True).returncode == 0 else []


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


def _key(code: str, name: str, flags: tuple[str, ...], mode: str, compiler: str) -> str:
    facts = [code, name, *flags, mode, _version(compiler), _headers_hash()]
    if any(flag.startswith("-I") for flag in flags):  # so that an edited header is noticed
        with _prepared(code, flags, mode != "plain", compiler) as (prepared, folder):
            facts.append(_preprocess(prepared, folder, code, name or "module", flags))
    return _hash(*facts)


def _directive(flag: str) -> str:
    """What a -D or -U says, behind the emulator's headers: a text may call a macro T or N."""
    name, _, value = flag[2:].partition("=")
    if flag.startswith("-U"):
        return f"#undef {name}\n"
    return f"#define {name} {value if '=' in flag else 1}\n"


def _is_bare(code: str) -> bool:
    """Whether the text is for NVRTC, which has none of the C library's functions, not for nvcc."""
    includes = re.findall(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]*)', code, re.MULTILINE)
    ours = source.headers() / "include"
    return not re.search(r"\bmain\s*\(|\bcuda_runtime", code) and all(
        (ours / header).is_file() for header in includes
    )


def _standard(flags: tuple[str, ...]) -> str:
    return next(f for f in flags if f.startswith("-std"))


def _flags(options: tuple[str, ...]):
    """The options that a host compiler supports: macros, include folders, the standard."""
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
    """The library, or None if it is missing or damaged."""
    if _read(file) is not None:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(file))
    return None


def _read(file: Path) -> bytes | None:
    """The cached bytes, or None if missing or damaged: the file ends with their SHA-256."""
    try:
        data = file.read_bytes()
        if hashlib.sha256(data[:-32]).digest() == data[-32:]:
            os.utime(file)
            return data[:-32]
        file.unlink()
    except OSError:
        pass
    return None


def _prune(folder: Path) -> None:
    """Remove the least recently used kernels if the cache is too large."""
    kernels = []
    for file in (*folder.glob("*.so"), *folder.glob("*.variables")):
        with contextlib.suppress(OSError):  # another process drops them too
            kernels.append((file.stat().st_mtime, file.stat().st_size, file))
    excess = sum(size for _, size, _ in kernels) - MOST_KEPT
    for _, size, file in sorted(kernels):
        if excess <= 0:
            return
        file.unlink(missing_ok=True)
        excess -= size


@contextlib.contextmanager
def _prepared(
    code: str, flags: tuple[str, ...], instrumented: bool, compiler: str
) -> Iterator[tuple[_Prepared, Path]]:
    """What every kernel needs, and a folder to work in."""
    with (
        tempfile.TemporaryDirectory(prefix="mulfree") as scratch,
        _Prepared(compiler, _standard(flags), instrumented, _is_bare(code)) as prepared,
    ):
        yield prepared, Path(scratch)


def _preprocess(
    prepared: _Prepared, folder: Path, code: str, title: str, flags: tuple[str, ...]
) -> str:
    """The text with its includes and macros expanded, each line with its file."""
    file = folder / "kernel.cpp"
    macros = [flag for flag in flags if flag[:2] in ("-D", "-U")]
    file.write_text(f'{"".join(map(_directive, macros))}#line 1 "{title}"\n{code}\n')
    others = [flag for flag in flags if flag not in macros]
    command = [*prepared.command, "-E", "-fpch-preprocess", "-fno-working-directory", *others]
    text = _run([*command, "-include", str(prepared.header()), str(file)], title, folder)
    return text.replace(str(file), title)


def _build(file, code, name, flags, instrumented, compiler) -> None:
    with _prepared(code, flags, instrumented, compiler) as (prepared, folder):
        translation = _compile(folder, code, name, flags, prepared)
        compiled = (folder / "kernel.o").read_bytes()
        for symbol in called_by(prepared.runtime().read_bytes()).intersection(
            initial_values(compiled)
        ):
            raise NotImplementedError(
                f"kernel {name!r}: the emulator calls a function of the C library by the name of "
                f"the variable {symbol}: rename it"
            )
        script = linker_script(compiled, "kernel.o")
        (folder / "variables.ld").write_text(script)
        link = [
            compiler,
            "-shared",
            "-Wl,-Bsymbolic",
            "-Wl,--gc-sections,-z,defs",  # unused functions may be undefined
            *(f"-Wl,--wrap={function}" for function in _WRAPPED),
            *(["-Wl,-T,variables.ld"] if script else []),
            "kernel.o",
            str(prepared.runtime()),
            "-o",
            "kernel.so",
            *(["-lrt"] if sys.platform == "linux" else []),  # timers, before glibc 2.34
        ]
        with _refusals(translation):
            _run(link, name, folder)
        data = (folder / "kernel.so").read_bytes()
    _write(file, data + hashlib.sha256(data).digest())


def _compile(
    folder: Path, code: str, name: str | None, flags: tuple[str, ...], prepared: _Prepared
) -> Translation:
    """Write ``kernel.o``: the text, and the description of a kernel if one is named."""
    title = name or "module"
    preprocessed = _preprocess(prepared, folder, code, title, flags)
    translation = translate(preprocessed, name, (prepared.headers, prepared.cache))
    address = name if name and overload(name) else f"&{name}"
    described = (
        f"{_EXPORT} const mulfree_emulator::Kernel *mulfree_kernel() "
        f"{{ return mulfree_emulator::describe({address}); }}\n"
        f'{_EXPORT} const char mulfree_parameters[] = "{",".join(translation.parameters)}";\n'
        f'{_EXPORT} const char mulfree_constants[] = "{",".join(translation.constants)}";\n'
    )
    (folder / "kernel.ii").write_text(f"{translation.text}\n{described if name else ''}")
    # Reports name the text's own files, wherever it and the headers were compiled.
    mapped = [f"-fdebug-prefix-map={f}=/mulfree" for f in (folder, prepared.cache)]
    with _refusals(translation):
        _run([*prepared.command, *mapped, "-c", "kernel.ii", "-o", "kernel.o"], title, folder)
    return translation


@contextlib.contextmanager
def _refusals(translation: Translation) -> Iterator[None]:
    """Raise NotImplementedError for compiler or linker errors caused by unsupported features."""
    try:
        yield
    except CompilationError as error:
        message = str(error)
        undefined = re.search(r"(\S+?):(\d+): undefined reference to `([^']*)'", message)
        if undefined:
            file, line, words = (
                undefined[1].removeprefix("/mulfree/"),
                int(undefined[2]),
                undefined[3],
            )
            reason = refusal(words) or translation.refused.get((file, line))
        else:
            places = [(file, int(line)) for file, line in re.findall(r"(\S+?):(\d+):", message)]
            file, line = next((p for p in places if p in translation.refused), ("", 0))
            words, reason = "", translation.refused.get((file, line))
        if undefined and not reason:
            raise CompilationError(
                f"{file}:{line}: {words} is declared, and nowhere defined"
            ) from error
        if not reason:
            raise
        named = f" ({words})" if words and not words.startswith("mulfree") else ""
        raise NotImplementedError(
            f"{file}:{line}: {reason}{named}: not available in the "
            "emulator; give a plain C++ version under #ifdef MULFREE_EMULATOR"
        ) from error


class _Prepared:
    """Shared by all kernels, made once: the runtime's object file and the precompiled header."""

    def __init__(self, compiler: str, standard: str, instrumented: bool, bare: bool) -> None:
        self.headers, self.cache = str(source.headers()), str(cache_directory().resolve())
        extra = [*_without_warnings(compiler), *(_INSTRUMENTED if instrumented else _PLAIN)]
        extra += ["-DMULFREE_BARE"] * bare
        include = ["-I", f"{self.headers}/include", f"-ffile-prefix-map={self.headers}={HEADERS}"]
        self.command = [compiler, standard, *_WARNINGS, *_KERNEL, *extra, *include]
        key = _hash(_version(compiler), _headers_hash(), *self.command)
        self._header = Path(self.cache, f"{key}.h")
        self._runtime = Path(self.cache, f"{_hash(_version(compiler), _headers_hash())}.o")
        self._jobs: dict[Path, tuple[subprocess.Popen, str]] = {}

        runtime = [
            compiler,
            "-std=c++17",
            "-O2",
            "-fPIC",
            "-fvisibility=hidden",
            "-U_FORTIFY_SOURCE",
            "-fno-exceptions",
        ]
        self._start(self._runtime, [*runtime, *_WARNINGS, "-c", f"{self.headers}/runtime.cpp"])
        self._start(
            Path(f"{self._header}.gch"),
            [*self.command, "-x", "c++-header", f"{self.headers}/emulator.h"],
        )

    def __enter__(self) -> _Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        for process, scratch in self._jobs.values():
            process.kill()
            process.communicate()
            Path(scratch).unlink(missing_ok=True)

    def runtime(self) -> Path:
        """The object file that kernels are linked with."""
        self._finish(self._runtime)
        return self._runtime

    def header(self) -> Path:
        """The header to include; GCC takes the ``.gch`` beside it instead."""
        self._finish(Path(f"{self._header}.gch"))
        line = f'#include "{self.headers}/emulator.h"\n'.encode()
        if not self._header.exists() or self._header.read_bytes() != line:
            _write(self._header, line)
        return self._header

    def _start(self, file: Path, command: list[str]) -> None:
        if _intact(file):
            return
        handle, scratch = tempfile.mkstemp(suffix=file.suffix, dir=self.cache)
        os.close(handle)
        process = subprocess.Popen(
            [*command, "-o", scratch], stderr=subprocess.PIPE, text=True, cwd=self.cache
        )
        self._jobs[file] = process, scratch

    def _finish(self, file: Path) -> None:
        if file not in self._jobs:
            return
        process, scratch = self._jobs.pop(file)
        _, errors = process.communicate()
        if process.returncode:
            Path(scratch).unlink(missing_ok=True)
            raise CompilationError(
                f"the emulator's own {file.suffix} file does not compile:\n{errors}"
            )
        digest = hashlib.sha256(Path(scratch).read_bytes()).digest()
        os.replace(scratch, file)
        _write(_digest_of(file), digest)


def _digest_of(file: Path) -> Path:
    """The SHA-256 of a file that cannot end with it, as compilers read it."""
    return Path(f"{file}.sha256")


def _intact(file: Path) -> bool:
    try:
        return hashlib.sha256(file.read_bytes()).digest() == _digest_of(file).read_bytes()
    except OSError:
        return False


def _write(file: Path, data: bytes) -> None:
    """Write a file atomically."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
        scratch.write(data)
    os.replace(scratch.name, file)


def _run(command: list[str], name: str, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    errors = re.sub(r".*: note: disable pass .*\n", "", done.stderr).strip()
    missing = re.search(r"(\S+?):(\d+):\d+: fatal error: (\S+): No such file", errors)
    if done.returncode and missing:
        file, line, header = missing.groups()
        raise CompilationError(
            f"{file.removeprefix(f'{cwd}/')}:{line}: there is no header {header}: it is not among "
            "the emulator's; give the folder of your own with -I"
        )
    if done.returncode:
        raise CompilationError(f"kernel {name!r} does not compile:\n{errors}")
    return done.stdout
