"""A folder, zip or tar as a mapping from file names to their bytes; nothing is extracted to disk.

An archive is read into memory in one pass, because a compressed tar allows no random access, and
rejected if it contains links, devices, sparse files, names that lead out of it, or more bytes than
is plausible for its size.
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
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from mulfree_cupy.progress import progress


class Files(dict[str, Callable[[], bytes]]):
    """A function that returns its bytes for each file's name, and the names of all folders."""

    def __init__(self) -> None:
        super().__init__()
        self.folders: set[str] = set()


_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}
# Exceptions of these modules for damaged, truncated or encrypted input.
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
_SINGLE = "for single files pass the folder that holds them"
# Two zero blocks end a tar.
_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


def is_archive_name(path: PurePath) -> bool:
    """Whether the name ends as a zip's or tar's does."""
    return path.name.lower().endswith(_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is ignored."""
    return name.startswith(".") or name == "__MACOSX"


def unpacked_limit(packed: int) -> int:
    """The most bytes that compressed bytes may unpack to; more is a decompression bomb."""
    return max(256 << 20, 100 * packed)


def read(path: Path) -> Files:
    """The files in a folder, zip or tar: a function that returns its bytes for each name.

    Names are relative with ``/`` between their parts. Hidden names and ``__MACOSX`` are left out.
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
            raise ValueError(f"{path}: neither a zip nor a tar; {_SINGLE}")
        return _read_tar(path, open)
    except _DAMAGE as error:
        remedy = "" if is_archive_name(path) else f"; {_SINGLE}"
        raise ValueError(
            f"{path}: damaged, truncated or unreadable archive: {error}{remedy}"
        ) from error


def _walk(path: Path) -> Files:
    def fail(error: OSError) -> None:
        raise error

    files = Files()
    for root, folders, names in os.walk(path, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for folder in (Path(root, name) for name in folders):
            if folder.is_symlink() and folder.resolve() in {p.resolve() for p in folder.parents}:
                raise ValueError(f"{path}: {folder} is a link to a folder that it lies in")
            _add_folder(files, folder.relative_to(path).as_posix(), path)
        for file in (Path(root, name) for name in names if not is_hidden(name)):
            if not file.exists():
                raise FileNotFoundError(
                    f"{path}: {file} is a link to {os.readlink(file)}, which does not exist"
                )
            if file.is_file():
                _add(files, file.relative_to(path).as_posix(), file.read_bytes, path)
    return files


def _read_zip(path: Path) -> Files:
    files = Files()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked, limit = sum(m.file_size for m in members), unpacked_limit(path.stat().st_size)
        if unpacked > limit:
            raise ValueError(f"{path}: {unpacked} bytes unpacked, expected at most {limit}")
        for member in progress(members, f"reading {path.name}", " file"):
            if member.is_dir():
                _add_folder(files, member.filename, path)
                continue
            data = archive.read(member)
            _add(files, member.filename, lambda data=data: data, path)
    return files


def _read_tar(path: Path, opener: Callable[..., BinaryIO]) -> Files:
    files = Files()
    with opener(path, "rb") as unpacked:
        stream = _BoundedStream(unpacked, path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in progress(archive, f"reading {path.name}", " file"):
                if member.isdir():
                    _add_folder(files, member.name, path)
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"{path}: {member.name!r} is a link, device or sparse file, "
                        "expected ordinary files only"
                    )
                data = archive.extractfile(member).read()
                _add(files, member.name, lambda data=data: data, path)
        # tarfile does not notice truncation between two members.
        while stream.read(1 << 16):
            pass
        if stream.tail != _TAR_END:
            raise ValueError(f"{path}: truncated, the end mark of a tar is missing")
    return files


class _BoundedStream:
    """A file wrapper that limits the total bytes read, and remembers the last ones."""

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
    pure = _relative(name, path)
    if any(map(is_hidden, pure.parts)):
        return
    if str(pure) in files:
        raise ValueError(f"{path}: {name!r} occurs twice")
    files[str(pure)] = read_bytes
    files.folders.update(map(str, pure.parents))


def _add_folder(files: Files, name: str, path: Path) -> None:
    pure = _relative(name, path)
    if not any(map(is_hidden, pure.parts)):
        files.folders.add(str(pure))


def _relative(name: str, path: Path) -> PurePosixPath:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise ValueError(f"{path}: {name!r} is no relative name inside the archive")
    try:
        name.encode()
    except UnicodeEncodeError:  # a byte that was no UTF-8 became what nothing can print
        raise ValueError(f"{path}: the name {name!r} is no UTF-8") from None
    return pure
