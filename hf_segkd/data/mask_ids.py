"""`MaskReader`: class ids from a mask file, whether it holds them as numbers or as colours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import BinaryIO

import numpy as np
from PIL import Image

from .image_files import open_image
from .labels import IGNORE_INDEX, Colour, LabelScheme
from .mat_files import read_mat

COLOUR_MODES = ("RGB", "RGBA")
BYTE_MODES = ("1", "L", "P")
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "F")
SAMPLES_PER_PIXEL = 277  # tag of TIFF
NUM_BYTES, NUM_WIDE = 256, 65536
GREY: list[Colour] = [(level, level, level) for level in range(NUM_BYTES)]


class MaskReader:
    """Reads masks as a `LabelScheme` says.

    Args:
        scheme: What numbers and colours in the files mean.
    """

    def __init__(self, scheme: LabelScheme) -> None:
        self.scheme = scheme
        self.dtype = np.uint8 if scheme.info.ignore_index == IGNORE_INDEX else np.uint16
        self._by_number = np.full(NUM_WIDE, -1, dtype=np.int32)
        for number, class_id in scheme.raw_to_id.items():
            self._by_number[number] = class_id
        self._colours = dict(scheme.colours or {})
        codes = np.array([_code(colour) for colour in self._colours], dtype=np.int32)
        order = codes.argsort()
        self._codes, self._class_ids = codes[order], np.array([*self._colours.values()], dtype=self.dtype)[order]

    @cached_property
    def tables(self) -> str:
        """A hash of what the file's numbers and colours become."""
        hashed = hashlib.blake2b(f"{self.scheme.read_colours} {np.dtype(self.dtype)}".encode(), digest_size=16)
        for table in (self._by_number, self._codes, self._class_ids):
            hashed.update(table.tobytes())
        return hashed.hexdigest()

    def read(self, file: str | BinaryIO, name: str) -> Image.Image:
        """Class ids of a mask.

        Args:
            file: Path or stream.
            name: What errors call it; a name that ends in ".mat" is a matrix of MATLAB.

        Returns:
            PIL "L" of class ids and 255; with more than 255 classes "I;16" of class ids and 65535. Its
            `info["numbers"]()` gives the numbers that the file holds, sorted; None where it was read by its colours;
            `info["colours"]` are the colours that a palette of its own gives these numbers, None without one.

        Raises:
            ValueError: If the file is damaged, is a picture whose colours are not known, or holds a number that the
                data set does not know; it names the file.
        """
        if name.lower().endswith(".mat"):
            return self._from_wide(read_mat(file, name), "MATLAB", name)
        return self.of_picture(open_image(file, name), name)

    def of_picture(self, mask: Image.Image, name: str) -> Image.Image:
        """Class ids of a mask that is a picture in memory; otherwise as `read`."""
        bands = mask.tag_v2.get(SAMPLES_PER_PIXEL, 1) if mask.format == "TIFF" else 1
        dropped = f" and {bands} bands" if bands > len(mask.getbands()) else ""
        if dropped or mask.mode not in (*BYTE_MODES, *WIDE_MODES, *COLOUR_MODES):
            raise ValueError(
                f"{name}: the mask has mode {mask.mode}{dropped}, need one channel of class ids (PIL mode L or P), or "
                "the colours of the classes in RGB."
            )
        if mask.mode in COLOUR_MODES:
            return self._from_colours(np.asarray(mask.convert("RGB")), mask.mode, name)
        if mask.mode in WIDE_MODES:
            return self._from_wide(np.asarray(mask), mask.mode, name)
        palette = _palette(mask) if mask.mode == "P" else None
        return self._from_bytes(np.asarray(mask).astype(np.uint8, copy=False), palette, name)

    def of_numbers(self, numbers: np.ndarray, name: str) -> Image.Image:
        """Class ids of a mask that is a matrix (h, w) of whole numbers; otherwise as `read`."""
        if numbers.dtype == np.uint8:
            return self._from_bytes(np.ascontiguousarray(numbers), None, name)
        return self._from_wide(numbers, str(numbers.dtype), name)

    def blank(self, size: tuple[int, int]) -> Image.Image:
        """Class ids of an image of (width, height) that has no mask file."""
        ids = np.full(size[::-1], self.scheme.without_mask, dtype=self.dtype)
        return _described(Image.fromarray(ids), None, None)

    def _from_bytes(self, numbers: np.ndarray, palette: list[Colour] | None, name: str) -> Image.Image:
        """Class ids of (h, w) uint8 numbers, which may have a palette."""
        picture = Image.fromarray(numbers)
        if palette is None and not self.scheme.read_colours and self._knows_all(numbers):
            return _described(self._look_up(picture, self._by_number[:NUM_BYTES]), partial(_present, picture), None)
        present = np.array(_present(picture))
        colours = None if palette is None else {int(number): palette[number] for number in present}
        if self.scheme.read_colours:
            table = self._by_colours(present, palette or GREY)
            self._refuse_colours([(palette or GREY)[number] for number in present if table[number] < 0], name)
            return _described(self._look_up(picture, table), None, None)
        table = self._by_number[:NUM_BYTES]
        is_grey = palette is None or all(colours[number] == GREY[number] for number in colours)
        if self._colours and self.scheme.read_colours is None and not is_grey:
            by_colour = self._by_colours(present, palette)
            self._refuse_contradiction(colours, table, by_colour, name)
            if (table[present] < 0).any() and (by_colour[present] >= 0).all():
                return _described(self._look_up(picture, by_colour), None, None)
        self._refuse_numbers(present[table[present] < 0], name)
        return _described(self._look_up(picture, table), present.tolist, colours)

    def _knows_all(self, numbers: np.ndarray) -> bool:
        """Whether all numbers up to the highest are known, or up to the highest below 255, and 255 too.

        For (h, w) uint8 it takes a tenth of the time of counting each number.
        """
        known = self._by_number[:NUM_BYTES] >= 0
        if known[: int(numbers.max()) + 1].all():
            return True
        below = int((numbers + np.uint8(1)).max())  # 255 becomes 0
        return bool(known[:below].all() and known[NUM_BYTES - 1])

    def _from_colours(self, pixels: np.ndarray, mode: str, name: str) -> Image.Image:
        """Class ids of (h, w, 3) uint8: by the colours of the classes where they are known, else by equal channels."""
        if self._colours and self.scheme.read_colours is not False:
            codes = pixels.astype(np.int32) @ (1 << 16, 1 << 8, 1)
            found = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
            unknown = self._codes[found] != codes
            if unknown.any():
                self._refuse_colours([tuple(colour) for colour in np.unique(pixels[unknown], axis=0).tolist()], name)
            return _described(Image.fromarray(self._class_ids[found]), None, None)
        first = pixels[..., 0]
        if (first != pixels[..., 1]).any() or (first != pixels[..., 2]).any():
            raise ValueError(
                f"{name}: cannot read the {mode} mask: its three channels differ, so it is a colour picture and not "
                "class ids. Where the colour of each class is known, give them (`palette`, or a class file that has "
                "them)."
            )
        return self._from_bytes(np.ascontiguousarray(first), None, name)

    def _from_wide(self, numbers: np.ndarray, mode: str, name: str) -> Image.Image:
        """Class ids of (h, w) numbers of more than 8 bits, or whole ones among floats."""
        if numbers.dtype.kind == "f":
            whole = np.isfinite(numbers) & (numbers == np.rint(numbers))
            if not whole.all():
                raise ValueError(f"{name}: the mask holds {numbers[~whole][0]}, and class ids are whole numbers.")
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= NUM_WIDE:
            raise ValueError(self._beyond(name, mode, low, high))
        numbers = numbers.astype(np.uint16)
        present = np.flatnonzero(np.bincount(numbers.ravel(), minlength=NUM_WIDE))
        unknown = present[self._by_number[present] < 0]
        if len(unknown) and unknown[-1] >= NUM_BYTES:
            raise ValueError(self._beyond(name, mode, int(unknown[0]), int(unknown[-1])))
        self._refuse_numbers(unknown, name)
        ids = Image.fromarray(self._by_number.astype(self.dtype)[numbers])
        return _described(ids, present.tolist, None)

    def _look_up(self, picture: Image.Image, table: np.ndarray) -> Image.Image:
        """The class id of each number of an "L" picture; those that the table lacks do not occur in it."""
        if self.dtype == np.uint16:
            return Image.fromarray(table.astype(np.uint16)[np.asarray(picture)])
        # A table look-up inside PIL takes half the time of indexing a numpy table.
        return picture.point(np.where(table < 0, 0, table).tolist())

    def _by_colours(self, present: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
        """(256,) class ids of the numbers that occur, by the colours of a palette; -1 for unknown colours."""
        table = np.full(NUM_BYTES, -1, dtype=np.int32)
        for number in present:
            table[number] = self._colours.get(palette[number], -1)
        return table

    def _refuse_numbers(self, unknown: np.ndarray, name: str) -> None:
        if len(unknown):
            values = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            info = self.scheme.info
            raise ValueError(
                f"{name}: label out of range: {values}; {info.name} has {info.num_labels} classes. "
                f"{self.scheme.out_of_range_hint}"
            )

    def _beyond(self, name: str, mode: str, low: int, high: int) -> str:
        info = self.scheme.info
        return (
            f"{name}: label out of range: {low}..{high} in a mask of mode {mode}; {info.name} has {info.num_labels} "
            f"classes. Are these instance ids instead of class ids? {self.scheme.out_of_range_hint}"
        )

    def _refuse_colours(self, unknown: Sequence[Colour], name: str) -> None:
        if unknown:
            colours = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise ValueError(
                f"{name}: colours that no class has: {colours}. Does `palette` lack a class, is it a colour without a "
                "class (ignore_index takes colours too: [[r, g, b]]), was the mask smoothed, or are its equal channels "
                "class ids (read_colours=False)?"
            )

    def _refuse_contradiction(
        self, colours: dict[int, Colour], by_number: np.ndarray, by_colour: np.ndarray, name: str
    ) -> None:
        """Raise where a number of a palette mask is that of one class, and its colour that of another."""
        for number, colour in colours.items():
            both_known = by_colour[number] >= 0 and by_number[number] >= 0
            if both_known and by_colour[number] != by_number[number]:
                names = {**self.scheme.info.id2label, self.scheme.info.ignore_index: "no class"}
                raise ValueError(
                    f"{name}: number {number} of the palette mask is {names[by_number[number]]!r}, and its colour "
                    f"{colour} is that of {names[by_colour[number]]!r}. Say which counts: read_colours=True where the "
                    "colours are right (some tools write another palette into each file), False where the numbers are."
                )


def _described(
    ids: Image.Image, numbers: Callable[[], list[int]] | None, colours: dict[int, Colour] | None
) -> Image.Image:
    ids.info = {"numbers": numbers, "colours": colours}
    return ids


def _present(picture: Image.Image) -> list[int]:
    """The numbers that an "L" picture holds."""
    return np.flatnonzero(picture.histogram()).tolist()


def _palette(mask: Image.Image) -> list[Colour]:
    """The 256 colours of a palette mask; numbers beyond a short palette are black, as viewers draw them."""
    levels = np.zeros(3 * NUM_BYTES, dtype=int)
    palette = mask.getpalette("RGB")
    levels[: len(palette)] = palette
    return [tuple(colour) for colour in levels.reshape(-1, 3).tolist()]


def _code(colour: Colour) -> int:
    return (colour[0] << 16) + (colour[1] << 8) + colour[2]
