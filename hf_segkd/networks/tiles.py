"""Pictures larger than a network can take at once: `tiled_logits` shows it tile after tile and blends what it says.

Neighbours overlap. Near its border a network sees less than there is, so the outer quarters of an overlap count for the
neighbour alone; over the half between them one tile fades into the other, linearly. Where the receptive field reaches
no further than a quarter of the overlap, the result is that of the whole picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Blended logits that exist at a time, 4 MiB of them: as much as the caches of a processor hold.
BLENDED_AT_ONCE = 2**20


def tile_and_overlap(tile: int | Sequence[int], overlap: int | None = None) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of tiles and of their overlap, checked.

    Args:
        tile: Side of a tile in pixels, or its height and width.
        overlap: How far neighbours overlap, in pixels; by default a quarter of the tile's side.

    Raises:
        ValueError: If it is not one number or two, or the overlap is not between 1 and half a tile.
    """
    sides = (tile,) if isinstance(tile, int) else tuple(tile)
    if len(sides) not in (1, 2) or min(sides) < 4:
        raise ValueError(f"tile takes one side or height and width in pixels, 4 at least, such as 512; got {tile}.")
    sides = (sides[0], sides[-1])
    overlaps = tuple(side // 4 if overlap is None else overlap for side in sides)
    if not all(1 <= each <= side // 2 for each, side in zip(overlaps, sides, strict=True)):
        raise ValueError(
            f"overlap must lie between 1 and half the side of a tile, here {min(sides) // 2}; got {overlap}. A quarter "
            "of the side, the default, suits most networks."
        )
    return sides, overlaps


def check_tile(tile: int | Sequence[int] | None, overlap: int | None = None) -> None:
    """Make sure that flags say how tiles lie, or that there are none.

    Raises:
        ValueError: As `tile_and_overlap`, or if there is an overlap of no tiles.
    """
    if tile is not None:
        tile_and_overlap(tile, overlap)
    elif overlap is not None:
        raise ValueError(f"overlap is {overlap}, and there is no tile: give the side of the tiles, too.")


def tiled_logits(
    logits_of: Callable[[Tensor], Tensor],
    image: Tensor,
    size: tuple[int, int],
    tile: int | Sequence[int] | None = None,
    overlap: int | None = None,
    align_corners: bool | None = None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Logits of an image at a size, block after block, each pixel once.

    Logits are interpolated from the tiles' as `logits_at` does it (bilinear, align_corners=False), by points that are
    computed in float64; memory holds two tiles and strips of the row above at the network's resolution, and a block.
    Sides of tiles and overlaps that are multiples of the network's stride (32 suits most) keep its grid of the whole
    image.

    Args:
        logits_of: Images (1, 3, hh, ww) -> logits (1, k, h, w), of any stride.
        image: The image as its processor gives it, (1, 3, height, width).
        size: Height and width of the result.
        tile: As in `tile_and_overlap`; None is one tile, the whole image.
        overlap: As in `tile_and_overlap`.
        align_corners: Resize the logits of a tile to the tile first, in this way, as networks of hf_segkd do it unless
            they are told not to; None does not.

    Yields:
        Rows and columns of the result, and the logits there, (k, rows, columns) float32.
    """
    sides, overlaps = (image.shape[-2:], (0, 0)) if tile is None else tile_and_overlap(tile, overlap)
    axes = zip(image.shape[-2:], size, sides, overlaps, strict=True)
    rows, columns = (_windows(*axis, align_corners) for axis in axes)
    above: list[_Tile | None] = [None] * len(columns)
    for row in rows:
        before = None
        for index, column in enumerate(columns):
            tile_image = image[..., row.start : row.stop, column.start : column.stop]
            here = _Tile(logits_of(tile_image)[0].float(), row, column)
            corner = above[index - 1] if index else None
            touching = [tile for tile in (corner, above[index], before, here) if tile is not None]
            yield from _blocks(touching, row, column)
            if before is not None:
                before.keep_rows_below(row.block.stop)
                above[index - 1] = before
            before = here
        before.keep_rows_below(row.block.stop)
        above[-1] = before


def _blocks(tiles: Sequence[_Tile], row: _Window, column: _Window) -> Iterator[tuple[slice, slice, Tensor]]:
    """What is complete with the tile in this row and column, in squares."""
    num_labels = len(tiles[0].logits)
    side = max(1, math.isqrt(BLENDED_AT_ONCE // num_labels))
    for rows, columns in itertools.product(_parts(row.block, side), _parts(column.block, side)):
        blended = tiles[0].logits.new_zeros(num_labels, rows.stop - rows.start, columns.stop - columns.start)
        for tile in tiles:
            tile.add_to(blended, rows, columns)
        yield rows, columns, blended


def _parts(block: slice, length: int) -> list[slice]:
    return [slice(first, min(first + length, block.stop)) for first in range(block.start, block.stop, length)]


@dataclass(frozen=True)
class _Window:
    """Where a tile lies along one axis, in pixels of the image that the network sees.

    Attributes:
        start: Its first pixel.
        stop: The one behind its last.
        seams: Where it takes over from its neighbour before it, and its neighbour behind it from it.
        ramp: Over how many pixels around a seam.
        scale: Pixels that the network sees for each one of the result.
        block: Pixels of the result that are complete with it.
        align_corners: As in `tiled_logits`.
    """

    start: int
    stop: int
    seams: tuple[float, float]
    ramp: float
    scale: float
    block: slice
    align_corners: bool | None

    def weights(self, pixels: slice, length: int) -> tuple[slice, Tensor]:
        """What a tile with `length` values along the axis says of some pixels of the result: matrix times values.

        Linear interpolation gives a value the weight 1 - its distance, in 0..1; and the pixel counts as far as the
        tile has faded in, (y - seam) / ramp + 1/2 in 0..1 at its first seam, and its neighbour has not.

        Returns:
            The values that count, and their weights (pixels, values) float32.
        """
        points = (torch.arange(pixels.start, pixels.stop, dtype=torch.float64) + 0.5) * self.scale
        share = _faded_in(points, self.seams[0], self.ramp) - _faded_in(points, self.seams[1], self.ramp)
        if not (counted := (share > 0).nonzero()[:, 0]).numel():
            return slice(0, 0), torch.zeros(len(points), 0)
        inside = slice(int(counted[0]), int(counted[-1]) + 1)
        side = self.stop - self.start
        values, matrix = _interpolation(
            points[inside] - self.start, side, length if self.align_corners is None else side
        )
        if self.align_corners is not None:
            of_tile = torch.arange(values.start, values.stop, dtype=torch.float64) + 0.5
            values, resized = _interpolation(of_tile, side, length, self.align_corners)
            matrix = matrix @ resized
        weights = matrix.new_zeros(len(points), values.stop - values.start)
        weights[inside] = matrix * share[inside, None]
        return values, weights.float()


def _interpolation(points: Tensor, side: int, length: int, align_corners: bool = False) -> tuple[slice, Tensor]:
    """Values at points of an axis of `side` pixels, ascending, from `length` values on it: which, and their weights."""
    if align_corners:
        centres = (points - 0.5) * ((length - 1) / max(side - 1, 1))
    else:
        centres = points * (length / side) - 0.5
    centres = centres.clamp(0, length - 1)
    values = slice(int(centres[0]), min(int(centres[-1]) + 2, length))
    distances = (centres[:, None] - torch.arange(values.start, values.stop)).abs()
    return values, (1 - distances).clamp(min=0)


def _faded_in(points: Tensor, seam: float, ramp: float) -> Tensor:
    if math.isinf(seam):
        return torch.full_like(points, float(seam < 0))
    return ((points - seam) / ramp + 0.5).clamp(0, 1)


def _windows(length: int, size: int, side: int, overlap: int, align_corners: bool | None) -> list[_Window]:
    """The tiles along an axis of `length` pixels of which the result has `size`; the last ends where the axis does."""
    starts = [0] if length <= side else [*range(0, length - side, side - overlap), length - side]
    stops = [min(start + side, length) for start in starts]
    seams = [-math.inf, *((start + stop) / 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)), math.inf]
    ramp, scale = overlap / 2, length / size
    # A window is complete up to where its neighbour begins to count.
    ends = [math.ceil((seam - ramp / 2) / scale - 0.5) for seam in seams[1:-1]]
    ends = [0, *ends, size]
    return [
        _Window(
            start, stop, tuple(seams[index : index + 2]), ramp, scale, slice(*ends[index : index + 2]), align_corners
        )
        for index, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


class _Tile:
    """Logits (k, h, w) of a tile, at their own resolution."""

    def __init__(self, logits: Tensor, row: _Window, column: _Window) -> None:
        self.logits, self.row, self.column = logits, row, column
        self.height, self.first = logits.shape[1], 0  # as they came, and the first row that is still there

    def keep_rows_below(self, pixel: int) -> None:
        """Give free what no row of the result from `pixel` on needs."""
        values, _ = self.row.weights(slice(pixel, math.ceil(self.row.stop / self.row.scale) + 1), self.height)
        self.logits, self.first = self.logits[:, values].clone(), values.start

    def add_to(self, blended: Tensor, rows: slice, columns: slice) -> None:
        """Add what it says of these rows and columns of the result to (k, rows, columns)."""
        down, row_weights = self.row.weights(rows, self.height)
        across, column_weights = self.column.weights(columns, self.logits.shape[2])
        if row_weights.numel() and column_weights.numel():
            part = self.logits[:, down.start - self.first : down.stop - self.first, across]
            blended += row_weights.to(part.device) @ (part @ column_weights.T.to(part.device))
