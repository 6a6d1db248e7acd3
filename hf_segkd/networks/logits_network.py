"""`LogitsNetwork`: a trained network of any library as a teacher."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_segkd.models.modeling_segmentation import SemanticSegmenterOutputWithFeatures
from hf_segkd.networks.callable_network import WANTED, CallableNetwork, as_module, title
from hf_segkd.networks.feature_paths import Output, Tap, described, maps_of, problem, recorded, resolve
from hf_segkd.networks.outputs import RGB, TRIAL_SIZE, image_channels, trial_size

# Height and width of the images that networks of ImageNet take, tried where TRIAL_SIZE is too small or not theirs.
USUAL_SIZE = 224


class LogitsNetworkConfig(PreTrainedConfig):
    """What is known of a `LogitsNetwork`: its classes, images, and `network_class`, the name of the network's class."""

    model_type = "logits-network"


class LogitsNetwork(nn.Module):
    """A trained network of any library as a teacher: torchvision, segmentation_models_pytorch, timm, your own.

    `DistillationTrainer` and `Teacher` make one of any network that is not of transformers. Make it yourself to name
    features or classes. The network is called as `network(images)`, with the pixels of `teacher_processor`, and gives
    logits (b, k, h, w) of any h and w: a tensor, `logits` or `out` of a dict or object, or the only such map of a tuple
    or dict.

    The network is put in evaluation mode and tried once on a random image. It stays the same object: its weights are
    neither copied nor changed. It can't be a student, which is saved and loaded by `from_pretrained`.

    Args:
        network: The network, a module. Or a function that calls one, such as `lambda images: network(images)[0]`: the
            modules that it refers to are then treated as the network.
        taps: Feature name -> path of the module whose output it is, as in `FeatureNetwork`. A method on features
            asks for `decoder`, `backbone` and so on; the feature `logits` is always there, by default the output.
        names: Names of the classes, in order, to pair them with the student's. By default they have none, and are
            paired by their index.
        num_channels: Channels of the images.
        image_size: Height and width, or side, of the image that is tried, for networks that take one size only. By
            default 64 x 64, and if it does not take that 224 x 224.

    Attributes:
        model: The network.
        config: Its classes, channels and the name of its class.
        taps: Feature name -> `Tap`.
        tap_channels: Feature name -> channels.

    Raises:
        ValueError: If it is no such network, it gives one class or probabilities, there are not as many names as
            classes, or a path names no map.

    Example:
        >>> from torchvision.models.segmentation import lraspp_mobilenet_v3_large
        >>> network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
        >>> teacher = LogitsNetwork(network, taps={"decoder": "classifier.cbr", "backbone": "backbone:1"})
        >>> teacher.tap_channels["logits"], teacher.tap_channels["decoder"], teacher.tap_channels["backbone"]
        (4, 128, 960)
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor], Any],
        taps: Mapping[str, str] | None = None,
        *,
        names: Sequence[str] | None = None,
        num_channels: int = RGB,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        try:
            self.model = as_module(network).eval()
        except NotImplementedError as error:
            raise ValueError(
                f"{title(type(network))} can't be put in evaluation mode ({error}): pass the network that was exported."
            ) from error
        # Says where a network without weights is to get its images.
        self.register_buffer("_place", torch.empty(0, dtype=torch.uint8), persistent=False)
        self.name_or_path = ""
        self.config = LogitsNetworkConfig(
            num_channels=num_channels,
            image_size=image_size,
            semantic_loss_ignore_index=255,
            network_class=self.model.title if isinstance(self.model, CallableNetwork) else title(type(self.model)),
        )
        self.taps = {tap: resolve(self.model, tap, value) for tap, value in (taps or {}).items()}
        self.tap_norms: dict[str, tuple[Tensor, Tensor]] = {}
        self._overwritten: set[str] = set()
        logits, outputs = self._try()
        self.config.id2label = self._names_of(logits.shape[1], names)
        self.config.label2id = {name: index for index, name in self.config.id2label.items()}
        self.tap_channels = {tap: feature.shape[1] for tap, feature in self._features(logits, outputs).items()}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        """The network's number format; float32 if it has no weights."""
        numbers = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((value.dtype for value in numbers if value.is_floating_point()), torch.float32)

    def num_parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(value.numel() for value in self.model.parameters())

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the network's parameters, and of its buffers."""
        numbers = itertools.chain(self.model.parameters(), self.model.buffers() if return_buffers else ())
        return sum(value.nbytes for value in numbers)

    def forward(self, pixel_values: Tensor, output_features: bool = False) -> SemanticSegmenterOutputWithFeatures:
        """Logits, and features when asked for.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            output_features: Whether to return the features.

        Raises:
            ValueError: If the network takes no images of this size.
        """
        size, tried = tuple(pixel_values.shape[-2:]), trial_size(self.config)
        try:
            output, outputs = self._call(pixel_values, self.taps.values() if output_features else ())
        except (RuntimeError, ValueError, AssertionError) as error:
            compiling = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
            if size == tried or compiling or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{self.config.network_class} works on images of {tried[0]} x {tried[1]} and not of {size[0]} x "
                f"{size[1]}: {error}. Set crop_size to a size that it takes: some take one, others multiples of 32."
            ) from error
        logits = self._logits_of(output, pixel_values)
        features = self._features(logits, outputs) if output_features else None
        return SemanticSegmenterOutputWithFeatures(logits=logits, features=features)

    def _call(self, pixel_values: Tensor, taps: Iterable[Tap]) -> tuple[Any, dict[str, Output]]:
        """What the network gives, and what the modules of these taps do."""
        with recorded(self.model, [tap.path for tap in taps], self._overwritten) as outputs:
            return self.model(pixel_values), outputs

    def _logits_of(self, output: Any, pixel_values: Tensor) -> Tensor:
        logits = logits_in(output)
        if logits is None:
            what = described(output)
            if maps := [str(tuple(found.shape)) for found in maps_of(output)]:
                what += f" with the maps {', '.join(maps)}"
        elif logits.ndim != 4 or len(logits) != len(pixel_values) or not logits.is_floating_point():
            what = f"{described(logits)} and {logits.dtype}"
        else:
            return logits
        raise ValueError(
            f"{self.config.network_class} gave {what} for images {tuple(pixel_values.shape)}. {WANTED} If yours gives "
            "something else, pass a function that picks the logits, such as lambda images: network(images)[0]."
        )

    def _features(self, logits: Tensor, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        return {"logits": logits} | {name: outputs[tap.path].maps[tap.index or 0] for name, tap in self.taps.items()}

    def _answer(self) -> tuple[Tensor, Any, dict[str, Output]]:
        """A random image of a size that the network takes, and what it and the modules of its taps give for it."""
        errors: list[Exception] = []
        for size in (TRIAL_SIZE, USUAL_SIZE) if self.config.image_size is None else (self.config.image_size,):
            height, width = (size, size) if isinstance(size, int) else size
            generator = torch.Generator().manual_seed(0)
            image = torch.randn(1, image_channels(self.config), height, width, generator=generator)
            image = image.to(device=self.device, dtype=self.dtype)
            try:
                output, outputs = self._call(image, self.taps.values())
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                errors.append(error)
                continue
            if size != TRIAL_SIZE:
                self.config.image_size = size
            return image, output, outputs
        raise ValueError(
            f"{self.config.network_class} can't be called with one image: {type(errors[0]).__name__}: {errors[0]}. "
            f"{WANTED} If it takes images of another size or number of channels, say so: LogitsNetwork(network, "
            "image_size=(height, width), num_channels=...)."
        ) from errors[0]

    @torch.no_grad()
    def _try(self) -> tuple[Tensor, dict[str, Output]]:
        """Logits and outputs for a random image, after looking at both."""
        image, output, outputs = self._answer()
        logits = self._logits_of(output, image)
        if logits.shape[1] == 1:
            raise ValueError(
                f"{self.config.network_class} gives the logit of one class, and a teacher must give those of at least "
                "two: a softmax over one is always 1. If it is a foreground's, for a sigmoid, pass the function lambda "
                "images: torch.nn.functional.pad(network(images), (0, 0, 0, 0, 1, 0)): a background of logit 0 before "
                "it has the same probabilities."
            )
        sums = logits.float().sum(1)
        if logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
            raise ValueError(
                f"{self.config.network_class} gives probabilities, which add up to 1, and the methods need logits: "
                "build it without its last softmax, or pass a function that gives their logarithm."
            )
        for name, tap in self.taps.items():
            if (reason := problem(tap, outputs.get(tap.path))) is not None:
                kind = type(self.model.get_submodule(tap.path)).__name__
                raise ValueError(f"The tap {name!r} is to be the output of {tap} ({kind}), but {reason}")
        self._overwritten = {path for path, output in outputs.items() if output.overwritten()}
        return logits, outputs

    def _names_of(self, num_labels: int, names: Sequence[str] | None) -> dict[int, str]:
        """Index -> name: those given, those of a config of transformers within the network, or LABEL_0 and so on."""
        if names is not None and len(names) != num_labels:
            raise ValueError(
                f"{self.config.network_class} gives logits of {num_labels} classes, and {len(names)} names were "
                f"given: {list(names)}. Give one for each, the background's too."
            )
        known = getattr(self.model, "config", None)
        if names is None and isinstance(known, PreTrainedConfig) and known.num_labels == num_labels:
            return dict(known.id2label)
        return dict(enumerate(names or (f"LABEL_{index}" for index in range(num_labels))))


def logits_in(output: Any) -> Tensor | None:
    """The logits in what a network gave; None where it does not say which they are."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    maps = maps_of(output)
    return maps[0] if len(maps) == 1 else None
