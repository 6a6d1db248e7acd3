"""Convert a checkpoint: python scripts/convert_checkpoint.py --checkpoint FILE --source mmsegmentation --output DIR."""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_segkd.commands.conversion import main
from hf_segkd.commands.failures import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
