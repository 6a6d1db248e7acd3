"""Flags for the tests of whole commands: small networks, few small images."""

import json

from tiny_runs import SIZE

OPTIONS = {"image_size": list(SIZE), "num_classes": 4, "num_images": 8}
BASE = {
    "dataset": "demo",
    "dataset_options": OPTIONS,
    "image_size": list(SIZE),
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "save_strategy": "no",
    "disable_tqdm": True,
    "preflight_images": 0,  # teachers have random weights
    "use_cpu": True,
}
STUDENT = {"backbone": "mobilenet_v2", "depth_multiplier": 0.1, "aspp_channels": 8, "decoder_channels": 8}


def flags(folder, **values):
    """A YAML file (JSON is YAML) and the flags that read it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**BASE, **values}))
    return ["--config", str(path), "--output_dir", str(folder)]
