"""The resize in JavaScript of cards, docs and the static page gives Pillow's values."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from hf_segkd.publishing.javascript import resize_source

PROGRAM = """
class RawImage {
  constructor(data, width, height, channels) { Object.assign(this, { data, width, height, channels }); }
}
%s
const cases = JSON.parse((await import("fs")).readFileSync(0));
console.log(JSON.stringify(cases.map(([data, from, to]) => {
  const image = resized(new RawImage(Uint8ClampedArray.from(data), from[1], from[0], from[2]), to[1], to[0]);
  return { shape: [image.height, image.width, image.channels], data: [...image.data] };
})));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_resized_gives_pillows_values():
    rng = np.random.default_rng(0)
    sizes = [((40, 60), (8, 12)), ((37, 53), (11, 20)), ((9, 50), (16, 10)), ((7, 5), (14, 15)), ((6, 8), (6, 8))]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size, _ in sizes]
    cases = [[image.ravel().tolist(), image.shape, to] for image, (_, to) in zip(images, sizes, strict=True)]
    command = ["node", "--input-type=module", "--eval", PROGRAM % resize_source()]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    for found, image, (_, to) in zip(json.loads(done.stdout), images, sizes, strict=True):
        expected = np.array(Image.fromarray(image).resize((to[1], to[0]), Image.Resampling.BILINEAR))
        assert found["shape"] == list(expected.shape)
        np.testing.assert_array_equal(np.reshape(found["data"], expected.shape), expected)
