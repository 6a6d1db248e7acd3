import sys
from pathlib import Path

import pytest
from local_hub import LocalHub

sys.path.insert(0, str(Path(__file__).parents[1]))  # tiny_runs


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LocalHub(tmp_path) as hub:
        hub.serve_this_process(monkeypatch)
        yield hub
