"""`whole_file`, `remove_old_parts`, `require_room`: files of a cache that many processes share."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

GIB = 2**30
_HOUR = 3600


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives a path to write to; the file appears under its own name when it is whole, or not at all."""
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def remove_old_parts(folder: Path) -> None:
    """Remove what processes that were killed had begun to write, an hour after."""
    for part in folder.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - part.stat().st_mtime > _HOUR:
                part.unlink()


def require_room(
    folder: Path, full: float, missing: float, limit: float | None, option: str, size: str, less: str
) -> str:
    """Make sure that a cache has room; what to tell of it.

    Args:
        folder: Of the cache.
        full: Bytes of the full cache.
        missing: Bytes of what is not there yet.
        limit: GiB that it may take, None for all that the disk has.
        option: Name of the limit.
        size: Sentence without a full stop that tells the size.
        less: Sentence that says how to need less.

    Raises:
        ValueError: If the limit is lower, or the disk has less room.
    """
    free = shutil.disk_usage(folder).free
    if limit is not None and full / GIB > limit:
        raise ValueError(f"{size}. {option} is {limit:g} GiB. {less}")
    told = f"{size}. The disk has {free / GIB:.3g} GiB left."
    if missing > free:
        raise ValueError(f"{told} {less}")
    return told
