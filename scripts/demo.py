"""The main job, offline: few labels, many images, and a small network that learns from both, on generated scenes.

    python scripts/demo.py [--output runs/demo] [--seeds 0 1 2 3 4] [--max_steps N]

A teacher learns from all 512 labelled scenes. Then the same student learns, with each seed and in equally many steps
of equally many images, from a few of the labels, and from these few, the teacher and images without labels.
Ends with a table, a picture, and the lines of Python that load the result.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import resource
import time

import datasets
import numpy as np
import torch
import yaml
from PIL import Image

from hf_segkd.commands.compare import curve
from hf_segkd.commands.study import Run, run_all
from hf_segkd.data import load_segmentation_dataset
from hf_segkd.evaluation.metrics import confusion_matrix
from hf_segkd.evaluation.reports import METRICS, mean_and_std, table
from hf_segkd.evaluation.typical import in_words, middle_images, middle_seed
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network
from hf_segkd.networks.profiling import count_macs, milliseconds_per_image
from hf_segkd.publishing.publication import compare

SCRIPTS = Path(__file__).parent
RECIPES = SCRIPTS.parent / "hf_segkd" / "recipes"
UNLABELLED = 1024
SEED_OF_UNLABELLED = 1000  # scenes that no other split has
ALONE, DISTILLED = "student, labels alone", "student, distilled"


def main() -> None:
    """Run the demo; what is done already (the teacher, finished students) is not done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one student of each kind a seed")
    parser.add_argument("--max_steps", help="steps of each run, for a quick look; by default those of the recipes")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else 2, help="runs at a time")
    parser.add_argument("--threads", type=int, help="threads of each run; by default its share of the cores")
    arguments = parser.parse_args()
    start = time.monotonic()
    recipe = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    images = write_unlabelled(arguments.output / "unlabelled", recipe["dataset_options"])
    steps = [] if arguments.max_steps is None else ["--max_steps", arguments.max_steps]
    config = ["--config", str(RECIPES / "demo_teacher.yaml")]
    teacher = Run(SCRIPTS / "train.py", arguments.output / "teacher", [*config, *steps])
    alone = [student(arguments.output, "alone", seed, ["--method", "none", *steps]) for seed in arguments.seeds]
    distilling = ["--teacher", str(teacher.output_dir), "--unlabelled_dir", str(images), *steps]
    distilled = [student(arguments.output, "distilled", seed, distilling) for seed in arguments.seeds]
    run_all([teacher, *alone], jobs=arguments.jobs, threads=arguments.threads)
    run_all(distilled, jobs=arguments.jobs, threads=arguments.threads)

    rows = [[title, *of_all] for title, of_all in scores({"teacher": [teacher], ALONE: alone, DISTILLED: distilled})]
    few, every = alone[0].report(), teacher.report()
    print(f"\nGenerated scenes, {every.num_images} validation images, last step, no selection.")
    print(f"teacher: {every.train_images} labelled images, {every.steps} steps.")
    print(f"{ALONE}: the first {few.train_images} of them, {few.steps} steps of {few.batch_size} images.")
    print(
        f"{DISTILLED} ({distilled[0].report().method}): the same {few.train_images} labels, steps and images per step, "
        f"{recipe['unlabelled_ratio']} of {recipe['unlabelled_ratio'] + 1} images one of {UNLABELLED} without labels.\n"
    )
    print(table(["", "mIoU %", "mean class acc. %", "pixel acc. %", "parameters", "MACs", "ms per image"], rows))
    gains = gains_of(alone, distilled)
    print("\n" + table(["seed", ALONE, DISTILLED, "gain"], by_seed(alone, distilled, gains)))
    print("\n" + verdict(gains) + "\n" + last_quarter(alone))
    middle = middle_seed(gains)
    picture = arguments.output / "comparison.png"
    sheet, caption = draw(teacher, alone[middle], distilled[middle], recipe["dataset_options"])
    sheet.save(picture)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nPicture: {picture}, seed {arguments.seeds[middle]}, whose gain is the median; {caption}")
    print(f"Time: {time.monotonic() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time.")
    print("\nLoad the distilled student:\n\n    import hf_segkd")
    print("    from transformers import AutoModelForSemanticSegmentation")
    print(f'    model = AutoModelForSemanticSegmentation.from_pretrained("{distilled[0].output_dir}")')
    publish = f"python scripts/publish.py --model {distilled[0].output_dir} --repo_id USER/NAME --dry_run"
    print(f"\nWrite its model card: {publish} --baseline {' '.join(str(run.output_dir) for run in alone)}")


def write_unlabelled(folder: Path, options: dict) -> Path:
    """Scenes of a seed of their own as picture files, without their masks."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {**options, "num_images": UNLABELLED, "seed": SEED_OF_UNLABELLED}
    scenes = load_segmentation_dataset("demo", split="train", **options).with_format(None)
    for scene in scenes.cast_column("image", datasets.Image(decode=False)):
        (folder / f"{scene['image_id']}.png").write_bytes(scene["image"]["bytes"])
    return folder


def student(output: Path, name: str, seed: int, flags: list[str]) -> Run:
    """A student of the demo's recipe."""
    config = ["--config", str(RECIPES / "demo.yaml"), "--seed", str(seed)]
    return Run(SCRIPTS / "distill.py", output / f"{name}-seed{seed}", [*config, *flags])


def scores(kinds: dict[str, list[Run]]) -> list[tuple[str, list[str]]]:
    """For each kind of network the metrics in percent over the seeds, and what it costs."""
    rows = []
    for title, runs in kinds.items():
        reports = [run.report() for run in runs]
        metrics = [mean_and_std([report.percent(metric) for report in reports]) for metric in METRICS]
        rows.append((title, [*metrics, *cost(runs[0])]))
    return rows


def cost(run: Run) -> list[str]:
    """Parameters, multiply-adds and time per image of a network."""
    model, processor = load_network(str(run.output_dir))
    size = (processor.size["height"], processor.size["width"])
    return [
        f"{model.num_parameters() / 1e6:.3f} M",
        f"{count_macs(model, size) / 1e9:.3f} G",
        f"{milliseconds_per_image(model, size):.1f}",
    ]


def gains_of(alone: list[Run], distilled: list[Run]) -> list[float]:
    """Points of mIoU, seed by seed."""
    pairs = zip(alone, distilled, strict=True)
    return [better.report().percent("mean_iou") - plain.report().percent("mean_iou") for plain, better in pairs]


def by_seed(alone: list[Run], distilled: list[Run], gains: list[float]) -> list[list[str]]:
    """The mIoU of both students and the gain, a row for each seed and one for all."""
    columns = [[run.report().percent("mean_iou") for run in runs] for runs in (alone, distilled)]
    rows = [
        [str(run.report().seed), f"{plain:.2f}", f"{better:.2f}", f"{gain:+.2f}"]
        for run, plain, better, gain in zip(alone, *columns, gains, strict=True)
    ]
    return [*rows, ["all", *(mean_and_std(column) for column in columns), mean_and_std(gains)]]


def verdict(gains: list[float]) -> str:
    """Whether distillation helped, said as it is."""
    points = f"{np.mean(gains):+.2f} points of mIoU on average, {min(gains):+.2f} with the worst of the seeds"
    if np.mean(gains) <= 0:
        return f"The distilled student did NOT gain here ({points})."
    return f"The distilled student is better with {sum(gain > 0 for gain in gains)} of {len(gains)} seeds ({points})."


def last_quarter(alone: list[Run]) -> str:
    """What the student alone still learnt at the end: a gain over one that has not finished learning does not last."""
    curves = [curve(run.output_dir) for run in alone]
    means = {step: np.mean([dict(points)[step] for points in curves]) for step, _ in curves[0]}
    last = max(means)
    before = max((step for step in means if step <= 0.75 * last), default=last)
    course = ", ".join(f"{mean:.1f}" for mean in means.values())
    gain = f"{means[last] - means[before]:+.2f} points since step {before} of {last}"
    return f"The student alone in the course of its training: {course} (mean of the seeds); {gain}."


def draw(teacher: Run, alone: Run, distilled: Run, options: dict) -> tuple[Image.Image, str]:
    """Image, truth, teacher and both students for the four images in the middle by gain, and what these gained."""
    runs = {"teacher": teacher, ALONE: alone, DISTILLED: distilled}
    networks = {title: load_network(str(run.output_dir)) for title, run in runs.items()}
    scenes = load_segmentation_dataset("demo", split="val", **options)
    plain, better = (
        np.stack([counts_of(networks[title], scene, options["num_classes"]) for scene in scenes])
        for title in (ALONE, DISTILLED)
    )
    shown, gains = middle_images(plain, better[None])
    return compare(scenes.select(shown), networks), in_words(shown, gains)


def counts_of(network: tuple, scene: dict, num_classes: int) -> np.ndarray:
    """The confusion matrix (k, k) of a network's prediction."""
    truth = torch.from_numpy(np.array(scene["annotation"])).long()
    return confusion_matrix(predict(*network, scene["image"]).cpu(), truth, num_classes).numpy()


if __name__ == "__main__":
    main()
