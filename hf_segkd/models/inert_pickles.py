"""`inert_objects`: lets a checkpoint hold the logs of its training beside the weights, without making any of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

# Packages of which trainers leave objects in a checkpoint (log buffers, numbers, times, paths). None is made: each name
# stands for an `Inert`, so it does not matter what the packages hold, nor whether they are installed.
PACKAGES = ("mmengine", "mmcv", "mmseg", "numpy", "datetime", "pathlib")
# Others that such objects are made with: `getattr` is how Python pickles the methods in mmengine's log buffers.
PLAIN = ("getattr", "frozenset", "slice", "range", "list", "dict", "tuple", "int", "float", "str", "bool", "object")
# Those of files from before PyTorch 1.6, which can't be listed without reading the file.
ALWAYS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.ndarray", "numpy.dtype", "datetime.datetime", "datetime.timedelta", "pathlib.PosixPath"),
    *(f"builtins.{name}" for name in PLAIN),
)


class Inert:
    """Stands for an object in a pickle: takes whatever it would be made from, and keeps nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def inert_dict(*args: object) -> dict:
    """Stands for a kind of dict, which a pickle fills after it was made."""
    return {}


def inert_list(*args: object) -> list:
    """Stands for a kind of list, which a pickle fills after it was made."""
    return []


FILLED = {"collections.defaultdict": inert_dict, "collections.deque": inert_list}


@contextlib.contextmanager
def inert_objects(path: Path) -> Iterator[None]:
    """Inside, `torch.load(path, weights_only=True)` reads objects of `PACKAGES` as `Inert`; others stay refused.

    Args:
        path: A file of `torch.save`.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file of the older form
        named = []
    found = {name for name in named if name.partition(".")[0] in PACKAGES}
    stand_ins = dict.fromkeys((*ALWAYS, *sorted(found)), Inert) | FILLED
    with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
        yield
