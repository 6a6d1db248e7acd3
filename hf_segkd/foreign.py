"""Any Hugging Face segmentation model as a teacher: what the trainer asks of a network."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, OneFormerConfig, PreTrainedConfig, PreTrainedModel

from hf_segkd.models.modeling_segmentation import SemanticSegmenterOutputWithFeatures

# Height and width of the image a network is tried on when its config asks for no size.
TRIAL_SIZE = 64
# OneFormer's processor turns the task "semantic" into this sentence.
ONEFORMER_TASK = "the task is semantic"


class ForeignNetwork(nn.Module):
    """A segmentation model of transformers with the taps of a teacher.

    The tap `logits` is the model's own dense output at its own resolution (SegFormer, UperNet, BEiT, DPT, MobileNetV2,
    MobileViT ...), or `query_log_probabilities` of a model that predicts masks and their classes (MaskFormer,
    Mask2Former, OneFormer, EoMT). All others are outputs of modules that you name.

    The model is put in evaluation mode and tried once on an empty image. It stays the same object: its weights are
    neither copied nor changed.

    Args:
        model: The model.
        taps: Tap name -> path of the module whose output it is, such as `{"decoder": "decode_head.linear_fuse"}`
            (`model.named_modules()` lists the paths). Where a module runs several times the last output counts.
        inputs: What the model's `forward` wants beside `pixel_values`, each with a batch of 1. OneFormer's
            `task_inputs` are made by the tokenizer it was saved with when they are not given.

    Attributes:
        config: The model's, with `semantic_loss_ignore_index` 255 where it has none.
        tap_channels: Tap name -> channels.
        tap_norms: Empty: which norm ends in a tap is not known of foreign models.

    Raises:
        ValueError: If a path names no module, a module's output is not a (b, c, h, w) map, or the model's output holds
            neither dense logits nor masks with classes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        taps: Mapping[str, str] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.taps = dict(taps or {})
        self.config: PreTrainedConfig = copy.deepcopy(model.config)
        if getattr(self.config, "semantic_loss_ignore_index", None) is None:
            self.config.semantic_loss_ignore_index = 255
        self.tap_norms: dict[str, tuple[Tensor, Tensor]] = {}
        self._check_paths()
        self.inputs = dict(_task_inputs(model) if inputs is None else inputs)
        image = torch.zeros(1, 3, *_trial_size(model.config), device=model.device, dtype=model.dtype)
        with torch.no_grad():
            features = self(pixel_values=image, output_features=True).features
        self.tap_channels = {tap: feature.shape[1] for tap, feature in features.items()}

    @property
    def name_or_path(self) -> str:
        """Folder or Hub id the model was loaded from."""
        return self.model.name_or_path

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's number format."""
        return self.model.dtype

    def num_parameters(self) -> int:
        """Number of the model's parameters."""
        return self.model.num_parameters()

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the model's parameters, and of its buffers."""
        return self.model.get_memory_footprint(return_buffers)

    def forward(self, pixel_values: Tensor, output_features: bool = False) -> SemanticSegmenterOutputWithFeatures:
        """Logits, and the taps when asked for.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            output_features: Whether to return the taps.

        Raises:
            ValueError: If the model takes no images of this size.
        """
        inputs = {
            name: value.to(pixel_values.device).expand(len(pixel_values), *value.shape[1:])
            for name, value in self.inputs.items()
        }
        with self._recorded() as features:
            try:
                output = self.model(pixel_values=pixel_values, **inputs)
            except (RuntimeError, ValueError) as error:
                size, tried = tuple(pixel_values.shape[-2:]), _trial_size(self.model.config)
                if size == tried or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(
                    f"{type(self.model).__name__} works on images of {tried[0]} x {tried[1]} and not of {size[0]} x "
                    f"{size[1]}: {error}. Some models take one size (EoMT) or squares (DPT): set crop_size to it."
                ) from error
        logits = _logits(self.model, output)
        return SemanticSegmenterOutputWithFeatures(
            logits=logits, features={**features, "logits": logits} if output_features else None
        )

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[dict[str, Tensor]]:
        features: dict[str, Tensor] = {}

        def record(tap: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if not isinstance(output, Tensor) or output.ndim != 4:
                    raise ValueError(
                        f"The tap {tap!r} needs a (b, c, h, w) map, but {self.taps[tap]} ({type(module).__name__}) "
                        f"gives {_described(output)}. Name a module that gives a map, such as a convolution or a norm "
                        "behind one."
                    )
                features[tap] = output.clone()  # what follows may write into it

            return hook

        with contextlib.ExitStack() as stack:
            for tap, path in self.taps.items():
                stack.callback(self.model.get_submodule(path).register_forward_hook(record(tap)).remove)
            yield features
        unused = [f"{tap} ({path})" for tap, path in self.taps.items() if tap not in features]
        if unused:
            raise ValueError(f"The modules of these taps do not run in {type(self.model).__name__}: {unused}.")

    def _check_paths(self) -> None:
        if "logits" in self.taps:
            raise ValueError("The tap 'logits' is the model's output; give the module another name.")
        paths = [path for path, _ in self.model.named_modules() if path]
        for tap, path in self.taps.items():
            if path not in paths:
                near = difflib.get_close_matches(path, paths, n=3, cutoff=0.4) or paths[:3]
                raise ValueError(
                    f"The tap {tap!r} is to be the output of {path!r}, but {type(self.model).__name__} has no such "
                    f"module. The nearest are {near}; model.named_modules() lists all."
                )


def query_log_probabilities(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Log probability of each class at each pixel, from queries that each have a mask and a class.

    The processors' `post_process_semantic_segmentation` scores class k at pixel p by
    s_kp = sum over q of softmax(class_logits)_qk * sigmoid(mask_logits)_qp, without the last class, which says that a
    query found nothing. Here it is log(s_kp / sum over k of s_kp): the order of the classes is the same, a softmax
    gives the normalised scores, and a temperature T makes them p^(1/T), as it does with dense logits.

    With r_qk the softmax over the real classes alone and a_q the probability that the query found something,
    s_kp / sum_k s_kp = sum over q of r_qk * softmax over q of (log a_q + log sigmoid(mask_logits)_qp): nothing is
    divided by a sum that may vanish. A class of probability 0 gets the log of the smallest normal float32, -87.3.

    Args:
        class_logits: (b, q, k + 1), "nothing" last.
        mask_logits: (b, q, h, w).

    Returns:
        (b, k, h, w) in fp32 (fp64 from fp64).
    """
    with torch.autocast(device_type=mask_logits.device.type, enabled=False):
        class_logits, mask_logits = _at_least_float32(class_logits), _at_least_float32(mask_logits)
        real = class_logits[..., :-1]
        found = real.logsumexp(-1) - class_logits.logsumexp(-1)
        shares = (found[..., None, None] + nn.functional.logsigmoid(mask_logits)).softmax(1)
        probabilities = torch.einsum("bqk,bqhw->bkhw", real.softmax(-1), shares)
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def with_taps(model: nn.Module) -> nn.Module:
    """The network itself if it names its taps, as those of hf_segkd do, else as a `ForeignNetwork`."""
    return ForeignNetwork(model) if getattr(model, "tap_channels", None) is None else model


def _logits(model: nn.Module, output: Any) -> Tensor:
    if getattr(output, "class_queries_logits", None) is not None:
        return query_log_probabilities(output.class_queries_logits, output.masks_queries_logits)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        raise ValueError(
            f"{type(model).__name__} gives neither logits (b, k, h, w) nor class_queries_logits and "
            f"masks_queries_logits; its logits are {_described(logits)}. A teacher must be a model of "
            "AutoModelForSemanticSegmentation, or MaskFormer, Mask2Former, OneFormer or EoMT."
        )
    return logits


def _described(output: Any) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _trial_size(config: PreTrainedConfig) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or TRIAL_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def _task_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """OneFormer's task as its processor writes it: token ids (1, length), 0 behind the end; nothing for others."""
    if not isinstance(model.config, OneFormerConfig):
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            "OneFormer is told its task in words, and no tokenizer was found beside the model. Pass "
            "ForeignNetwork(model, inputs={'task_inputs': ...}) with the task_inputs of OneFormerProcessor for "
            "['semantic'], or save the processor beside the model."
        ) from error
    tokens = tokenizer(
        ONEFORMER_TASK, padding="max_length", max_length=model.config.task_seq_len, truncation=True, return_tensors="pt"
    )
    return {"task_inputs": tokens["input_ids"] * tokens["attention_mask"]}
