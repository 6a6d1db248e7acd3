"""`run_all`: several training runs of one protocol side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout

from hf_segkd.commands import cli
from hf_segkd.commands.live_table import LiveTable
from hf_segkd.evaluation.reports import ARGUMENTS_FILE, SCORES_FILE, read_json
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.training.checkpoints import checkpoints_in

SECONDS_BETWEEN_LOOKS = 15
SECONDS_TO_SAVE = 60


@dataclass
class Run:
    """One training run in a process of its own.

    Args:
        script: Path of the script that is launched, or name of the command.
        output_dir: The run's folder; a run that is done there is not run again, and one that was interrupted goes on
            from its last checkpoint.
        flags: The rest of the command line.
        may_diverge: Whether a run that ended because a loss or gradient was not finite is done, without a score; by
            default it has failed.
    """

    script: Path | str
    output_dir: Path
    flags: list[str] = field(default_factory=list)
    may_diverge: bool = False

    @property
    def report_file(self) -> Path:
        """The report that the run writes when it is done."""
        return self.output_dir / SCORES_FILE

    @property
    def log_file(self) -> Path:
        """The log of all that the run prints."""
        return self.output_dir / "log.txt"

    @property
    def is_done(self) -> bool:
        """Whether the student is saved too, which comes after its scores, or it may diverge and has."""
        return self.has_diverged or (self.report_file.is_file() and (self.output_dir / ARGUMENTS_FILE).is_file())

    @property
    def has_diverged(self) -> bool:
        """Whether the run may diverge and has; the trainer then leaves a folder."""
        return self.may_diverge and any(self.output_dir.glob("nonfinite-step-*"))

    def command(self) -> list[str]:
        """The command line."""
        resumed = ["--resume_from_checkpoint", "last"] if checkpoints_in(self.output_dir) else []
        launched = [str(self.script)] if isinstance(self.script, Path) else ["-m", cli.__name__, self.script]
        return [sys.executable, *launched, "--output_dir", str(self.output_dir), *self.flags, *resumed]

    def report(self) -> RunReport:
        """The scores of the run."""
        return RunReport.from_json(read_json(self.report_file))


def run_all(runs: Sequence[Run], jobs: int, table: LiveTable | None = None, threads: int | None = None) -> None:
    """Run what is not done yet, `jobs` at a time, each with its share of the processor's cores, and one GPU if any.

    Args:
        runs: The runs, in the order in which they are started.
        jobs: Number of runs at a time; on GPUs they are dealt out to these in turn.
        table: Shows the state of the runs; by default each prints lines.
        threads: Threads of each run; by default its share of the cores.

    Raises:
        ValueError: If a run fails; the message ends with the last lines of its log. The others are asked to end, as
            with Ctrl-C, and write a checkpoint.
    """
    threads = threads or threads_of(jobs)
    gpus, free = visible_gpus(), list(range(jobs))
    waiting = [run for run in runs if not run.is_done]
    for run in runs:
        if run not in waiting and table is not None:
            table.states[run.output_dir.name] = _score(run)
        elif run not in waiting:
            print(f"{run.output_dir.name}: done before, {run.report_file} is kept", flush=True)
    running: dict[subprocess.Popen, tuple[Run, int]] = {}
    last_shown = time.monotonic()
    with _sigterm_as_exit():
        try:
            while waiting or running:
                while waiting and free:
                    run, slot = waiting.pop(0), free.pop(0)
                    _tell(table, run, "starts", f"started, log in {run.log_file}")
                    running[_start(run, threads, gpus[slot % len(gpus)] if gpus else None)] = run, slot
                time.sleep(0.5)
                for process in [process for process in running if process.poll() is not None]:
                    run, slot = running.pop(process)
                    free.append(slot)
                    _finish(run, process.returncode, table)
                if time.monotonic() - last_shown > SECONDS_BETWEEN_LOOKS:
                    last_shown = time.monotonic()
                    for run, _ in running.values():
                        bar = _last_line(run.log_file)
                        _tell(table, run, bar.partition("%|")[0].split()[-1] + " %" if "%|" in bar else bar, bar)
        finally:
            _end(list(running))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other comparisons out of a folder. The lock ends with the process at the latest, also if it is killed.

    Raises:
        ValueError: If another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another comparison is at work in {folder}, and two would train the same runs. Wait for it or stop it, or "
            "choose another --output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def threads_of(jobs: int) -> int:
    """Each run's share of the cores, with so many at a time."""
    return max(1, (os.cpu_count() or 1) // jobs)


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Inside, SIGTERM ends this process as Ctrl-C does, and so its runs, instead of leaving them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(run: Run, threads: int, gpu: str | None) -> subprocess.Popen:
    run.output_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with open(run.log_file, "a") as log:  # of an interrupted run, too
        return subprocess.Popen(
            run.command(), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _finish(run: Run, returncode: int, table: LiveTable | None) -> None:
    if run.has_diverged:
        _tell(table, run, _score(run), "a loss or gradient was not finite")
        return
    if returncode != 0 or not run.is_done:
        tail = "\n".join(run.log_file.read_text(errors="replace").splitlines()[-25:])
        raise ValueError(f"{run.output_dir.name} failed with exit code {returncode}:\n{tail}")
    report = run.report()
    text = f"mIoU {_score(run)} % on {report.split}, {report.train_seconds:.0f} s of training"
    since = f" since step {report.resumed_from_step}" if report.resumed_from_step else ""
    _tell(table, run, _score(run), text + since)


def _end(processes: list[subprocess.Popen]) -> None:
    """Ask processes to end, and wait while they write their checkpoints."""
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _score(run: Run) -> str:
    if run.has_diverged:
        return "diverged"
    score = run.report().mean_iou
    return "no" if score is None else f"{100 * score:.2f}"


def _tell(table: LiveTable | None, run: Run, state: str, line: str) -> None:
    name = run.output_dir.name
    if table is not None:
        table.show(name, state)
    else:
        print(f"{name}: {line}", flush=True)


def _last_line(log: Path) -> str:
    """The newest progress bar; bars overwrite themselves with carriage returns."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        parts = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    bars = [part.strip() for part in parts if "%|" in part]
    return bars[-1] if bars else "starting"
