"""Small data, networks and trainers for the tests of whole runs."""

import torch
from torch import nn
from transformers import SegformerImageProcessor, TrainerCallback

from hf_segkd.data import label_info, load_segmentation_dataset
from hf_segkd.losses.adversary import Adversary
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.trainer import DistillationTrainer

SIZE = (32, 48)
NUM_CLASSES = 4


def scenes(split="train", num_images=12):
    return load_segmentation_dataset(
        "demo", split=split, num_images=num_images, image_size=SIZE, num_classes=NUM_CLASSES
    )


def network(width=8, seed=0, **overrides):
    labels = label_info(scenes(num_images=1))
    torch.manual_seed(seed)
    values = {
        "backbone_config": {
            "model_type": "segkd-resnet",
            "width": width,
            "depths": [1, 1, 1, 1],
            "strides": [1, 2, 2, 1],
            "out_features": ["stage1", "stage4"],
        },
        "aspp_channels": 2 * width,
        "decoder_channels": 2 * width,
        "low_level_channels": 4,
        "id2label": labels.id2label,
        "label2id": {name: index for index, name in labels.id2label.items()},
    }
    return DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(**{**values, **overrides}))


def processor():
    return SegformerImageProcessor(size={"height": SIZE[0], "width": SIZE[1]}, do_reduce_labels=False)


def arguments(folder, **overrides):
    defaults = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "preflight_images": 0,  # teachers have random weights
        "use_cpu": True,
    }
    return DistillationArguments(**{**defaults, **overrides})


def trainer(folder, student=None, teacher=None, **overrides):
    if overrides.get("method", "none") != "none" and teacher is None:
        teacher = network(width=12, seed=1)
    return DistillationTrainer(
        model=network() if student is None else student,
        args=arguments(folder, **overrides),
        teacher=teacher,
        train_dataset=scenes(),
        eval_dataset=scenes("val", 7),
        processing_class=processor(),
    )


class StopAfter(TrainerCallback):
    """Ends a run early, as if it had been interrupted."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def without_batch_coupling(module):
    """In place: group norms for batch norms, no dropout; an adversary's discriminator stays as it is."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        elif isinstance(child, nn.Dropout):
            child.p = 0.0
        elif not isinstance(child, Adversary):
            without_batch_coupling(child)
    return module


def uncoupled_trainer(folder, **overrides):
    """One whose images do not see each other, but for what the method itself does with a batch."""
    run = trainer(folder, student=without_batch_coupling(network()), **overrides)
    without_batch_coupling(run.model)
    return run


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
