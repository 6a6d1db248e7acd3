"""Methods side by side: python scripts/compare.py --config FILE.yaml --methods cwd attnfd [--flag value]."""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_segkd.commands.cli import run

if __name__ == "__main__":
    run("compare")
