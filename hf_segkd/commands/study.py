"""`run_all`: several training runs of one protocol side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_segkd.evaluation.reports import SCORES_FILE, read_json
from hf_segkd.evaluation.run_report import RunReport


@dataclass
class Run:
    """One training run in a process of its own.

    Args:
        script: Path of the script that is launched with accelerate.
        output_dir: The run's folder; a run whose evaluation.json lies there already is not run again.
        flags: The rest of the command line.
    """

    script: Path
    output_dir: Path
    flags: list[str] = field(default_factory=list)

    @property
    def report_file(self) -> Path:
        """The report that the run writes when it is done."""
        return self.output_dir / SCORES_FILE

    @property
    def log_file(self) -> Path:
        """The log of all that the run prints."""
        return self.output_dir / "log.txt"

    def command(self) -> list[str]:
        """The command line."""
        launch = [sys.executable, "-m", "accelerate.commands.launch", str(self.script)]
        return [*launch, "--output_dir", str(self.output_dir), *self.flags]

    def report(self) -> RunReport:
        """The scores of the run."""
        return RunReport.from_json(read_json(self.report_file))


def run_all(runs: Sequence[Run], jobs: int) -> None:
    """Run what is not done yet, `jobs` at a time, each with its share of the processor's cores.

    Raises:
        RuntimeError: If a run fails; the message ends with the last lines of its log.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting = [run for run in runs if not run.report_file.is_file()]
    for run in runs:
        if run not in waiting:
            print(f"{run.output_dir.name}: done before, {run.report_file} is kept", flush=True)
    running: dict[subprocess.Popen, Run] = {}
    last_shown = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[_start(run, threads)] = run
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                _finish(running.pop(process), process.returncode)
            if time.monotonic() - last_shown > 15:
                last_shown = time.monotonic()
                for run in running.values():
                    print(f"  {run.output_dir.name}: {_last_line(run.log_file)}", flush=True)
    finally:
        for process in running:  # the launcher's children too
            os.killpg(process.pid, signal.SIGTERM)


def _start(run: Run, threads: int) -> subprocess.Popen:
    run.output_dir.mkdir(parents=True, exist_ok=True)
    print(f"{run.output_dir.name}: started, log in {run.log_file}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(run.log_file, "w") as log:
        return subprocess.Popen(
            run.command(), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _finish(run: Run, returncode: int) -> None:
    if returncode != 0 or not run.report_file.is_file():
        tail = "\n".join(run.log_file.read_text(errors="replace").splitlines()[-25:])
        raise RuntimeError(f"{run.output_dir.name} failed with exit code {returncode}:\n{tail}")
    report = run.report()
    print(
        f"{run.output_dir.name}: mIoU {report.percent('mean_iou'):.2f} % on {report.split}, "
        f"{report.train_seconds:.0f} s of training"
        + (f" since step {report.resumed_from_step}" if report.resumed_from_step else ""),
        flush=True,
    )


def _last_line(log: Path) -> str:
    """The newest progress bar; bars overwrite themselves with carriage returns."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        parts = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    bars = [part.strip() for part in parts if "%|" in part]
    return bars[-1] if bars else "starting"
