"""The variables of a kernel: separated when it is linked, located when it is loaded.

A kernel and the runtime are one shared library. So that an overrun does not reach another variable
or the runtime, the linker puts a gap on either side of every variable of the kernel
(`linker_script`); their addresses are read from the library's symbols (`read_variables`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

GAP = 256  # bytes on either side of a variable
_OWN = "mulfree"  # in the names of all that belongs to the emulator
_ANY, _OBJECT = 0, 1  # the types of an undefined and of a variable's symbol
# Section of an object file, where its variables go, and what that place follows.
_PLACES = (
    (".rodata.", "mulfree_rodata", ".rodata"),
    (".data.rel.ro.", "mulfree_relro", ".data"),
    (".data.", "mulfree_data", ".data"),
    (".bss.", "mulfree_bss", ".bss"),
)
_READ_ONLY = ("mulfree_rodata", "mulfree_relro")


@dataclass(frozen=True)
class Variable:
    """A variable at file scope, or a static one of a function; no `symbol`: all other constants."""

    symbol: str | None
    offset: int  # from the start of the loaded library
    size: int
    writable: bool
    fixed: bool = False  # in memory that nobody can write to

    @property
    def name(self) -> str | None:
        """What the text calls it."""
        return self.symbol and source_name(self.symbol)


class _Section(NamedTuple):
    name: str
    address: int
    offset: int
    size: int
    link: int


def linker_script(object_file: bytes, file: str) -> str:
    """Linker script that separates the variables of the object file; compile with
    ``-fdata-sections``."""
    pieces: dict[str, list[str]] = {}
    for section in _sections(object_file):
        place = next((p for p in _PLACES if section.name.startswith(p[0])), None)
        if (
            place
            and section.size
            and _OWN not in section.name
            and ".rodata.str" not in section.name
        ):
            pieces.setdefault(place[1], []).append(f"{file}({section.name}) . += {GAP};")
    return "\n".join(
        f"SECTIONS {{ {place} : {{ . += {GAP}; {' '.join(pieces[place])} }} }} "
        f"INSERT AFTER {after};"
        for _, place, after in _PLACES
        if place in pieces
    )


def read_variables(library: bytes, constants: set[str]) -> list[Variable]:
    """The variables of a linked kernel; those named `constants` are read-only."""
    sections = _sections(library)
    found = []
    for symbol, section, address, size in _symbols(library, sections):
        place = sections[section].name
        if place.startswith(_OWN) and size:
            fixed = place in _READ_ONLY
            writable = not fixed and source_name(symbol) not in constants
            found.append(Variable(symbol, address, size, writable, fixed))
    rest = [s for s in sections if s.name in (".rodata", ".data.rel.ro")]
    return found + [Variable(None, s.address, s.size, False, True) for s in rest]


def initial_values(object_file: bytes) -> dict[str, bytes]:
    """Initial values of the variables of an object file, by symbol.

    Left out are those that are ``const`` and those that hold addresses.
    """
    sections = _sections(object_file)
    found = {}
    for symbol, section, start, size in _symbols(object_file, sections):
        place = sections[section]
        if _OWN in symbol or not size:
            continue
        if place.name.startswith(".bss."):
            found[symbol] = bytes(size)
        elif place.name.startswith(".data.") and not place.name.startswith(".data.rel."):
            found[symbol] = object_file[place.offset + start : place.offset + start + size]
    return found


def symbols_of(name: str) -> tuple[str, ...]:
    """The symbols that a variable of this name can have: ``"table"``, ``"ours::table"``."""
    *scopes, last = name.split("::")
    own = f"{len(last)}{last}"
    if not scopes:
        return name, f"_ZL{own}"
    outer = "".join(f"{len(scope)}{scope}" for scope in scopes)
    return f"_ZN{outer}{own}E", f"_ZN{outer}L{own}E"


def called_by(object_file: bytes) -> set[str]:
    """The symbols that an object file needs from others."""
    sections = _sections(object_file)
    return {name for name, section, *_ in _symbols(object_file, sections, _ANY) if not section}


def shared_size(library: bytes) -> int:
    """Bytes of all ``__shared__`` variables that the kernel uses."""
    sections, total = _sections(library), 0
    for name, section, address, _ in _symbols(library, sections):
        if "mulfree_place_of_" in name:
            place = sections[section].offset + address - sections[section].address
            total += struct.unpack_from("<Q", library, place + 24)[0]  # launch.h: SharedVariable
    return total


def source_name(symbol: str) -> str:
    """The source name of a variable, from its symbol."""
    if not symbol.startswith("_Z"):
        return symbol
    # The last name before template arguments; of a function's own variable, the name behind it.
    end = re.search(r"E\d+[A-Za-z_]\w*?$", symbol) if symbol.startswith("_ZZ") else None
    position, name = (end.start() + 1 if end else 2), symbol
    while position < len(symbol):
        length = re.compile(r"\d+").match(symbol, position)
        if length:
            position = length.end() + int(length[0])
            name = symbol[length.end() : position]
        elif symbol[position] in "IE_":
            break
        else:
            position += 1
    return name


def _sections(file: bytes) -> list[_Section]:
    """The section headers of a 64-bit ELF file."""
    start, size, count, names = struct.unpack_from("<Q10xHHH", file, 40)
    headers = [struct.unpack_from("<2I4Q2I2Q", file, start + i * size) for i in range(count)]
    strings = headers[names][4]
    return [_Section(_text(file, strings + h[0]), h[3], h[4], h[5], h[6]) for h in headers]


def _symbols(
    file: bytes, sections: list[_Section], kind: int = _OBJECT
) -> Iterator[tuple[str, int, int, int]]:
    """Name, section, address and size of the symbols of a type."""
    table = next((s for s in sections if s.name == ".symtab"), None)
    if table is None:
        return
    strings = sections[table.link].offset
    rows = struct.iter_unpack("<IBBHQQ", file[table.offset : table.offset + table.size])
    for name, info, _, section, address, size in rows:
        if info & 15 == kind and section < len(sections):
            yield _text(file, strings + name), section, address, size


def _text(file: bytes, offset: int) -> str:
    return file[offset : file.index(b"\0", offset)].decode()
