"""Class of each pixel of a photo: python run_onnx.py photo.jpg mask.png [model.onnx].

Needs numpy, pillow and onnxruntime. All that is special about the network is read from the file itself.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def load(path):
    """The network, and how to use it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    return session, {name: json.loads(text) for name, text in texts.items()}


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


def resize_axis(array, length, axis):
    """Linear interpolation between the centres of the pixels along one axis."""
    old = array.shape[axis]
    centres = np.clip((np.arange(length, dtype=np.float32) + 0.5) * np.float32(old / length) - 0.5, 0, old - 1)
    low = centres.astype(int)
    shape = [1, 1, 1]
    shape[axis] = length
    weight = (centres - low).reshape(shape)
    high = np.minimum(low + 1, old - 1)
    return array.take(low, axis) * (1 - weight) + array.take(high, axis) * weight


def segment(session, facts, image):
    """Class of each pixel of an RGB image, (height, width)."""
    (output,) = session.run(None, {facts["input"]: prepare(image, facts)})
    if facts["output"] == "mask":
        return np.asarray(Image.fromarray(output[0]).resize(image.size, Image.Resampling.NEAREST))
    logits = resize_axis(resize_axis(output[0], image.height, 1), image.width, 2)
    return logits.argmax(axis=0).astype(np.uint8 if len(logits) <= 256 else np.uint16)


def main(photo, target, model="model.onnx"):
    """Write the mask of a photo and print which classes it has; `model` lies beside this file."""
    session, facts = load(Path(__file__).with_name(model))
    if "num_bands" in facts:
        sys.exit(f"The network takes images of {facts['num_bands']} bands as they are stored; prepare() says how.")
    mask = segment(session, facts, ImageOps.exif_transpose(Image.open(photo)).convert("RGB"))
    Image.fromarray(mask).save(target)
    for index, count in enumerate(np.bincount(mask.ravel())):
        if count:
            print(f"{facts['id2label'][str(index)]}: {100 * count / mask.size:.1f} %")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
