"""The methods side by side on CamVid, at a size that a CPU trains in minutes.

    python scripts/camvid.py --data_dir CAMVID --teacher_weights FILE [--output runs/camvid] [--jobs 2]

One teacher (MobileNetV2 with ImageNet weights), and for each method and seed one student (MobileNetV2 of width 0.35
from random weights) under one protocol: same images, steps, optimizer and learning rate; each method with the weights
its paper or its authors' code gives. The last step is scored; nothing is selected. The test split is used once, for
the table. Runs that are done are not repeated, so an interrupted study goes on where it was.

This checks that the methods work. It is not a reproduction of the papers' tables.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import contextlib
import io
import json

from transformers import AutoModelForSemanticSegmentation

from hf_segkd.commands import evaluate
from hf_segkd.commands.study import Run, run_all
from hf_segkd.evaluation.reports import METRICS, mean_and_std, read_json, table
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.networks.profiling import count_macs

SCRIPTS = Path(__file__).parent
RECIPES = SCRIPTS.parent / "hf_segkd" / "recipes"
METHODS = ("none", "kd", "cwd", "attnfd", "fakd_pd", "fakd_cwd")
IMAGE_SIZE = (180, 240)


def main() -> None:
    """Train what is missing, score every network on the test split, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir", required=True, help="folder with train/, val/ and test/, each images/ and labels/"
    )
    parser.add_argument(
        "--teacher_weights",
        default="IMAGENET1K_V1",
        help="torchvision's name of the teacher's ImageNet weights, or a file",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/camvid"), help="folder for everything")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="epochs of the students, by default the recipe's")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()

    teacher = Run(
        SCRIPTS / "train.py",
        options.output / "teacher",
        [*recipe("camvid_teacher", options), "--pretrained_backbone", options.teacher_weights],
    )
    students = {method: [student(method, seed, options) for seed in options.seeds] for method in options.methods}
    run_all([teacher], jobs=1)
    # Seed by seed, so that a study that is cut short has complete seeds.
    run_all([runs[index] for index in range(len(options.seeds)) for runs in students.values()], options.jobs)
    text = results(teacher, students, options)
    (options.output / "results.md").write_text(text + "\n")
    print(f"\n{text}\n\nWritten to {options.output / 'results.md'}.")


def recipe(name: str, options: argparse.Namespace) -> list[str]:
    """Flags of a recipe and its data."""
    return ["--config", str(RECIPES / f"{name}.yaml"), "--data_dir", options.data_dir]


def student(method: str, seed: int, options: argparse.Namespace) -> Run:
    """One student."""
    flags = [*recipe("camvid", options), "--method", method, "--seed", str(seed)]
    if method != "none":
        flags += ["--teacher", str(options.output / "teacher")]
    if options.epochs is not None:
        flags += ["--num_train_epochs", str(options.epochs)]
    return Run(SCRIPTS / "distill.py", options.output / f"{method}-seed{seed}", flags)


def results(teacher: Run, students: dict[str, list[Run]], options: argparse.Namespace) -> str:
    """The table of the test split, with each method's gain over the student alone, seed by seed."""
    header = ["", "test mIoU %", "gain", "mean class acc. %", "pixel acc. %", "val mIoU %", "training, CPU min"]
    alone = [percent(run, options)["mean_iou"] for run in students.get("none", [])]
    rows = []
    for name, runs in {"teacher": [teacher], **students}.items():
        scores = [percent(run, options) for run in runs]
        gains = [score["mean_iou"] - base for score, base in zip(scores, alone, strict=False)]
        rows.append(
            [
                "student alone" if name == "none" else name,
                mean_and_std([score["mean_iou"] for score in scores]),
                "" if name in ("teacher", "none") or not gains else mean_and_std(gains),
                mean_and_std([score["mean_accuracy"] for score in scores]),
                mean_and_std([score["overall_accuracy"] for score in scores]),
                mean_and_std([run.report().percent("mean_iou") for run in runs]),
                mean_and_std([run.report().train_processor_seconds / 60 for run in runs], digits=1),
            ]
        )
    sizes = " ".join(
        size(name, run) for name, run in (("Teacher", teacher), ("student", next(iter(students.values()))[0]))
    )
    steps = teacher.report().steps, next(iter(students.values()))[0].report().steps
    return (
        f"CamVid, 11 classes, images at {IMAGE_SIZE[1]} x {IMAGE_SIZE[0]}, labels at 480 x 360, seeds "
        f"{options.seeds}, mean ± std. {sizes} Batch 8; {steps[0]} steps for the teacher, {steps[1]} for students. "
        f"Last step, no selection.\n\n{table(header, rows)}"
    )


def percent(run: Run, options: argparse.Namespace) -> dict[str, float]:
    """Scores on the test split in percent; computed once, then read from the run's folder."""
    path = run.output_dir / "test.json"
    if not path.is_file():
        config = json.dumps({"classes": list(run.report().classes)})
        flags = ["--model", str(run.output_dir), "--dataset", "folder", "--data_dir", options.data_dir]
        flags += ["--dataset_options", config, "--split", "test", "--batch_size", "8", "--output", str(path)]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate.main(flags)
    report = RunReport.from_json(read_json(path))
    return {metric: report.percent(metric) for metric in METRICS}


def size(name: str, run: Run) -> str:
    """Parameters and multiply-adds of a network."""
    model = AutoModelForSemanticSegmentation.from_pretrained(run.output_dir)
    macs = count_macs(model, IMAGE_SIZE)
    return f"{name}: {model.num_parameters() / 1e6:.2f} M parameters, {macs / 1e9:.2f} GMACs."


if __name__ == "__main__":
    main()
