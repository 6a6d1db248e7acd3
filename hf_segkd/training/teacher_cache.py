"""`TeacherCache`: what a loss reads of the teacher, kept on disk for each crop from its first use on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset
from hf_segkd.data.cache_files import GIB, remove_old_parts, require_room, whole_file
from hf_segkd.networks.teacher import Teacher
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.run_settings import run_settings
from hf_segkd.types import Features

logger = logging.get_logger(__name__)

KEY_FILE = "teacher_cache.json"
# Ends the name of a map whose channels are stored last, as they lie in memory.
_CHANNELS_LAST = "|channels_last"


class TeacherCache:
    """A folder with a safetensors file for each crop, named by a hash of the crop's pixels.

    So a file can only be taken for the very crop that the teacher saw. Files are whole or not there, any number of
    processes may use one folder, and a process that is killed loses the files that it was writing.

    Args:
        folder: Where the files lie; it is made.
        dtype: Number format of the files.
        key: What the files depend on, and which crops there will be, as JSON values.

    Raises:
        ValueError: If the folder is the cache of another key; it names what differs.
    """

    def __init__(self, folder: str | os.PathLike, dtype: torch.dtype, key: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.dtype = dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_old_parts(self.folder)
        self._check(json.loads(json.dumps(key)))

    def features(self, images: Tensor, crops: Sequence[str], compute: Callable[[Tensor], Features]) -> Features:
        """The teacher's features of a batch: from the files if all are there, else computed and kept.

        Args:
            images: The crops, (b, c, h, w).
            crops: Hash of each.
            compute: Images -> features.

        Raises:
            ValueError: If a value does not fit the number format.
        """
        files = [self._file(crop) for crop in crops]
        found = [_load(file) for file in files]
        if all(features is not None for features in found):
            return _batch(found, images.device)
        features = compute(images)
        stored = _as_stored(features)
        for index, file in enumerate(files):
            if found[index] is None:
                self._save({tap: feature[index] for tap, feature in stored.items()}, file)
        return features

    def announce(self, features: Features, crops: int, limit: float | None) -> None:
        """Tell how much room the cache takes when it is full, and make sure that there is so much.

        Args:
            features: The teacher's features of one image.
            crops: How many crops there can be.
            limit: GiB that it may take, None for all that the disk has.

        Raises:
            ValueError: If the limit is lower, or the disk has less room.
        """
        of_one = self.dtype.itemsize * sum(feature.numel() for feature in features.values())
        there = sum(1 for _ in self.folder.glob("*/*.safetensors"))
        full, missing = of_one * crops, of_one * max(0, crops - there)
        size = (
            f"The teacher cache {self.folder} takes up to {full / GIB:.3g} GiB: {crops} crops of "
            f"{of_one / 2**20:.3g} MiB in {str(self.dtype).removeprefix('torch.')}; {there} are there"
        )
        less = "Fewer teacher_views, smaller crops, or a method that reads fewer features take less."
        logger.warning(require_room(self.folder, full, missing, limit, "teacher_cache_limit", size, less))

    def _check(self, key: dict[str, Any]) -> None:
        file = self.folder / KEY_FILE
        if not file.is_file():
            with whole_file(file) as part:
                part.write_text(json.dumps(key, indent=2))
        before = json.loads(file.read_text())
        names = [name for name in {**before, **key} if before.get(name) != key.get(name)]
        if names:
            differ = "\n".join(f"- {name}: {before.get(name)!r}, this run has {key.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.folder} is the teacher cache of another run. It was made with\n{differ}\nRun with the same "
                "settings, or give another folder as teacher_cache; this one can be deleted when no run needs it."
            )

    def _file(self, crop: str) -> Path:
        return self.folder / crop[:2] / f"{crop}.safetensors"

    def _save(self, features: Features, file: Path) -> None:
        stored = {tap: feature.to(self.dtype).cpu().contiguous() for tap, feature in features.items()}
        for tap, feature in stored.items():
            if not feature.isfinite().all():
                if not features[tap].isfinite().all():
                    return  # the run stops at it, and says where it comes from
                raise ValueError(
                    f"The teacher's {tap} holds {float(features[tap].abs().max()):.3g}, which is too large for "
                    f"{self.dtype}. Set teacher_cache_dtype to float32 or bfloat16."
                )
        file.parent.mkdir(exist_ok=True)
        with whole_file(file) as part:
            save_file(stored, part)


def teacher_cache(
    args: DistillationArguments,
    images: Any,
    distiller: Distiller,
    teacher: Teacher | None,
    processor: Any,
) -> TeacherCache | None:
    """The cache that `args` asks for; None where they ask for none.

    Args:
        args: Arguments of the run.
        images: The trainer's training data set.
        distiller: The student and the loss.
        teacher: The teacher, as the run uses it.
        processor: The student's image processor.

    Raises:
        ValueError: If there is no teacher, its features depend on the other images of a batch, the data set draws
            endless views, or the folder is the cache of another run.
    """
    if args.teacher_cache is None:
        return None
    if teacher is None:
        raise ValueError("teacher_cache keeps what a teacher says, and there is no teacher: leave it out.")
    if teacher.uses_batch_statistics:
        raise ValueError(
            "The teacher's batch norms take the statistics of each batch, so what it says of an image depends on the "
            "other images of its batch and can't be kept. Leave teacher_cache out, or set teacher_batch_norm to eval."
        )
    if not isinstance(images, AugmentedDataset):
        raise ValueError(
            "teacher_cache needs crops that come again, as those of load_segmentation_dataset do with teacher_views; "
            f"train_dataset is {type(images).__name__}."
        )
    if not args.teacher_views:
        raise ValueError(
            "teacher_cache needs teacher_views, the number of crops that an image is seen in (such as 4): without it "
            "each epoch draws new ones, and none comes again."
        )
    settings = run_settings(args, images, distiller.network, teacher, processor, distiller.loss)
    names = ("crop_size", "scale_range", "scale_base", "flip_probability", "max_class_share", "photometric")
    parts = ("teacher", "teacher's config", "teacher's taps", "teacher's pixels", "class map", "image processor")
    key = {
        "features": list(distiller.loss.teacher_taps),
        **{name: settings[name] for name in parts},
        **{name: settings["arguments"][name] for name in ("bf16", "fp16", "channels_last", *names)},
        "names of the training images": settings["names of the training images"],
        "seed of the images": images.seed,
        "teacher_views": args.teacher_views,
        "teacher_dtype": str(teacher.dtype),
        "teacher_cache_dtype": args.teacher_cache_dtype,
    }
    return TeacherCache(args.teacher_cache, getattr(torch, args.teacher_cache_dtype), key)


def _as_stored(features: Features) -> Features:
    """Maps as they lie in memory, so that they come back in the same layout."""
    return {
        f"{tap}{_CHANNELS_LAST}" if _lies_channels_last(feature) else tap: (
            feature.permute(0, 2, 3, 1) if _lies_channels_last(feature) else feature
        )
        for tap, feature in features.items()
    }


def _lies_channels_last(feature: Tensor) -> bool:
    last = feature.ndim == 4 and feature.is_contiguous(memory_format=torch.channels_last)
    return last and not feature.is_contiguous()


def _load(file: Path) -> Features | None:
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):  # not there, or cut off when the machine stopped
        return None


def _batch(found: Sequence[Features], device: torch.device) -> Features:
    stacked = {tap: torch.stack([features[tap] for features in found]).to(device) for tap in found[0]}
    return {
        tap.removesuffix(_CHANNELS_LAST): feature.permute(0, 3, 1, 2) if tap.endswith(_CHANNELS_LAST) else feature
        for tap, feature in stacked.items()
    }
