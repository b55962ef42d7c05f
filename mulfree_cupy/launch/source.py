"""Read a CUDA file, prepend its ``#define`` lines, and expand its local includes.

Includes are expanded here, and not by the compiler, because CuPy's kernel cache is keyed by the
source text alone: an edited header would otherwise go unnoticed. ``#line`` directives let NVRTC and
the emulator report lines of the original files.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_LOCAL_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_HEADER_LINE = re.compile(r"^// ?(.*)$")

_stand_ins: contextvars.ContextVar[Mapping[str, Path]] = contextvars.ContextVar(
    "stand_ins", default=MappingProxyType({})
)


def cuda_directory() -> Path:
    """The folder of the CUDA sources: ``cuda/`` of a checkout, package data of an install."""
    return _resources(installed="cuda", checkout="cuda")


def headers() -> Path:
    """The folder of the emulator's C++ headers, ``cpu/emulator/`` of a checkout."""
    return _resources(installed="emulator_headers", checkout="cpu/emulator")


def _resources(installed: str, checkout: str) -> Path:
    package = Path(__file__).parents[1]
    inside = package / installed
    return inside if inside.is_dir() else package.parent / checkout


def read(path: str, defines: Mapping[str, object] | None = None) -> str:
    """The text of ``cuda/<path>``, ready to compile.

    Parameters
    ----------
    path : str
        The file below ``cuda/``, such as ``"adder/1_naive.cu"``.
    defines : mapping, optional
        Macros: ``{"T": "float"}`` prepends ``#define T float``.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists those that exist.
    """
    lines = [f"#define {name} {value}" for name, value in (defines or {}).items()]
    other = _stand_ins.get().get(path)
    text = _expanded(path) if other is None else _with_includes(other, str(other), path)
    return "\n".join([*lines, text]) + "\n"


@contextlib.contextmanager
def stand_in(path: str, file: Path) -> Iterator[None]:
    """Within the block, `read` returns the text of another file instead of ``cuda/<path>``.

    Its local includes are looked for beside it, then in the folder of ``cuda/<path>``.
    """
    token = _stand_ins.set({**_stand_ins.get(), path: file})
    try:
        yield
    finally:
        _stand_ins.reset(token)


@functools.cache
def _expanded(path: str) -> str:
    root = cuda_directory()
    if not (root / path).is_file():
        known = ", ".join(sorted(str(f.relative_to(root)) for f in root.rglob("*.cu*")))
        raise FileNotFoundError(f"no CUDA source named {path!r}; there are: {known}")
    return _with_includes(root / path, f"cuda/{path}", path)


def _with_includes(file: Path, label: str, path: str) -> str:
    """The text of a file, at or in place of ``cuda/<path>``, called `label` in reports."""
    root = cuda_directory()
    parts = [f'#line 1 "{label}"\n']
    text, end = file.read_text(encoding="utf-8"), 0
    for include in _LOCAL_INCLUDE.finditer(text):
        line = text.count("\n", 0, include.end()) + 1
        own = file.parent / include[1]
        found = (root / path).parent.joinpath(include[1]).resolve()
        if root not in file.parents and own.is_file():
            included = _with_includes(own, str(own), path)
        elif found.is_file() and found.is_relative_to(root.resolve()):
            included = _expanded(found.relative_to(root.resolve()).as_posix())
        else:
            folder = Path("cuda", path).parent.as_posix()
            raise FileNotFoundError(
                f"{label}:{line}: there is no header {include[1]}, here or in {folder}"
            )
        parts += [text[end : include.start()], "\n", included]
        parts += [f'\n#line {line + 1} "{label}"']
        end = include.end()
    return "".join([*parts, text[end:]])


@dataclass(frozen=True)
class Kernel:
    """A CUDA file, described by its opening comment.

    Attributes
    ----------
    name : str
        The file's name without suffix, ``"2_shared_tile"``.
    operation : str
        Its folder, ``"adder"``.
    path : str
        Relative to ``cuda/``.
    idea, fixes, cost : str
        Its main idea, the weakness of the previous rung, and its loads and adds per output.
    """

    name: str
    operation: str
    path: str
    idea: str
    fixes: str
    cost: str

    @property
    def rung(self) -> int:
        """Its number in the operation's ladder, 0 if it is not part of it."""
        number, separator, _ = self.name.partition("_")
        return int(number) if separator and number.isdigit() else 0


def kernels() -> list[Kernel]:
    """The CUDA files with their operation, idea and cost, in reading order.

    Returns
    -------
    list of Kernel

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> [k.name for k in mf.kernels() if k.operation == "adder"][:2]
    ['1_naive', '2_shared_tile']
    """
    root = cuda_directory()
    return [_describe(f.relative_to(root).as_posix()) for f in sorted(root.rglob("*.cu"))]


def _describe(path: str) -> Kernel:
    fields: dict[str, str] = {}
    last = None
    for line in _opening_comment(cuda_directory() / path):
        key, separator, rest = line.partition(": ")
        if not line:
            last = None
        elif last is None and separator and (not fields or key in ("Fixes", "Cost")):
            last = key if fields else "idea"
            fields[last] = rest
        elif last is not None:
            if key in ("Fixes", "Cost") and separator:
                last, fields[key] = key, rest
            else:
                fields[last] += " " + line.strip()
    operation, _, file = path.rpartition("/")
    return Kernel(
        name=file.removesuffix(".cu"),
        operation=operation,
        path=path,
        idea=fields.get("idea", ""),
        fixes=fields.get("Fixes", ""),
        cost=fields.get("Cost", ""),
    )


def _opening_comment(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            match = _HEADER_LINE.match(line.rstrip())
            if not match:
                return
            yield match[1]
