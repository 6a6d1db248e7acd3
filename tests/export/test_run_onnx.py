import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import network
from transformers import SegformerImageProcessor

from hf_segkd.export import run_onnx
from hf_segkd.export.graph import DenseNetwork
from hf_segkd.export.metadata import describe
from hf_segkd.networks.inference import predict


class Session:
    """What ONNX Runtime gives, from PyTorch: its interface takes seconds to make, and is tested with the exports."""

    def __init__(self, model, shape=("batch", 3, "height", "width")):
        self.model, self.shape, self.seen = DenseNetwork(model), shape, []

    def get_inputs(self):
        return [SimpleNamespace(shape=self.shape)]

    def run(self, outputs, inputs):
        (pixel_values,) = inputs.values()
        self.seen.append(pixel_values.shape[2:])
        with torch.inference_mode():
            return [self.model(torch.from_numpy(pixel_values)).numpy()]


def picture(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def case(**size):
    model = network().eval()
    processor = SegformerImageProcessor(do_resize=bool(size), size=size or None, do_reduce_labels=False)
    return model, processor, json.loads(json.dumps(describe(model, processor, "logits")))


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, None), (96, 48), (500, None)])
def test_tiles_are_those_of_predict(tile, overlap):
    model, processor, facts = case()
    session, image = Session(model), picture(150, 201)
    mask = run_onnx.segment(session, facts, image, tile, overlap)
    expected = predict(model, processor, image, tile, overlap).numpy()
    assert len(np.unique(expected)) > 1
    # The file resizes the logits of each tile to the tile, and PyTorch blends them at their own resolution.
    assert (mask == expected).mean() > 0.999
    assert set(session.seen) == {(min(tile, 150), min(tile, 201))}


def test_a_photo_that_is_shown_whole_has_the_mask_of_predict():
    model, processor, facts = case(height=64, width=96)
    image = picture(128, 192)
    mask = run_onnx.segment(Session(model, (1, 3, 64, 96)), facts, image)
    assert (mask == predict(model, processor, image).numpy()).mean() > 0.98  # resized twice


def test_tiles_of_a_file_for_one_size_or_of_masks_are_refused():
    model, _, facts = case()
    with pytest.raises(SystemExit, match="takes any size and gives logits"):
        run_onnx.segment(Session(model, (1, 3, 64, 96)), facts, picture(64, 96), 32)
    with pytest.raises(SystemExit, match="takes any size and gives logits"):
        run_onnx.segment(Session(model), facts | {"output": "mask"}, picture(64, 96), 32)
    with pytest.raises(SystemExit, match="between 1 and half of the tile, 16; it is 20"):
        run_onnx.segment(Session(model), facts, picture(64, 96), 32, 20)


def test_entries_of_other_programs_do_not_matter():
    _, _, facts = case(height=64, width=96)
    texts = {name: json.dumps(value) for name, value in facts.items()}
    assert run_onnx.own_facts(texts | {"onnxsim_version": "0.8.1", "note": "{not JSON", "empty": ""}) == facts


def test_a_file_that_lost_its_own_entries_says_which():
    _, _, facts = case(height=64, width=96)
    texts = {name: json.dumps(value) for name, value in facts.items() if name not in ("size", "image_std")}
    with pytest.raises(SystemExit, match="its metadata lacks size, image_std"):
        run_onnx.own_facts(texts | {"note": "x"})


def test_every_entry_that_is_written_is_read():
    model = network()
    model.config.license = "mit"
    facts = describe(model, SegformerImageProcessor(), "logits")
    assert set(facts) | {"num_bands"} == {*run_onnx.NEEDED, *run_onnx.OPTIONAL}
