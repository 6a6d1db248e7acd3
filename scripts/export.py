"""Export a network: python scripts/export.py --model DIR_OR_ID --format onnx --dataset NAME [--data_dir DIR]."""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_segkd.commands.exporting import main
from hf_segkd.commands.failures import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
