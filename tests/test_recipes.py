import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoModelForSemanticSegmentation

import hf_segkd.recipes
from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.commands.train import TrainingCommand, build_processor, build_student, load_splits, main
from hf_segkd.data import label_info
from hf_segkd.data.labels import voc_palette
from hf_segkd.losses import create_loss
from hf_segkd.models.backbone_geometry import RESNETS, mmseg_backbone_config
from hf_segkd.networks.profiling import count_macs
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import network_spec

PATHS = sorted(Path(hf_segkd.recipes.__file__).parent.glob("*.yaml"))
PAPER_PATHS = [path for path in PATHS if not path.name.startswith(("demo", "camvid"))]
every_recipe = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
every_paper_recipe = pytest.mark.parametrize("path", PAPER_PATHS, ids=lambda path: path.stem)

SIZE = (40, 60)  # height, width
VOC, CONTEXT, ADE = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010", "ADEChallengeData2016"
# Files of the images, of the masks and of the list of a split, and the values that official masks hold.
LAYOUTS = {
    "voc2012": (
        f"{VOC}/JPEGImages/{{name}}.jpg",
        f"{VOC}/SegmentationClass/{{name}}.png",
        f"{VOC}/ImageSets/Segmentation/{{split}}.txt",
        [*range(21), 255],
    ),
    "voc2012_aug": (
        f"{VOC}/JPEGImages/{{name}}.jpg",
        f"{VOC}/SegmentationClass{{aug}}/{{name}}.png",
        f"{VOC}/ImageSets/Segmentation/{{split}}{{_aug}}.txt",
        [*range(21), 255],
    ),
    "cityscapes": (
        "leftImg8bit/{split}/ulm/ulm_000000_{name}_leftImg8bit.png",
        "gtFine/{split}/ulm/ulm_000000_{name}_gtFine_labelIds.png",
        None,
        list(range(34)),
    ),
    "ade20k": (
        f"{ADE}/images/{{split_ing}}/ADE_{{split}}_{{name}}.jpg",
        f"{ADE}/annotations/{{split_ing}}/ADE_{{split}}_{{name}}.png",
        None,
        list(range(151)),
    ),
    "pascal_context_59": (
        f"{CONTEXT}/JPEGImages/{{name}}.jpg",
        f"{CONTEXT}/SegmentationClassContext/{{name}}.png",
        f"{CONTEXT}/ImageSets/SegmentationContext/{{split}}.txt",
        list(range(60)),
    ),
    "folder": ("{split}/images/{name}.png", "{split}/labels/{name}.png", None, [*range(11), 255]),
}

TINY_HEAD = {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4}
TINY_ISANET = {"attention_channels": 4, "group_size": [2, 3]}  # several groups in the small map
TINY_HRNET = {"width": 4, "stem_blocks": 1, "num_modules": [1, 1, 1], "num_blocks": 1}
TINY_RESNET = {
    "model_type": "segkd-resnet",
    "width": 8,
    "depths": [1, 1, 1, 1],
    "strides": [1, 2, 2, 1],
    "out_features": ["stage1", "stage4"],
}


def parse(path, output_dir, *flags):
    args = ["--config", str(path), "--output_dir", str(output_dir), "--use_cpu", "true", *flags]
    return parse_arguments(TrainingCommand, DistillationArguments, args=args)


def write_official_tree(root, dataset):
    """Three training and two validation images of noise."""
    image_file, mask_file, list_file, values = LAYOUTS[dataset]
    rng = np.random.default_rng(0)
    for split, split_ing, numbers in (("train", "training", (1, 2, 3)), ("val", "validation", (4, 5))):
        aug = "Aug" if split == "train" else ""
        names = {"split": split, "split_ing": split_ing, "aug": aug, "_aug": aug and "_aug"}
        for number in numbers:
            image, mask = (root / file.format(**names, name=f"{number:06d}") for file in (image_file, mask_file))
            for file in (image, mask):
                file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(image)
            # Patches of 5 x 5 pixels, so that labels survive a resize.
            patches = rng.choice(np.array(values, dtype=np.uint8), (SIZE[0] // 5, SIZE[1] // 5))
            picture = Image.fromarray(patches.repeat(5, 0).repeat(5, 1))
            if dataset.startswith("voc"):
                picture.putpalette([channel for colour in voc_palette(256) for channel in colour])
            picture.save(mask)
        if list_file is not None:
            file = root / list_file.format(**names)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{number:06d}\n" for number in numbers))


def data_of(recipe, root):
    """What to put in place of a recipe's data: a tree in the official layout, or fewer generated scenes."""
    options = dict(recipe.get("dataset_options", {}))
    if recipe["dataset"] == "demo":
        return {"dataset_options": {**options, "image_size": list(SIZE), "num_images": 3}}
    write_official_tree(root, recipe["dataset"])
    if recipe["dataset"] != "folder":
        options["check_size"] = False
    return {"data_dir": str(root), "dataset_options": options}


def tiny(network_config):
    """The smallest network of the same kind."""
    config = dict(network_config)
    model_type = config.get("model_type", "segkd-deeplabv3plus")
    if model_type == "segkd-hrnet":
        return {**config, "backbone": None, "backbone_config": TINY_HRNET}
    config |= TINY_HEAD if model_type == "segkd-deeplabv3plus" else {"channels": 8}
    config |= TINY_ISANET if model_type == "segkd-isanet" else {}
    if "backbone_config" in config:
        backbone = config["backbone_config"]
        smaller = {"depth_multiplier": 0.1} if backbone["model_type"] == "segkd-mobilenet-v2" else {"width": 8}
        return {**config, "backbone_config": {**backbone, **smaller}}
    if model_type == "segkd-deeplabv3plus" and "layout" not in config:
        if config["backbone"] == "mobilenet_v2":
            return {**config, "depth_multiplier": 0.1}
        backbone = {**TINY_RESNET, "layer_type": RESNETS[config["backbone"]][0]}
    else:
        backbone = mmseg_backbone_config(config["backbone"]).to_dict()
        if config["backbone"] == "mobilenet_v2":
            backbone["depth_multiplier"] = 0.1
        else:
            dilations = [stage[:1] for stage in backbone["dilations"]]
            backbone |= {"width": 8, "depths": [1, 1, 1, 1], "dilations": dilations}
        config["auxiliary_channels"] = 8
    config = {name: value for name, value in config.items() if name not in ("backbone", "output_stride")}
    return {**config, "backbone_config": backbone}


def build(network_config, **more):
    """The network of a recipe's `student_config`."""
    config = {"model_type": "segkd-deeplabv3plus", **network_config, **more}
    return AutoModelForSemanticSegmentation.from_config(AutoConfig.for_model(**config))


def named(labels):
    return {"id2label": labels.id2label, "label2id": {name: index for index, name in labels.id2label.items()}}


def configs_in_comments(path):
    return [json.loads(text) for text in re.findall(r"--(?:student|network)_config '(.*)'", path.read_text())]


def teacher_config(path):
    """The teacher's that a recipe names in its comments."""
    return next(iter(configs_in_comments(path)), {"backbone": "resnet101"})


@every_recipe
def test_every_key_is_a_flag_and_every_value_is_legal(path, tmp_path):
    command, arguments = parse(path, tmp_path)
    recipe = yaml.safe_load(path.read_text())
    for key, value in recipe.items():
        parsed = getattr(command, key) if hasattr(command, key) else getattr(arguments, key)
        expected = [float(value)] if isinstance(parsed, float) else [value, str(value)]
        assert parsed in expected, key


@every_recipe
def test_batch_per_device_and_processes_give_the_batch_that_the_recipe_is_for(path, tmp_path, monkeypatch):
    _, arguments = parse(path, tmp_path)
    launched = re.search(r"--num_processes (\d+)", path.read_text())
    processes = int(launched[1]) if launched else 1
    monkeypatch.setattr(DistillationArguments, "world_size", processes)
    assert arguments.recipe_batch_size is not None
    assert arguments.warn_about_batch_size() is None
    monkeypatch.setattr(DistillationArguments, "world_size", processes + 1)
    assert "images per optimizer step" in arguments.warn_about_batch_size()


@every_paper_recipe
def test_every_number_of_a_paper_recipe_has_its_source_on_its_line(path):
    for line in path.read_text().splitlines():
        setting, _, comment = line.partition("#")
        if re.search(r":.*\d", setting):
            assert re.search(r"paper|code|mmsegmentation|ours", comment), line


@every_paper_recipe
def test_a_paper_recipe_names_itself_and_says_that_it_was_not_run(path):
    header = path.read_text().split("\ndataset:")[0]
    assert f"--config hf_segkd/recipes/{path.name} " in header
    assert "Not run by us" in header


@pytest.mark.parametrize("path", [path for path in PAPER_PATHS if path.name.startswith("attnfd")], ids=lambda p: p.stem)
def test_attnfd_takes_the_papers_learning_rate_over_and_its_decay_times_the_batch(path, tmp_path):
    _, arguments = parse(path, tmp_path)
    stated = re.search(r"--learning_rate (\S+) --weight_decay (\S+)", path.read_text())
    batch = arguments.recipe_batch_size
    assert arguments.learning_rate == pytest.approx(float(stated[1]) / batch, rel=1e-5)
    assert arguments.weight_decay == pytest.approx(float(stated[2]) * batch)


def test_sgd_on_a_loss_over_the_batch_is_sgd_at_learning_rate_over_and_decay_times_the_batch():
    def trained(divisor, learning_rate, decay):
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([weight], lr=learning_rate, weight_decay=decay, momentum=0.9, nesterov=True)
        for step in range(5):
            sgd.zero_grad()
            ((weight.sin() * (step + 1)).sum().square() / divisor).backward()
            sgd.step()
        return weight.detach()

    torch.testing.assert_close(trained(6, 0.007, 5e-4), trained(1, 0.007 / 6, 5e-4 * 6))


@every_recipe
def test_networks_and_loss_build_at_full_size(path, tmp_path):
    command, arguments = parse(path, tmp_path)
    data = data_of(yaml.safe_load(path.read_text()), tmp_path)
    command.data_dir, command.dataset_options = data.get("data_dir"), data["dataset_options"]
    labels = label_info(load_splits(command, "stop")[0])
    command.pretrained_backbone = None
    with torch.device("meta"):
        student, _ = build_student(command, labels)
        teacher = build(teacher_config(path), **named(labels))
        assert student.classifier.weight.shape[0] == teacher.classifier.weight.shape[0] == len(labels.id2label)
        assert 0 < sum(p.numel() for p in student.parameters()) <= sum(p.numel() for p in teacher.parameters())
        if arguments.method != "none":
            specs = network_spec(student), network_spec(teacher)
            loss = create_loss(arguments.method, *specs, **arguments.method_kwargs)
            state = [*loss.parameters(), *loss.buffers()]
            assert sum(tensor.numel() for tensor in state) > 0
            assert all(tensor.is_meta for tensor in state)


@every_paper_recipe
def test_the_losses_and_networks_that_comments_suggest_instead_can_be_built(path, tmp_path):
    command, arguments = parse(path, tmp_path)
    with torch.device("meta"):
        configs = [command.student_config, *configs_in_comments(path)]
        specs = [network_spec(build(config, num_labels=19)) for config in configs]
        for method, kwargs in re.findall(r"(?:--method (\w+) )?--method_kwargs '(.*)'", path.read_text()):
            create_loss(method or arguments.method, specs[0], specs[-1], **json.loads(kwargs))


@pytest.mark.parametrize("path", [path for path in PATHS if path.name.startswith("fakd_")], ids=lambda path: path.stem)
def test_the_command_for_a_teacher_of_ones_own_trains_the_network_that_is_converted_too(path, tmp_path, monkeypatch):
    text = re.sub(r" \\\n#\s+", " ", path.read_text())
    ((processes, line),) = re.findall(r"--num_processes (\d) scripts/train\.py --config \S+ (.*)", text)
    flags = shlex.split(line)
    assert f"--teacher {flags[flags.index('--output_dir') + 1]} " in text
    command, arguments = parse(path, tmp_path, *flags[: flags.index("--output_dir")], *flags[4:])
    assert (command.teacher, arguments.method) == (None, "none")
    monkeypatch.setattr(DistillationArguments, "world_size", int(processes))
    assert arguments.warn_about_batch_size() is None
    assert command.student_config == teacher_config(path)
    zoo = re.search(r"mmsegmentation's \w+?_(?:\w+-d8_)?(\d+)x(\d+)_(\d+)k_", text)
    height, width, thousands = (int(number) for number in zoo.groups())
    assert (arguments.crop_size, arguments.max_steps) == ([height, width], 1000 * thousands)


@pytest.mark.parametrize(("name", "millions"), [("attnfd_voc_resnet18", 16.6), ("attnfd_voc_teacher", 59.3)])
def test_networks_have_as_many_parameters_as_table_1_of_attnfd_gives(name, millions, tmp_path):
    command, _ = parse(PATHS[0].with_name(f"{name}.yaml"), tmp_path)
    with torch.device("meta"):
        network = build(command.student_config, num_labels=21)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


@every_recipe
def test_the_command_takes_a_step_on_data_in_the_official_layout_and_evaluates(path, tmp_path):
    recipe = yaml.safe_load(path.read_text())
    small = {**recipe, **data_of(recipe, tmp_path / "data"), "student_config": tiny(recipe["student_config"])}
    small.pop("pretrained_backbone", None)  # of another shape, and not to be downloaded
    if "image_size" in small:
        small["image_size"] = list(SIZE)
    if "scale_base" in small:
        small["scale_base"] = SIZE[0]
    config = tmp_path / path.name
    config.write_text(yaml.safe_dump(small))
    # Not square, so that height and width can't be taken for each other.
    flags = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--crop_size", "33", "44"]
    flags += ["--dataloader_num_workers", "0", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
    if recipe.get("method", "none") != "none":
        command, _ = parse(config, tmp_path)
        teacher = build(tiny(teacher_config(path)), **named(label_info(load_splits(command, "stop")[0])))
        teacher.save_pretrained(tmp_path / "teacher")
        build_processor(None).save_pretrained(tmp_path / "teacher")
        flags += ["--teacher", str(tmp_path / "teacher"), "--preflight_images", "0"]
    output = tmp_path / "output"
    report = main(["--config", str(config), "--output_dir", str(output), "--use_cpu", "true", *flags])
    written = json.loads((output / "evaluation.json").read_text())
    assert written["method"] == report.method == recipe.get("method", "none")
    state = json.loads((output / "trainer_state.json").read_text())
    assert written["steps"] == state["global_step"] == 1
    assert math.isfinite(next(entry["train_loss"] for entry in state["log_history"] if "train_loss" in entry))
    assert (output / "model.safetensors").is_file()


def test_the_student_for_devices_is_the_papers_backbone_with_a_seventh_of_the_multiply_adds():
    path = Path(hf_segkd.recipes.__file__).with_name("camvid_devices.yaml")
    with torch.device("meta"):
        papers = build({"backbone": "mobilenet_v2"}, num_labels=21)
        ours = build(yaml.safe_load(path.read_text())["student_config"], num_labels=21)
    assert ours.config.backbone_config.to_dict() == papers.config.backbone_config.to_dict()
    assert ours.config.atrous_rates == papers.config.atrous_rates
    macs = [round(count_macs(network, (513, 513)) / 1e9, 2) for network in (papers, ours)]
    assert macs == [26.94, 3.97]
    assert f"{macs[1]} GMACs at 513 x 513, where the papers' MobileNetV2 student has {macs[0]}" in path.read_text()
