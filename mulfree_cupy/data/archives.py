"""A folder, zip or tar as a mapping from file names to their bytes; nothing is extracted to disk.

An archive is read into memory in one pass, because a compressed tar has no other way, and refused
if it holds what an archive of images has no need of: links, devices, sparse files, names that lead
out of it, or more bytes than its size can honestly explain.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mulfree_cupy.data.progress import progress

Files = dict[str, Callable[[], bytes]]

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}
# What these modules raise for damaged, truncated or encrypted input.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    IndexError,
)
# Two zero blocks end a tar.
_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


def is_archive_name(path: Path) -> bool:
    """Whether the name ends as a zip's or tar's does."""
    return path.name.lower().endswith(_SUFFIXES)


def unpacked_limit(packed: int) -> int:
    """The most bytes that so many compressed ones may unpack to; more is a decompression bomb."""
    return max(256 << 20, 100 * packed)


def read(path: Path) -> Files:
    """The files in a folder, zip or tar: a function that returns its bytes for each name.

    Names are relative with ``/`` between their parts. Hidden files and ``__MACOSX`` are left out.
    """
    if path.is_dir():
        return _walk(path)
    if not path.is_file():
        raise ValueError(f"{path}: neither a folder nor an ordinary file")
    with path.open("rb") as file:
        magic = file.read(6)
    if not magic:
        raise ValueError(f"{path}: the file is empty")
    try:
        if magic.startswith(b"PK"):
            return _read_zip(path)
        for start, opener in _DECOMPRESSORS.items():
            if magic.startswith(start):
                return _read_tar(path, opener)
        if not tarfile.is_tarfile(path):
            raise ValueError(
                f"{path}: neither a zip nor a tar; for single files pass the folder that holds them"
            )
        return _read_tar(path, open)
    except _DAMAGE as error:
        raise ValueError(f"{path}: damaged, truncated or unreadable archive: {error}") from error


def _walk(path: Path) -> Files:
    def fail(error: OSError) -> None:
        raise error

    files: Files = {}
    for folder, folders, names in os.walk(path, onerror=fail, followlinks=True):
        for link in (Path(folder, name) for name in folders):
            if link.is_symlink() and link.resolve() in {p.resolve() for p in link.parents}:
                raise ValueError(f"{path}: {link} is a link to a folder that it lies in")
        for name in names:
            file = Path(folder, name)
            if file.is_file():
                _add(files, file.relative_to(path).as_posix(), file.read_bytes, path)
    return files


def _read_zip(path: Path) -> Files:
    files: Files = {}
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        unpacked, limit = sum(m.file_size for m in members), unpacked_limit(path.stat().st_size)
        if unpacked > limit:
            raise ValueError(f"{path}: {unpacked} bytes unpacked, expected at most {limit}")
        for member in progress(members, f"reading {path.name}", " file"):
            data = archive.read(member)
            _add(files, member.filename, lambda data=data: data, path)
    return files


def _read_tar(path: Path, opener: Callable[..., BinaryIO]) -> Files:
    files: Files = {}
    with opener(path, "rb") as unpacked:
        stream = _BoundedStream(unpacked, path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in progress(archive, f"reading {path.name}", " file"):
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"{path}: {member.name!r} is a link, device or sparse file, "
                        "expected ordinary files only"
                    )
                data = archive.extractfile(member).read()
                _add(files, member.name, lambda data=data: data, path)
        # tarfile takes a file cut off between two members for a whole one.
        while stream.read(1 << 16):
            pass
        if stream.tail != _TAR_END:
            raise ValueError(f"{path}: truncated, the end mark of a tar is missing")
    return files


class _BoundedStream:
    """Passes reads on, up to the limit of bytes for the archive, and remembers the last ones."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = self._limit = unpacked_limit(path.stat().st_size)
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._path}: more than {self._limit} bytes unpacked")
        self.tail = (self.tail + data)[-len(_TAR_END) :]
        return data


def _add(files: Files, name: str, read_bytes: Callable[[], bytes], path: Path) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise ValueError(f"{path}: {name!r} is no relative name inside the archive")
    if any(part.startswith(".") or part == "__MACOSX" for part in pure.parts):
        return
    if str(pure) in files:
        raise ValueError(f"{path}: {name!r} occurs twice")
    files[str(pure)] = read_bytes
