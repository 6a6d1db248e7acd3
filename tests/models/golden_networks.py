"""The reference networks that lie outside the repository: recipe of weights and images, facts, and logits."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest


def reference_network(file):
    """The module `recipe`, the contents of FILE.json and those of FILE.npz; skips the test where they are missing."""
    root = Path(__file__).parents[2]
    folder = (root / os.environ.get("HF_SEGKD_SHARED", "../shared")).resolve() / "golden" / "networks"
    if not (folder / f"{file}.json").is_file():
        pytest.skip(f"no {file}.json in {folder}; HF_SEGKD_SHARED names the folder that holds golden/")
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe, json.loads((folder / f"{file}.json").read_text()), np.load(folder / f"{file}.npz")
