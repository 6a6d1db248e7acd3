"""`read_mat`: the matrix of labels in a file of MATLAB, as Pascal Context's 459 classes are released."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .image_files import UnreadableImageError

HEADER_BYTES = 128
# Types of data elements ("MAT-File Format", MathWorks, table 1-1).
NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
MATRIX, COMPRESSED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # of arrays: double, single, and integers of 8 to 64 bits


def read_mat(file: str | BinaryIO, name: str) -> np.ndarray:
    """The first numeric matrix of a level 5 MAT-file (MATLAB's `save` up to -v7), (h, w).

    Args:
        file: Path or stream.
        name: What errors call it.

    Raises:
        UnreadableImageError: If it does not exist, is damaged, or holds no such matrix.
    """
    try:
        data = Path(file).read_bytes() if isinstance(file, str) else file.read()
        for kind, content in _elements(data[HEADER_BYTES:]):
            if kind == COMPRESSED:
                ((kind, content),) = _elements(zlib.decompress(content))
            if kind == MATRIX and (matrix := _matrix(content)) is not None:
                return matrix
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{name}: the file does not exist (moved since it was listed?).") from error
    except (struct.error, zlib.error, KeyError, ValueError) as error:
        raise UnreadableImageError(f"{name}: cannot be decoded, damaged or not of MATLAB's level 5: {error}") from error
    raise UnreadableImageError(f"{name}: holds no matrix of numbers (MATLAB's level 5 format).")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, place)
        if kind >> 16:  # a small element: its size shares the first four bytes with its type
            yield kind & 0xFFFF, data[place + 4 : place + 4 + (kind >> 16)]
            place += 8
            continue
        if place + 8 + size > len(data):
            raise ValueError(f"an element of {size} bytes is cut short")
        yield kind, data[place + 8 : place + 8 + size]
        place += 8 + size + (0 if kind == COMPRESSED else -size % 8)


def _matrix(content: bytes) -> np.ndarray | None:
    """The numbers of an array element; None where it holds text, cells or the like, or has not two dimensions."""
    flags, shape, _, *values = _elements(content)
    array_class = struct.unpack_from("<I", flags[1])[0] & 0xFF
    shape = np.frombuffer(shape[1], "<i4")
    if array_class not in NUMERIC_CLASSES or len(shape) != 2 or not values:
        return None
    kind, numbers = values[0]
    return np.frombuffer(numbers, NUMBERS[kind]).reshape(shape, order="F")
