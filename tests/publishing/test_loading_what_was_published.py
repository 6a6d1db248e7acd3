"""What a user gets who loads a published student in a process of his own, with an empty cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import scenes, trainer

NAME = "tester/student"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # how huggingface_hub calls its HTTP client

WITH_THE_PACKAGE = """
import json, sys
import torch
from PIL import Image
import hf_segkd
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from hf_segkd.networks.loading import load_network

processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1])
assert type(model).__module__.startswith("hf_segkd.")
try:
    load_network("tester/nobody")
except ValueError as error:
    assert "neither a folder with a saved network" in str(error)
else:
    raise AssertionError("There is no such repository.")
image = Image.open(sys.argv[2])
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
mask = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
print(json.dumps(mask.tolist()))
"""

WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["hf_segkd"] = None  # any import of it fails now, installed or not
import numpy as np
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
segment = pipeline("image-segmentation", model=sys.argv[1], trust_remote_code=True, device="cpu")
image = Image.open(sys.argv[2])
mask = np.full(image.size[::-1], 255)
for piece in segment(image, subtask="semantic"):
    mask[np.asarray(piece["mask"]) > 0] = model.config.label2id[piece["label"]]
print(json.dumps(mask.tolist()))
"""


@pytest.mark.parametrize(
    ("program", "self_contained"),
    [
        pytest.param(WITH_THE_PACKAGE, False, id="with_the_package", marks=pytest.mark.slow),
        pytest.param(WITHOUT_THE_PACKAGE, True, id="without_the_package"),
    ],
)
def test_a_published_student_sees_the_same_in_another_process(program, self_contained, hub, tmp_path):
    run = trainer(tmp_path / "run", hub_model_id=NAME, hub_self_contained=self_contained)
    run.train()
    run.push_to_hub(private=True)
    (sample,) = scenes("val", 1)
    sample["image"].save(tmp_path / "image.png")
    output = subprocess.run(
        [sys.executable, "-c", program, NAME, str(tmp_path / "image.png")],
        env={**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT) if not self_contained else ""},
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    mask = np.array(json.loads(output.splitlines()[-1]))
    run.evaluate(scenes("val", 1))
    truth = np.array(sample["annotation"])
    matrix = np.zeros((4, 4), dtype=int)
    np.add.at(matrix, (truth[truth != 255], mask[truth != 255]), 1)
    assert matrix.tolist() == run.confusion_matrix.tolist()
    assert any("/resolve/" in path for _, path, status in hub.requests if status == 200)
