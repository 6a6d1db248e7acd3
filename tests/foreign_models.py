"""Segmentation models of transformers with random weights, as small as their configs allow."""

import importlib

import pytest
import torch
from tiny_runs import NUM_CLASSES
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    DetrConfig,
    DPTConfig,
    DPTForSemanticSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

# Height and width of the models that take one size only, and of the crops they are tried on.
SIDE = 32


def segformer(**labels):
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=12
    )
    return SegformerForSemanticSegmentation(_with(config, labels))


def upernet(**labels):
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=16, auxiliary_channels=8
    )
    return UperNetForSemanticSegmentation(_with(config, labels))


def beit(**labels):
    config = BeitConfig(
        image_size=SIDE, patch_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        out_indices=[1, 2, 3, 4], pool_scales=[1, 2], auxiliary_channels=8,
    )  # fmt: skip
    return BeitForSemanticSegmentation(_with(config, labels))


def dpt(**labels):
    config = DPTConfig(
        image_size=SIDE, patch_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, is_hybrid=False,
    )  # fmt: skip
    return DPTForSemanticSegmentation(_with(config, labels))


def mobilenet_v2(**labels):
    return MobileNetV2ForSemanticSegmentation(_with(MobileNetV2Config(depth_multiplier=0.25, output_stride=16), labels))


def mobilevit(**labels):
    config = MobileViTConfig(
        image_size=SIDE, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], num_attention_heads=2,
        aspp_out_channels=16, atrous_rates=[1, 2, 3],
    )  # fmt: skip
    return MobileViTForSemanticSegmentation(_with(config, labels))


def _swin():
    return SwinConfig(
        image_size=SIDE, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def maskformer(**labels):
    decoder = DetrConfig(
        d_model=16, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2, encoder_attention_heads=2,
        decoder_ffn_dim=16, encoder_ffn_dim=16, num_queries=6, backbone_config=ResNetConfig(),
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=_swin(), decoder_config=decoder, mask_feature_size=32, fpn_feature_size=32
    )
    return MaskFormerForInstanceSegmentation(_with(config, labels))


def mask2former(**labels):
    config = Mask2FormerConfig(
        backbone_config=_swin(), hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=6,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(_with(config, labels))


def oneformer(**labels):
    config = OneFormerConfig(
        backbone_config=_swin(), hidden_dim=32, conv_dim=32, mask_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=6,
        text_encoder_width=32, text_encoder_num_layers=1, text_encoder_vocab_size=64, task_seq_len=8,
        query_dec_layers=1,
    )  # fmt: skip
    return OneFormerForUniversalSegmentation(_with(config, labels))


def eomt(**labels):
    config = EomtConfig(
        image_size=SIDE, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1,
        num_upscale_blocks=1, num_queries=6, num_register_tokens=0,
    )  # fmt: skip
    return EomtForUniversalSegmentation(_with(config, labels))


DENSE = [segformer, upernet, beit, dpt, mobilenet_v2, mobilevit]
QUERY = [maskformer, mask2former, oneformer, eomt]
# What OneFormer's processor would make of the task.
ONEFORMER_INPUTS = {"task_inputs": torch.arange(8)[None]}


@pytest.fixture
def no_scipy(monkeypatch):
    """These models ask for scipy, which only their own losses need."""
    for name in ("maskformer", "mask2former", "oneformer", "eomt"):
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        monkeypatch.setattr(module, "requires_backends", lambda *_: None)


def build(make, seed=0, **labels):
    torch.manual_seed(seed)
    return make(**(labels or {"id2label": {index: f"class {index}" for index in range(NUM_CLASSES)}}))


def _with(config, labels):
    config.id2label = labels["id2label"]
    config.label2id = {name: index for index, name in labels["id2label"].items()}
    return config
