"""Gradient checkpointing: the same gradients and statistics, and less memory."""

import pytest
import torch
from tiny_runs import arguments, network, processor, same, scenes, trainer, weights
from torch import nn
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.convnext import ConvNextConfig

from hf_segkd.training.activation_checkpointing import blocks_of, check_options, checkpointed_blocks
from hf_segkd.training.trainer import DistillationTrainer


def segformer():
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 8, "num_attention_heads": [1, 1, 2, 2]}
    labels = network().config.id2label
    return SegformerForSemanticSegmentation(SegformerConfig(depths=[1, 1, 2, 1], id2label=labels, **sizes))


def upernet():
    torch.manual_seed(0)
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 2, 1], out_indices=[1, 2, 3, 4])
    options = {"hidden_size": 8, "auxiliary_in_channels": 8, "auxiliary_channels": 8, "pool_scales": [1, 2]}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=4, **options))


@pytest.mark.parametrize("make", [network, segformer, upernet])
def test_gradients_and_statistics_are_the_same_bit_for_bit(make):
    found = []
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(4, (2, 64, 64))
    for checkpoints in (False, True):
        student = make().train()
        torch.manual_seed(1)  # of dropout
        if checkpoints:
            with checkpointed_blocks(student):
                loss = student(pixel_values=images, labels=labels).loss
        else:
            loss = student(pixel_values=images, labels=labels).loss
        loss.backward()
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        found.append((gradients, weights(student)))
        assert not any("forward" in vars(module) for module in student.modules())
    (gradients, state), (gradients_again, state_again) = found
    assert same(gradients, gradients_again)
    assert same(state, state_again)


def test_what_is_inside_a_block_is_computed_a_second_time():
    student, times = network().train(), []
    images = torch.randn(2, 3, 64, 64)
    inside = next(module for module in blocks_of(student)[0].modules() if isinstance(module, nn.Conv2d))
    for checkpoints in (False, True):
        outputs = []
        hook = inside.register_forward_hook(lambda *call, outputs=outputs: outputs.append(call))
        with checkpointed_blocks(student) if checkpoints else torch.enable_grad():
            logits = student(pixel_values=images).logits
        logits.sum().backward()
        hook.remove()
        times.append(len(outputs))
    assert times == [1, 2]


@pytest.mark.parametrize("make", [network, segformer])
def test_a_run_has_the_same_student_with_it_and_the_teacher_is_left_alone(make, tmp_path):
    students = []
    for checkpoints in (False, True):
        teacher = network(width=12, seed=1)
        before = weights(teacher)
        run = DistillationTrainer(
            make(),
            arguments(tmp_path, method="cwd", gradient_checkpointing=checkpoints),
            teacher=teacher,
            train_dataset=scenes(),
            processing_class=processor(),
        )
        calls = {"student": [], "teacher": []}
        for name, held in (("student", run.student), ("teacher", teacher)):
            inside = next(blocks_of(held)[0].children())
            inside.register_forward_hook(lambda *call, kept=calls[name]: kept.append(call))
        run.train()
        assert len(calls["student"]) == (6 if checkpoints else 3)  # 3 steps
        assert len(calls["teacher"]) == 3
        assert same(before, weights(teacher))
        students.append(weights(run.student))
    assert same(*students)


def test_options_that_are_not_followed_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gradient_checkpointing_kwargs holds {'use_reentrant': True}"):
        trainer(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    trainer(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ValueError, match="torch_compile was never tested with"):
        trainer(tmp_path, gradient_checkpointing=True, torch_compile=True)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no ModuleList or Sequential that holds any"):
        check_options(None, nn.Linear(2, 2))
