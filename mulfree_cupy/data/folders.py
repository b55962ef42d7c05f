"""Images in class folders, such as ``cat/1.png``: splitting into parts, and decoding."""

from __future__ import annotations

import io
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mulfree_cupy.data import archives
from mulfree_cupy.data.archives import Files
from mulfree_cupy.data.dataset import Dataset, split
from mulfree_cupy.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

# The supported formats of Pillow, and their file suffixes.
_FORMATS = {
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "JPEG": {".jfif", ".jpe", ".jpeg", ".jpg"},
    "PNG": {".png"},
    "PPM": {".pbm", ".pgm", ".pnm", ".ppm"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}
_SUFFIXES = frozenset().union(*_FORMATS.values())
_EXPECTED = ", ".join(sorted(_SUFFIXES))
# Unsupported picture formats: an error, since ignoring them like other files would lose images
# silently.
_UNREAD = {
    *(".apng", ".avif", ".dib", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".psd", ".svg", ".tga"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),  # camera raw formats
}
_GRAY_MODES = {"1", "L", "LA"}
_PALETTE_MODES = {"P", "PA"}
_MODES = {*_GRAY_MODES, *_PALETTE_MODES, "RGB", "RGBA", "CMYK", "YCbCr"}  # 8 bits a channel
_ORIENTATION = 0x0112  # in EXIF; a camera turned by 90 degrees writes 6 or 8
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_MOST_PIXELS = 1 << 26  # of one image; more is a decompression bomb
_MOST_BYTES = 16 << 30  # of all images, decoded
_CHUNK = 64  # images decoded as one task


class _Image(NamedTuple):
    label: str
    where: str
    read: Callable[[], bytes]


def load(
    contents: list[Files], sources: list[Path], path: Path, size: tuple[int, int] | None
) -> tuple[Dataset, Dataset]:
    """The training and the test part, from one source or one source each."""
    if len(sources) == 1:
        parts = _divide(contents[0], path)
    else:
        parts = [_only_group(files, path) for files, path in zip(contents, sources, strict=True)]
    train, test = parts
    classes = tuple(sorted({image.label for image in train}))
    index = {label: number for number, label in enumerate(classes)}
    if len(classes) < 2:
        raise ValueError(
            f"{path}: all training images lie in one class folder, {classes[0]}; expected two or "
            "more, such as cat/1.png and dog/1.png"
        )
    for image in test:
        if image.label not in index:
            raise ValueError(f"{image.where}: no training image is of class {image.label!r}")

    pixels = _decode(train + test, size, path)
    labels = np.array([index[image.label] for image in train + test], np.int64)
    name = path.name.split(".")[0]
    return (
        Dataset(pixels[: len(train)], labels[: len(train)], classes, name),
        Dataset(pixels[len(train) :], labels[len(train) :], classes, name),
    )


def _divide(files: Files, path: Path) -> tuple[list[_Image], list[_Image]]:
    """The images of ``train/`` and ``test/`` (or ``val/``), or of an undivided data set, split."""
    groups = _groups(files, path)
    by_name = {folder.name: images for folder, images in groups.items()}
    parts = set(by_name)
    if len(groups) == len(parts) and {"train"} < parts <= {"train", "test", "val"}:
        return by_name["train"], by_name["test" if "test" in parts else "val"]
    images = _only_group(files, path)
    train, test = split(np.unique([image.label for image in images], return_inverse=True)[1])
    if len(test) == 0:
        raise ValueError(
            f"{path}: {len(images)} images in {len({image.label for image in images})} classes are "
            "too few to split: every fifth of a class is a test image"
        )
    return [images[i] for i in train], [images[i] for i in test]


def _only_group(files: Files, path: Path) -> list[_Image]:
    groups = _groups(files, path)
    if len(groups) != 1:
        found = ", ".join(repr(str(folder)) for folder in sorted(groups)[:6])
        raise ValueError(
            f"{path}: class folders lie in {len(groups)} folders ({found}); expected one, or "
            "train and test"
        )
    return groups.popitem()[1]


def _groups(files: Files, path: Path) -> dict[PurePosixPath, list[_Image]]:
    """The images under each folder that has class folders, sorted by name."""
    groups, used = defaultdict(list), set()
    for name in sorted(files):
        pure = PurePosixPath(name)
        suffix = pure.suffix.lower()
        if suffix in _UNREAD:
            raise ValueError(
                f"{path}: {name} is a picture that is not read; expected one of {_EXPECTED}"
            )
        if suffix not in _SUFFIXES:
            continue
        if len(pure.parts) < 2:
            raise ValueError(f"{path}: {name} is in no class folder, such as cat/{name}")
        image = _Image(pure.parts[-2], f"{path}: {name}", files[name])
        groups[pure.parent.parent].append(image)
        used.update(pure.parents)
    if not groups:
        packed = [name for name in sorted(files) if archives.is_archive_name(PurePosixPath(name))]
        remedy = f"; pass one of the archives in it, such as {packed[0]}" if packed else ""
        raise ValueError(
            f"{path}: no CIFAR binary files, no idx files and no images "
            f"({_EXPECTED}) among {len(files)} files{remedy}"
        )
    for folder in sorted(set(map(PurePosixPath, files.folders)) - used):
        if folder.parent in groups:
            raise ValueError(
                f"{path}: {folder} lies among class folders and holds no image ({_EXPECTED}); "
                "remove it if it is no class"
            )
    return groups


def _decode(images: list[_Image], size: tuple[int, int] | None, path: Path) -> np.ndarray:
    """The pixels, uint8 of shape (N, C, H, W); C is 1 if every image is gray, else 3."""
    pillow = _pillow()
    height, width = _pixels(pillow, images[0], size)[0].shape[:2]
    if len(images) * 3 * height * width > _MOST_BYTES:
        raise ValueError(
            f"{path}: {len(images)} images of {height}x{width} take more than "
            f"{_MOST_BYTES >> 30} GiB decoded; pass a smaller image_size"
        )
    out = np.empty((len(images), 3, height, width), np.uint8)
    coloured = np.empty(len(images), bool)

    def decode(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(images))):
            pixels, gray = _pixels(pillow, images[i], size)
            if pixels.shape[:2] != (height, width):
                raise ValueError(
                    f"{images[i].where} is {pixels.shape[0]}x{pixels.shape[1]}, but "
                    f"{images[0].where} is {height}x{width}; pass image_size to resize all"
                )
            out[i] = pixels.transpose(2, 0, 1)
            coloured[i] = not gray

    # Small images spend their time in Python, where threads do not help.
    threads = (os.cpu_count() or 1) if height * width > 64 * 64 else 1
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(images), _CHUNK)
        for _ in progress(pool.map(decode, starts), "decoding", " images", len(starts), _CHUNK):
            pass
    if not coloured.any():
        return np.ascontiguousarray(out[:, :1])
    if coloured.mean() < 0.5:
        warnings.warn(
            f"load: {coloured.sum()} of {len(images)} images are in colour, the first of them "
            f"{images[coloured.argmax()].where}; the gray ones too come out with three channels",
            RuntimeWarning,
            stacklevel=2,
        )
    return out


def _pixels(
    pillow: ModuleType, image: _Image, size: tuple[int, int] | None
) -> tuple[np.ndarray, bool]:
    """One image as RGB, uint8 of shape (H, W, 3), and whether it is gray."""
    data = image.read()
    # Pillow's decoders raise almost anything on damaged input, and warnings may be errors too.
    try:
        with pillow.open(io.BytesIO(data), formats=tuple(_FORMATS)) as picture:
            if picture.mode not in _MODES:
                raise ValueError(f"mode {picture.mode}, expected 8 bits a channel")
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(
                    f"{picture.width}x{picture.height} pixels are too many, expected at most "
                    f"{_MOST_PIXELS} in all"
                )
            mode, picture = picture.mode, _upright(pillow, picture)
            picture.info.pop("transparency", None)  # Pillow warns when dropping it
            picture = picture.convert("RGB")
            gray = mode in _GRAY_MODES or (mode in _PALETTE_MODES and _is_gray(picture))
            if size is not None:
                picture = picture.resize(size[::-1], pillow.Resampling.BILINEAR)
            return np.asarray(picture), gray
    except pillow.UnidentifiedImageError:  # its own message names a buffer
        formats = ", ".join(_FORMATS)
        raise ValueError(f"{image.where}: no readable image of {formats}") from None
    except Exception as error:
        raise ValueError(f"{image.where}: no readable image: {error}") from error


def _is_gray(picture: Image) -> bool:
    pixels = np.asarray(picture)
    return bool((pixels == pixels[:, :, :1]).all())


def _upright(pillow: ModuleType, picture: Image) -> Image:
    """The picture, rotated by its EXIF orientation, if that can be read."""
    picture.load()  # before reading EXIF: a damaged picture is an error, damaged EXIF is not
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:
        return picture
    move = _UPRIGHT.get(orientation)
    return picture if move is None else picture.transpose(pillow.Transpose[move])


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "load: images are decoded by Pillow; pip install 'mulfree_cupy[train]'"
        ) from error
    return Image
