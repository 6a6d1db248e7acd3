import json
from pathlib import Path

import pytest

from hf_segkd.commands.study import Run, run_all

SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
if "--fail" in sys.argv:
    raise SystemExit("out of luck")
(folder / "evaluation.json").write_text(json.dumps({"mean_iou": 0.5, "split": "val", "train_seconds": 1.0}))
"""


def runs(tmp_path, *flags):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return [Run(script, tmp_path / name, list(flags)) for name in ("a", "b")]


@pytest.mark.slow
def test_runs_are_made_once_and_kept(tmp_path, capsys):
    run_all(runs(tmp_path), jobs=2)
    run_all(runs(tmp_path, "--fail"), jobs=2)  # would fail if it ran again
    assert [json.loads(Path(tmp_path, name, "evaluation.json").read_text())["mean_iou"] for name in "ab"] == [0.5, 0.5]
    assert "done before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_fails_stops_the_study_with_the_end_of_its_log(tmp_path):
    with pytest.raises(RuntimeError, match="out of luck"):
        run_all(runs(tmp_path, "--fail"), jobs=1)
