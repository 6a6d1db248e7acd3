"""The main job, offline: teach a small network what a larger one knows, on generated scenes.

    python scripts/demo.py [--output runs/demo] [--seeds 0 1 2 3] [--max_steps N]

Trains a teacher, then the same student on the labels alone and with AttnFD, each with four seeds and the same budget.
Ends with a table, a picture, and the lines of Python that load the result.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import time

import numpy as np
import torch
import yaml
from PIL import Image

from hf_segkd.commands.study import Run, run_all
from hf_segkd.data import load_segmentation_dataset
from hf_segkd.evaluation.reports import METRICS, mean_and_std, table
from hf_segkd.networks.loading import load_network
from hf_segkd.networks.profiling import count_macs, milliseconds_per_image
from hf_segkd.publishing.publication import compare

SCRIPTS = Path(__file__).parent
RECIPES = SCRIPTS.parent / "hf_segkd" / "recipes"


def main() -> None:
    """Run the demo; what is done already (the teacher, finished students) is not done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="one student per seed and method")
    parser.add_argument("--max_steps", help="steps of each run, for a quick look; by default those of the recipes")
    arguments = parser.parse_args()
    start = time.monotonic()
    steps = [] if arguments.max_steps is None else ["--max_steps", arguments.max_steps]
    config = ["--config", str(RECIPES / "demo_teacher.yaml")]
    teacher = Run(SCRIPTS / "train.py", arguments.output / "teacher", [*config, *steps])
    alone = [student(arguments.output, "alone", seed, ["--method", "none", *steps]) for seed in arguments.seeds]
    distilling = ["--teacher", str(teacher.output_dir), *steps]
    distilled = [student(arguments.output, "attnfd", seed, distilling) for seed in arguments.seeds]
    run_all([teacher], jobs=1)
    run_all([*alone, *distilled], jobs=1 if torch.cuda.is_available() else 2)

    student_cost = cost(alone[0])  # the same network in both rows
    rows = [
        ["teacher", *scores([teacher]), *cost(teacher)],
        ["student, labels alone", *scores(alone), *student_cost],
        ["student, AttnFD", *scores(distilled), *student_cost],
    ]
    header = ["", "mIoU %", "mean class acc. %", "pixel acc. %", "parameters", "MACs", "ms per image"]
    print(f"\nGenerated scenes, {teacher.report().num_images} validation images, last step, no selection.")
    print(f"Students: seeds {arguments.seeds}, mean ± std, the same recipe and number of steps.\n")
    print(table(header, rows))
    print("\n" + verdict(alone, distilled))
    picture = arguments.output / "comparison.png"
    draw(teacher, alone[0], distilled[0]).save(picture)
    print(f"\nPicture: {picture}    Time: {time.monotonic() - start:.0f} s\n\nLoad the distilled student:\n")
    print("    import hf_segkd")
    print("    from transformers import AutoModelForSemanticSegmentation")
    print(f'    model = AutoModelForSemanticSegmentation.from_pretrained("{distilled[0].output_dir}")')
    publish = f"python scripts/publish.py --model {distilled[0].output_dir} --repo_id USER/NAME --dry_run"
    print(f"\nWrite its model card: {publish}")


def student(output: Path, name: str, seed: int, flags: list[str]) -> Run:
    """A student of the demo's recipe."""
    config = ["--config", str(RECIPES / "demo.yaml"), "--seed", str(seed)]
    return Run(SCRIPTS / "distill.py", output / f"{name}-seed{seed}", [*config, *flags])


def scores(runs: list[Run]) -> list[str]:
    """Each metric in percent, over the seeds."""
    reports = [run.report() for run in runs]
    return [mean_and_std([report.percent(metric) for report in reports]) for metric in METRICS]


def cost(run: Run) -> list[str]:
    """Parameters, multiply-adds and time per image of a network."""
    model, processor = load_network(str(run.output_dir))
    size = (processor.size["height"], processor.size["width"])
    return [
        f"{model.num_parameters() / 1e6:.3f} M",
        f"{count_macs(model, size) / 1e9:.3f} G",
        f"{milliseconds_per_image(model, size):.1f}",
    ]


def verdict(alone: list[Run], distilled: list[Run]) -> str:
    """Whether distillation helped, seed by seed, said as it is."""
    gains = [
        better.report().percent("mean_iou") - plain.report().percent("mean_iou")
        for plain, better in zip(alone, distilled, strict=True)
    ]
    seeds = f"mIoU points by seed: {', '.join(f'{gain:+.2f}' for gain in gains)}; mean {np.mean(gains):+.2f}"
    if np.mean(gains) <= 0:
        return f"AttnFD did NOT gain here ({seeds})."
    better = sum(gain > 0 for gain in gains)
    return f"AttnFD is better with {better} of {len(gains)} seeds ({seeds})."


def draw(teacher: Run, alone: Run, distilled: Run) -> Image.Image:
    """Image, truth, teacher, student, distilled student, in the data set's colours."""
    runs = {"teacher": teacher, "student, labels alone": alone, "student, AttnFD": distilled}
    networks = {title: load_network(str(run.output_dir)) for title, run in runs.items()}
    options = yaml.safe_load((RECIPES / "demo.yaml").read_text())["dataset_options"]
    return compare(load_segmentation_dataset("demo", split="val", **options).select(range(4)), networks)


if __name__ == "__main__":
    main()
