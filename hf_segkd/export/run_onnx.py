"""Class of each pixel of a photo: python run_onnx.py photo.jpg mask.png [model.onnx] [--tile 1024].

Needs numpy, pillow and onnxruntime. All that is special about the network is read from the file itself.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# The entries of the metadata that the export writes.
NEEDED = ("input", "output", "size", "resample", "rescale_factor", "image_mean", "image_std", "id2label")
OPTIONAL = ("num_bands", "license", "versions")


def load(path):
    """The network, and how to use it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, own_facts(session.get_modelmeta().custom_metadata_map)


def own_facts(texts):
    """What the export wrote into the file; other programs add entries of their own, which need not be JSON."""
    missing = [name for name in NEEDED if name not in texts]
    if missing:
        raise SystemExit(
            f"The file does not say how to use it: its metadata lacks {', '.join(missing)}. Use the file as the export "
            "wrote it; programs that change a file may have dropped them."
        )
    return {name: json.loads(texts[name]) for name in (*NEEDED, *OPTIONAL) if name in texts}


def prepare(image, facts):
    """An RGB image as the network takes it, (1, 3, height, width) float32."""
    size = facts["size"]
    if size is not None:
        if "shortest_edge" in size:
            edge = size["shortest_edge"]
            new_size = [int(edge * side / min(image.size)) for side in image.size]
        else:
            new_size = [size["width"], size["height"]]
        image = image.resize(new_size, Image.Resampling(facts["resample"]))
    pixels = np.asarray(image, dtype=np.float32) * np.float32(facts["rescale_factor"])
    pixels = (pixels - np.float32(facts["image_mean"])) / np.float32(facts["image_std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


class Window:
    """Where a tile lies along one axis: neighbours fade into each other over the middle half of their overlap."""

    def __init__(self, start, stop, seams, overlap, scale, block):
        """From pixel `start` to `stop` of what the network sees; `block` are the mask's pixels complete with it."""
        self.start, self.stop, self.seams, self.overlap, self.scale, self.block = (
            start,
            stop,
            seams,
            overlap,
            scale,
            block,
        )

    def weights(self, pixels, length):
        """Which of `length` values say something of the mask's pixels, and by how much: (pixels, values)."""
        points = (np.arange(pixels.start, pixels.stop) + 0.5) * self.scale
        faded = [np.clip((points - seam) / (self.overlap / 2) + 0.5, 0, 1) for seam in self.seams]
        share = faded[0] - faded[1]
        if not share.any():
            return slice(0, 0), np.zeros((len(points), 0), np.float32)
        centres = np.clip((points - self.start) * length / (self.stop - self.start) - 0.5, 0, length - 1)
        counted = centres[share > 0].astype(int)
        values = slice(counted[0], counted[-1] + 2)
        distances = abs(centres[:, None] - np.arange(length)[values])
        return values, (np.maximum(1 - distances, 0) * share[:, None]).astype(np.float32)


def windows(length, size, side, overlap):
    """The tiles along an axis of `length` pixels, of which the mask has `size`."""
    starts = [0] if length <= side else [*range(0, length - side, side - overlap), length - side]
    stops = [min(start + side, length) for start in starts]
    seams = [(start + stop) / 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    ends = [int(np.ceil((seam - overlap / 4) * size / length - 0.5)) for seam in seams]
    seams, ends = [-np.inf, *seams, np.inf], [0, *ends, size]
    return [
        Window(start, stop, seams[i : i + 2], overlap, length / size, slice(*ends[i : i + 2]))
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def lower_part(tile):
    """Of a tile, (logits, their first row, how many rows there were, Window, Window), what the row below it needs."""
    logits, _, height, row, column = tile
    values, _ = row.weights(slice(row.block.stop, int(row.stop / row.scale) + 1), height)
    return logits[:, values].copy(), values.start, height, row, column


def fill(mask, tiles, row, column):
    """The part of the mask that is complete with the tile in this row and column, 64 x 64 pixels at a time."""
    for top in range(row.block.start, row.block.stop, 64):
        rows = slice(top, min(top + 64, row.block.stop))
        for left in range(column.block.start, column.block.stop, 64):
            columns = slice(left, min(left + 64, column.block.stop))
            blended = 0
            for logits, first, height, tile_row, tile_column in tiles:
                down, row_weights = tile_row.weights(rows, height)
                across, column_weights = tile_column.weights(columns, logits.shape[2])
                if row_weights.size and column_weights.size:
                    part = logits[:, down.start - first : down.stop - first, across]
                    blended = blended + row_weights @ (part @ column_weights.T)
            mask[rows, columns] = blended.argmax(axis=0)


def segment(session, facts, image, tile=None, overlap=None):
    """Class of each pixel of an RGB image, (height, width); the network sees it whole, or by tiles that overlap."""
    pixels = prepare(image, facts)
    (_, _, *taken) = session.get_inputs()[0].shape
    if tile is not None and (facts["output"] == "mask" or any(isinstance(side, int) for side in taken)):
        raise SystemExit(
            "tiles need a network that takes any size and gives logits: export with --dynamic, no --argmax"
        )
    if facts["output"] == "mask":
        (output,) = session.run(None, {facts["input"]: pixels})
        return np.asarray(Image.fromarray(output[0]).resize(image.size, Image.Resampling.NEAREST))
    mask = np.empty((image.height, image.width), np.uint8 if len(facts["id2label"]) <= 256 else np.uint16)
    side = max(pixels.shape) if tile is None else tile
    overlap = max(1, side // 4) if overlap is None else overlap
    if not 1 <= overlap <= side // 2:
        raise SystemExit(f"the overlap must lie between 1 and half of the tile, {side // 2}; it is {overlap}")
    axes = zip(pixels.shape[2:], mask.shape, strict=True)
    rows, columns = (windows(length, size, side, overlap) for length, size in axes)
    above = [None] * len(columns)
    for row in rows:
        before = None
        for index, column in enumerate(columns):
            part = np.ascontiguousarray(pixels[:, :, row.start : row.stop, column.start : column.stop])
            logits = session.run(None, {facts["input"]: part})[0][0]
            here = (logits, 0, logits.shape[1], row, column)
            corner = above[index - 1] if index else None
            fill(mask, [tile for tile in (corner, above[index], before, here) if tile], row, column)
            if before:
                above[index - 1] = lower_part(before)
            before = here
        above[-1] = lower_part(before)
    return mask


def main():
    """Write the mask of a photo and print which classes it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("mask")
    parser.add_argument("model", nargs="?", default="model.onnx", help="lies beside this file")
    parser.add_argument("--tile", type=int, help="side of the tiles that a large photo is shown in")
    parser.add_argument("--overlap", type=int, help="how many pixels they share, by default a quarter of the side")
    given = parser.parse_args()
    session, facts = load(Path(__file__).with_name(given.model))
    if "num_bands" in facts:
        raise SystemExit(
            f"The network takes images of {facts['num_bands']} bands as they are stored; prepare() says how."
        )
    photo = ImageOps.exif_transpose(Image.open(given.photo)).convert("RGB")
    mask = segment(session, facts, photo, given.tile, given.overlap)
    Image.fromarray(mask).save(given.mask)
    for index, count in enumerate(np.bincount(mask.ravel())):
        if count:
            print(f"{facts['id2label'][str(index)]}: {100 * count / mask.size:.1f} %")


if __name__ == "__main__":
    main()
