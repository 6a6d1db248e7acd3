"""One student, from `make demo` to the Hub, and back by every way that a user has: always the same mask."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import open_page, require_browser, segment, start_app
from local_hub import LocalHub

from hf_segkd.commands import export, publish
from hf_segkd.data import load_segmentation_dataset
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network

ROOT = Path(__file__).parents[1]
DATA = {"image_size": [96, 128], "num_classes": 4}  # of the demo's recipes
STUDENT, SPACE = "tester/student", "tester/page"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

FROM_PRETRAINED = """
import sys
import numpy as np
from PIL import Image
import hf_segkd
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from hf_segkd.networks.inference import predict

name, image, target = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(name)
np.save(target, predict(model, AutoImageProcessor.from_pretrained(name), Image.open(image)).numpy())
"""

PIPELINE_WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_segkd"] = None  # any import of it fails now, installed or not
import numpy as np
from PIL import Image
from transformers import pipeline

name, image, target = sys.argv[1:]
segment = pipeline("image-segmentation", model=name, trust_remote_code=True, device="cpu")
pieces = segment(Image.open(image), subtask="semantic")
mask = np.full(np.asarray(pieces[0]["mask"]).shape, 255)
for piece in pieces:
    mask[np.asarray(piece["mask"]) > 0] = segment.model.config.label2id[piece["label"]]
np.save(target, mask)
"""

ONNX_FROM_THE_HUB = """
import subprocess, sys
import numpy as np
from huggingface_hub import snapshot_download
from PIL import Image

name, image, target = sys.argv[1:]
folder = snapshot_download(name, allow_patterns="onnx/*") + "/onnx"
subprocess.run([sys.executable, folder + "/run_onnx.py", image, target + ".png"], check=True)
np.save(target, np.asarray(Image.open(target + ".png")))
"""


@pytest.mark.slow
def test_a_student_goes_from_the_demo_to_every_user_with_one_mask(tmp_path, monkeypatch):
    require_browser()
    pytest.importorskip("gradio", reason="needs gradio (pip install hf-segkd[app])")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install hf-segkd[export])")
    # What `make demo` runs, with one seed and fewer steps.
    demo = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--output", "demo", "--seeds", "0", "--max_steps", "40"]
    shown = subprocess.run(demo, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    assert "student, distilled" in shown
    student = tmp_path / "demo" / "distilled-seed0"

    model, processor = load_network(str(student))
    picture = load_segmentation_dataset("demo", split="val", **DATA)[1]["image"]
    photo = tmp_path / "scene.png"
    picture.save(photo)
    expected = predict(model, processor, picture).numpy()
    assert len(np.unique(expected)) > 1

    data = ["--dataset", "demo", "--dataset_options", json.dumps(DATA)]
    export.main(["--model", str(student), "--format", "onnx", *data, "--num_images", "4", "--latency_runs", "0"])
    with LocalHub(tmp_path) as hub:
        with monkeypatch.context() as patch:
            hub.serve_this_process(patch)
            flags = ["--model", str(student), "--repo_id", STUDENT, "--self_contained", "--license", "apache-2.0"]
            publish.main([*flags, "--space", SPACE])
        assert "onnx/model.onnx" in hub.files(STUDENT)

        for program in (FROM_PRETRAINED, PIPELINE_WITHOUT_THE_PACKAGE, ONNX_FROM_THE_HUB):
            mask = in_another_process(program, photo, tmp_path / "mask.npy", hub)
            assert np.array_equal(mask, expected), program

        space = tmp_path / "space"
        for name, content in hub.files(SPACE, kind="spaces").items():
            (space / name).parent.mkdir(parents=True, exist_ok=True)
            (space / name).write_bytes(content)
        downloads = tmp_path / "downloads"
        downloads.mkdir()
        environment = {**hub.environment(), "HF_HUB_OFFLINE": "0"}
        with (
            start_app(space / "app.py", cwd=space, environment=environment) as url,
            open_page(url, downloads) as page,
        ):
            _, masks = segment(page, photo, downloads)
        assert masks.keys() == {"student"}
        assert np.array_equal(masks["student"], expected)


def in_another_process(program, photo, target, hub):
    """The mask that a program finds, which knows nothing but the student's name on the Hub."""
    command = [sys.executable, "-c", program, STUDENT, str(photo), str(target)]
    environment = {**ENVIRONMENT, **hub.environment()}
    ran = subprocess.run(command, env=environment, cwd=target.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return np.load(target)
