"""Mean and std of each channel: python scripts/count_statistics.py --dataset NAME --data_dir FOLDER."""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_segkd.commands.cli import run

if __name__ == "__main__":
    run("count_statistics")
