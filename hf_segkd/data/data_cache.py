"""`DataCache`: decoded images and masks on disk, memory-mapped, so that a crop reads only its own part of them."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from .cache_files import remove_old_parts, whole_file
from .multiband import MultiBandImage

FORMAT = 1  # of what the files hold; another number makes other files
HEADER = struct.Struct("<8s3Q")  # numpy's name of the number format, height, width, and bands or 0; the numbers follow
MODES = {1: "L", 2: "I;16", 4: "RGBX"}  # PIL's, by the bytes of a pixel: those that it takes from memory as they are


class DataCache:
    """A folder with a file for each decoded image and mask, named by a hash of where it comes from.

    That is of a file its absolute path, size and time of change, so that one that changes without changing these is
    taken for the old one; of a picture in a data set's own rows its bytes; besides, how it is read, and the version of
    Pillow. Cached files are whole or not there, any number of processes may use one folder, and a process that is
    killed loses the files that it was writing.

    Args:
        folder: Where the files lie; it is made.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_old_parts(self.folder)

    def read(
        self, cell: dict[str, Any], how: list[Any], decode: Callable[[], Image.Image | MultiBandImage]
    ) -> Image.Image | MultiBandImage:
        """What `decode` gives, from its file if there is one, else decoded and kept.

        Args:
            cell: `path` and `bytes` of an image or mask.
            how: What else the result depends on, as JSON values.
            decode: Reads it; what it raises is raised.
        """
        try:
            file = self.file(cell, how)
        except OSError:  # there is no such file, which `decode` knows how to say
            return decode()
        values = _load(file)
        if values is None:
            values = _values(decode())
            self._save(values, file)
        return _picture(values)

    def file(self, cell: dict[str, Any], how: list[Any]) -> Path:
        """Where an image or mask is kept; arguments as in `read`.

        Raises:
            OSError: If its own file can't be found.
        """
        if cell["bytes"] is None:
            status = os.stat(cell["path"])
            source = [os.path.abspath(cell["path"]), status.st_size, status.st_mtime_ns]
        else:
            is_matlab = str(cell["path"]).lower().endswith(".mat")
            source = [is_matlab, hashlib.blake2b(cell["bytes"]).hexdigest()]
        key = json.dumps([FORMAT, PIL.__version__, how, source])
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.raw"

    def _save(self, values: np.ndarray, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        with whole_file(file) as part, part.open("wb") as stream:
            stream.write(_header(values))
            stream.write(np.ascontiguousarray(values).data)


def _load(file: Path) -> np.ndarray | None:
    try:
        with file.open("rb") as stream:
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        name, height, width, bands = HEADER.unpack_from(memory)
        shape = (height, width, bands) if bands else (height, width)
        return np.frombuffer(memory, name.decode().rstrip("\0"), math.prod(shape), HEADER.size).reshape(shape)
    except (FileNotFoundError, ValueError, struct.error):  # not there, or cut off when the machine stopped
        return None


def _header(values: np.ndarray) -> bytes:
    height, width, *bands = values.shape
    return HEADER.pack(values.dtype.str.encode(), height, width, *(bands or [0]))


def _values(picture: Image.Image | MultiBandImage) -> np.ndarray:
    """(h, w) of an RGB picture, uint32, which is how PIL holds a pixel; (h, w) of a mask; (h, w, n) of bands."""
    if isinstance(picture, MultiBandImage):
        return picture.values
    if picture.mode == "RGB":
        return np.asarray(picture.convert("RGBX")).view(np.uint32)[..., 0]
    return np.asarray(picture)


def _picture(values: np.ndarray) -> Image.Image | MultiBandImage:
    """What the values were of, without a copy."""
    if values.ndim == 3:
        return MultiBandImage(values)
    mode = MODES[values.itemsize]
    picture = Image.frombuffer(mode, values.shape[::-1], values, "raw", mode, 0, 1)
    if mode == "RGBX":  # RGB has the same memory, with a fourth byte that nothing reads
        picture.im.setmode("RGB")
        picture._mode = "RGB"
    return picture
