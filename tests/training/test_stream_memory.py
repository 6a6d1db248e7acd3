"""A run on a long stream takes no more memory than one on a short stream."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("stream_memory.py")
ROOT = SCRIPT.parents[2]


def peak(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(SCRIPT), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=1200)
    return int(run.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [[], ["mixed"]])
def test_memory_does_not_grow_with_the_number_of_images(mixed):
    assert peak("10000", *mixed) - peak("1000", *mixed) < 20  # MB; 9,000 of these crops take 27
