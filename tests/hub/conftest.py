import pytest
from local_hub import LocalHub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LocalHub(tmp_path) as hub:
        hub.serve_this_process(monkeypatch)
        yield hub
