"""`FeatureNetwork`: any Hugging Face segmentation model as teacher or student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_segkd.models.modeling_segmentation import SemanticSegmenterOutputWithFeatures, segmentation_loss
from hf_segkd.networks.feature_paths import Output, default_taps, described, problem, recorded, resolve
from hf_segkd.networks.inference import logits_at
from hf_segkd.networks.logits_network import LogitsNetwork
from hf_segkd.networks.outputs import (
    check_several_classes,
    dense_logits,
    image_channels,
    task_inputs,
    trial_size,
)
from hf_segkd.types import NetworkSpec

logger = logging.get_logger(__name__)


class FeatureReader:
    """Reads logits, features and the loss of a segmentation model of transformers; `FeatureNetwork` describes them.

    It is not a module: the `Distiller` holds it beside the student, and the student's parameters keep one name each.

    Args:
        model: The model.
        taps: As in `FeatureNetwork`; the attributes are the same too.
        inputs: As in `FeatureNetwork`.

    Raises:
        ValueError: As `FeatureNetwork` does.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        taps: Mapping[str, str] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        if getattr(model, "tap_channels", None) is not None:
            raise ValueError(f"{type(model).__name__} names its taps itself: {', '.join(model.tap_channels)}.")
        if not isinstance(model, nn.Module) or not isinstance(getattr(model, "config", None), PreTrainedConfig):
            raise ValueError(
                f"FeatureNetwork takes a segmentation model of transformers, and got {described(model)}. A network of "
                "another library can be the teacher: LogitsNetwork(network, taps={...})."
            )
        check_several_classes(model.config)
        self.model = model.eval()
        self.config: PreTrainedConfig = copy.deepcopy(model.config)
        if getattr(self.config, "semantic_loss_ignore_index", None) is None:
            self.config.semantic_loss_ignore_index = getattr(self.config, "loss_ignore_index", 255)
        self.tap_norms: dict[str, tuple[Tensor, Tensor]] = {}
        self.inputs = dict(task_inputs(model) if inputs is None else inputs)
        self._auxiliary = ["auxiliary_head"] if getattr(model, "auxiliary_head", None) is not None else []
        self._overwritten: set[str] = set()
        named = {tap: resolve(model, tap, value) for tap, value in (taps or {}).items()}
        self.taps = {**default_taps(model), **named}
        self.tap_channels = self._try(named)

    @property
    def base_model_prefix(self) -> str:
        """Path of the backbone in the model."""
        prefix = self.model.base_model_prefix
        return prefix if prefix in dict(self.model.named_children()) else "backbone"

    @property
    def classifier(self) -> nn.Conv2d:
        """The 1x1 convolution whose output is the feature `logits`.

        Raises:
            ValueError: If there is none.
        """
        if self._classifier is None:
            raise ValueError(
                f"{type(self.model).__name__} has no 1x1 convolution whose output is the tap 'logits' (here "
                f"{self.taps.get('logits', 'the output of the model')}). If one gives the logits before they are "
                "enlarged, name it: taps={'logits': PATH}; else choose a method that does not read its weight."
            )
        return self.model.get_submodule(self._classifier)

    def __call__(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_features: bool = False,
        loss_function: Callable[[Tensor, Tensor, int], Tensor] = segmentation_loss,
    ) -> SemanticSegmenterOutputWithFeatures:
        """Logits, and features and loss when asked for.

        The loss is not the model's own, which is NaN where no pixel is labelled. It is the cross-entropy of the logits,
        resized to the labels, over the labelled pixels. In training that of the auxiliary head, if the model has one,
        is added times `config.auxiliary_loss_weight`.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            labels: Class of each pixel, (b, hh, ww), 0..k-1 or `config.semantic_loss_ignore_index`.
            output_features: Whether to return the features.
            loss_function: Takes logits (b, k, hh, ww), labels and the ignored label and returns the loss, also of the
                auxiliary head; by default the cross-entropy.

        Raises:
            ValueError: If the model takes no images of this size, or the labels do not fit.
        """
        auxiliary = self._auxiliary if labels is not None and self.model.training else []
        paths = [tap.path for tap in self.taps.values()] if output_features else []
        logits, outputs = self._run(pixel_values, [*paths, *auxiliary])
        loss = None
        if labels is not None:
            loss = self._loss(loss_function, logits, labels)
            for head in auxiliary:
                (auxiliary_logits,) = outputs[head].maps
                weight = self.config.auxiliary_loss_weight
                loss = loss + weight * self._loss(loss_function, auxiliary_logits, labels)
        return SemanticSegmenterOutputWithFeatures(
            loss=loss, logits=logits, features=self._features(logits, outputs) if output_features else None
        )

    def freeze_unused_parameters(self, taps: Iterable[str]) -> None:
        """Freeze the parameters that neither the logits nor these features depend on, and log which.

        Several processes would wait for their gradients forever.

        Args:
            taps: Features that a distillation loss reads.

        Raises:
            ValueError: If the model predicts masks and their classes.
        """
        if self._predicts_masks:
            raise ValueError(
                f"{type(self.model).__name__} predicts masks and their classes: it can be a teacher, but not a "
                "student. Take a student that gives logits for each pixel."
            )
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        with torch.enable_grad():
            logits, outputs = self._run(
                self._trial_image(), [*(tap.path for tap in self.taps.values()), *self._auxiliary]
            )
            features = self._features(logits, outputs)
            ends = [logits, *(features[tap] for tap in taps), *(outputs[head].maps[0] for head in self._auxiliary)]
            total = sum(end.float().sum() for end in ends)
        gradients = torch.autograd.grad(total, trained.values(), allow_unused=True)
        unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
        for name in unused:
            trained[name].requires_grad_(False)
        # Kept with the model, because the next trainer may have another reader of it.
        self.model._frozen_as_unused = unused
        if unused:
            logger.warning(
                f"Nothing that {type(self.model).__name__} is trained on depends on {len(unused)} of its parameters; "
                f"they are frozen: {', '.join(unused)}."
            )

    def unfreeze_unused_parameters(self) -> None:
        """Unfreeze what `freeze_unused_parameters` froze, for a trainer that reads other features."""
        for name in vars(self.model).pop("_frozen_as_unused", []):
            self.model.get_parameter(name).requires_grad_(True)

    def _run(self, pixel_values: Tensor, paths: Iterable[str]) -> tuple[Tensor, dict[str, Output]]:
        """Run the model; returns the logits, and what the modules at these paths returned."""
        inputs = {
            name: value.to(pixel_values.device).expand(len(pixel_values), *value.shape[1:])
            for name, value in self.inputs.items()
        }
        with recorded(self.model, paths, self._overwritten) as outputs:
            try:
                output = self.model(pixel_values=pixel_values, **inputs)
            except (RuntimeError, ValueError) as error:
                if type(error).__module__.startswith("torch._inductor"):
                    raise ValueError(
                        f"torch.compile can't translate {type(self.model).__name__}; train it without torch_compile. "
                        f"{error}"
                    ) from error
                size, tried = tuple(pixel_values.shape[-2:]), trial_size(self.model.config)
                compiling = type(error).__module__.startswith("torch._dynamo")
                cast = pixel_values.dtype != self.model.dtype
                if size == tried or compiling or cast or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(
                    f"{type(self.model).__name__} works on images of {tried[0]} x {tried[1]} and not of {size[0]} x "
                    f"{size[1]}: {error}. Some models take one size (EoMT) or squares (DPT): set crop_size to it."
                ) from error
        self._predicts_masks = getattr(output, "class_queries_logits", None) is not None
        return dense_logits(self.model, output), outputs

    def _features(self, logits: Tensor, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        return {"logits": logits} | {name: outputs[tap.path].maps[tap.index or 0] for name, tap in self.taps.items()}

    def _loss(self, loss_function: Callable[[Tensor, Tensor, int], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits_at(logits, labels.shape[-2:])
        return loss_function(logits, labels, self.config.semantic_loss_ignore_index)

    def _trial_image(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, image_channels(self.model.config), *trial_size(self.model.config), generator=generator)
        return image.to(device=self.model.device, dtype=self.model.dtype)

    @torch.no_grad()
    def _try(self, named: Container[str]) -> dict[str, int]:
        """Channels of each feature, from one image; a missing default feature is dropped, another is an error."""
        convolutions = [
            path
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and module.out_channels == self.config.num_labels
        ]
        paths = [tap.path for tap in self.taps.values()]
        logits, outputs = self._run(self._trial_image(), [*paths, *convolutions])
        for name, tap in list(self.taps.items()):
            if (reason := problem(tap, outputs.get(tap.path))) is None:
                continue
            if name in named:
                kind = type(self.model.get_submodule(tap.path)).__name__
                raise ValueError(f"The tap {name!r} is to be the output of {tap} ({kind}), but {reason}")
            del self.taps[name]
        # An in-place dropout writes only in training, so this run does not show which maps it will write into.
        dropouts = [module for module in self.model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        if any(dropout.inplace for dropout in dropouts):
            self._overwritten = set(paths)
        else:
            self._overwritten = {path for path in paths if path in outputs and outputs[path].overwritten()}
        features = self._features(logits, outputs)
        ends = [path for path in convolutions if path in outputs and outputs[path].maps[0] is features["logits"]]
        self._classifier = ends[-1] if ends else None
        return {tap: feature.shape[1] for tap, feature in features.items()}


class FeatureNetwork(nn.Module):
    """A segmentation model of transformers with the features of a teacher or student.

    `output.logits` are the model's own: dense ones at its own resolution (SegFormer, UperNet, BEiT, DPT, MobileNetV2,
    MobileViT ...), or `query_log_probabilities` of a model that predicts masks and their classes (MaskFormer,
    Mask2Former, OneFormer, EoMT), which can only be a teacher. Features are maps that modules return. Those of
    `hf_segkd.networks.feature_paths.DEFAULT_TAPS` need not be named; in their models the feature `logits` is the
    classifier's output before it is enlarged, in others `output.logits`.

    The model is put in evaluation mode and tried once on a random image. It stays the same object: its weights are
    neither copied nor changed.

    Args:
        model: The model.
        taps: Feature name -> path of the module whose output it is, such as `{"decoder": "decode_head.linear_fuse"}`,
            or a regular expression that matches one path in full; `"backbone:0"` is the first map of a module that
            gives several. They override the defaults. `hf-segkd inspect_model` lists the candidates.
        inputs: Inputs of the model's `forward` beside `pixel_values`, each with a batch of 1. By default OneFormer's
            `task_inputs` are made by the tokenizer it was saved with.

    Attributes:
        model: The model.
        reader: The `FeatureReader` of the model.
        config: The model's, with `semantic_loss_ignore_index` where it has none: UperNet's own, else 255.
        taps: Feature name -> `Tap`.
        tap_channels: Feature name -> channels.
        tap_norms: Empty: in models of transformers it is not known which norm ends in a feature.

    Raises:
        ValueError: If it is no model of transformers or has one class, a path names no module or several, a module's
            output is not a (b, c, h, w) map, or the model's output holds neither dense logits nor masks with classes.

    Example:
        >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation
        >>> from hf_segkd import FeatureNetwork
        >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=4, hidden_sizes=[8, 16, 24, 32]))
        >>> network = FeatureNetwork(model, taps={"fused": "decode_head.linear_fuse"})
        >>> network.tap_channels["logits"], network.tap_channels["fused"], network.tap_channels["stage4"]
        (4, 256, 32)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        taps: Mapping[str, str] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.reader = FeatureReader(model, taps, inputs)
        self.model = model
        self.config = self.reader.config
        self.taps = self.reader.taps
        self.tap_channels = self.reader.tap_channels
        self.tap_norms = self.reader.tap_norms

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

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_features: bool = False
    ) -> SemanticSegmenterOutputWithFeatures:
        """Logits, and features and loss when asked for, as `FeatureReader` returns them."""
        return self.reader(pixel_values, labels, output_features)


def network_spec(network: nn.Module) -> NetworkSpec:
    """What the losses must know of a network.

    Raises:
        ValueError: If the network does not name its features.
    """
    channels = getattr(network, "tap_channels", None)
    if channels is None:
        raise ValueError(
            f"{type(network).__name__} has no `tap_channels`, so its features can't be distilled: wrap it in "
            "hf_segkd.FeatureNetwork."
        )
    return NetworkSpec(
        channels,
        network.config.num_labels,
        network.config.semantic_loss_ignore_index,
        norms=getattr(network, "tap_norms", {}),
    )


def with_taps(model: Any) -> nn.Module:
    """The network itself if it names its features, as those of hf_segkd do.

    Else a `FeatureNetwork` of a model of transformers, and a `LogitsNetwork`, which can only teach, of any other.
    """
    if getattr(model, "tap_channels", None) is not None:
        return model
    return FeatureNetwork(model) if isinstance(model, PreTrainedModel) else LogitsNetwork(model)


def without_taps(network: nn.Module) -> nn.Module:
    """The model in a `FeatureNetwork` or `LogitsNetwork`; any other network itself."""
    return network.model if isinstance(network, FeatureNetwork | LogitsNetwork) else network
