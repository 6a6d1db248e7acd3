"""`Teacher`: a frozen network that sees the student's images as its own and answers in the student's classes."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, broadcast_object_list
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_segkd.data.image_processors import normalisation, reverses_channels
from hf_segkd.models.modeling_segmentation import SemanticSegmenterOutputWithFeatures
from hf_segkd.networks.arithmetic import Arithmetic, fastest, network_in
from hf_segkd.networks.channels import check_teacher
from hf_segkd.networks.class_map import ClassMap, match_classes
from hf_segkd.networks.feature_network import FeatureNetwork, network_spec, with_taps
from hf_segkd.types import Features, NetworkSpec

logger = logging.get_logger(__name__)


class Teacher(nn.Module):
    """A network to learn from: its own normalisation of the images, number format, batch norms and classes.

    The network itself is frozen, put in evaluation mode and moved to the device of the run, because a copy would double
    its memory. It gets no hook, and its weights keep their values and dtype: where `dtype` is another one, the teacher
    works with a copy, and the network stays as it is.

    Args:
        network: Any segmentation network; one that is not of transformers becomes a `LogitsNetwork`.
        processor: Its image processor; None where it sees pixels as the student does.
        class_map: Which of its classes teaches which of the student's: see `match_classes`.
        dtype: Number format of the weights: `float32`, `bfloat16` or `float16`, which the network then computes in;
            `auto` leaves the weights as they are and computes under the run's autocast. `fastest` measures, with the
            first images, what the device is fastest in (`hf_segkd.networks.arithmetic.fastest`); batch norms on running
            statistics are then folded into convolutions, in a copy.
        batch_norm: Statistics of its batch norms: `eval` the running ones, `batch_stats` those of each batch, `auto`
            what the method asks for.
        student: The network it teaches, whose classes it answers in. By default it answers in its own.
        student_processor: Image processor of the student, which makes the images that the teacher is given.

    Attributes:
        network: The network with its features, or its copy in `dtype`; with `fastest` the network, not what runs.
        classes: From the network's classes to the student's; None where they can't be matched.
        renormalisation: From the student's pixels to the network's; None where they are the same.
        dtype: The dtype of what runs; images are cast to it.
        arithmetic: What `fastest` chose; None before its first images, and otherwise.
        uses_batch_statistics: Whether its batch norms take the statistics of each batch.

    Raises:
        ValueError: If it is no such network, the student's processor is missing, the class map does not fit, or the
            network takes images of another number of channels than the student.
    """

    def __init__(
        self,
        network: nn.Module,
        processor: Any = None,
        class_map: ClassMap | str | None = None,
        dtype: str = "auto",
        batch_norm: str = "auto",
        *,
        student: PreTrainedModel | FeatureNetwork | None = None,
        student_processor: Any = None,
    ) -> None:
        super().__init__()
        network = with_taps(network)
        student = network if student is None else student
        check_teacher(network.config, student.config)
        self.renormalisation = _renormalisation(student_processor, processor)
        self.classes = match_classes(class_map, network.config.id2label, student.config.id2label)
        self.network = network if dtype in ("auto", "fastest") else _in_dtype(network, getattr(torch, dtype))
        self.dtype = self.network.dtype
        self.arithmetic: Arithmetic | None = None
        self._under_autocast = dtype == "auto"
        self._measures = dtype == "fastest"
        self._copies: list[nn.Module] = []  # what `fastest` chose; in a list it is no part of the state dict
        self._channels_last = False
        self._compile: Callable[[nn.Module], Callable] | None = None
        self._batch_norm = batch_norm
        self.uses_batch_statistics = batch_norm == "batch_stats"
        self._call = self.__call__
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    @property
    def spec(self) -> NetworkSpec:
        """What the losses must know; `logits` are those of the common classes, and missing where there are none."""
        spec = network_spec(self.network)
        channels = {tap: count for tap, count in spec.channels.items() if tap != "logits"}
        if self.classes is None:
            return replace(spec, channels=channels)
        common = len(self.classes.common)
        return replace(spec, num_labels=common, channels={**channels, "logits": common})

    def prepare(
        self, accelerator: Accelerator, batch_statistics: bool | None = False, channels_last: bool = False
    ) -> None:
        """Go to the device of a run and compute as the run does: under its autocast and compiled, if `dtype` is auto.

        Args:
            accelerator: Accelerator of the trainer.
            batch_statistics: Whether the method wants the batch norms to normalise by the statistics of each batch;
                None of several methods that differ.
            channels_last: Whether weights and maps have the channels last.

        Raises:
            ValueError: If `batch_norm` is `batch_stats` and would do nothing, or is `auto` and the methods differ.
        """
        self.use_statistics(batch_statistics)
        self._channels_last = channels_last
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if self._under_autocast:
            # Only its call is compiled: torch.compile gives a module that holds the teacher.
            self._call = accelerator.prepare_model(self, evaluation_mode=True).__call__
        else:
            self.to(accelerator.device)  # accelerate would put it under the autocast of the student
            plugin = accelerator.state.dynamo_plugin
            if self._measures and plugin.backend != DynamoBackend.NO:
                self._compile = partial(torch.compile, **plugin.to_kwargs())

    def take(self, arithmetic: Arithmetic) -> None:
        """Compute as an earlier part of the run did, in place of what `fastest` would measure."""
        self.arithmetic = arithmetic
        self._copies = []

    def use_statistics(self, batch_statistics: bool | None) -> None:
        """Normalise as a method wants it, unless the teacher was told otherwise; `prepare` does it for the first.

        Raises:
            ValueError: As `prepare` does.
        """
        self.uses_batch_statistics = self._takes_batch_statistics(batch_statistics)

    def features(self, images: Tensor) -> Features:
        """The network's features, without gradients.

        Args:
            images: As the student's processor normalises them, (b, 3, hh, ww).

        Returns:
            Feature name -> map; `logits` of the common classes, in the student's order, missing where there are none.
        """
        if self._measures and not self._copies:
            self._settle(images)
        norms = batch_statistics(self._running) if self.uses_batch_statistics else contextlib.nullcontext()
        with torch.no_grad(), norms:
            return self._call(pixel_values=images, output_features=True).features

    def forward(self, pixel_values: Tensor, output_features: bool = False) -> SemanticSegmenterOutputWithFeatures:
        """Logits of the student's classes, or the features when they are asked for.

        Args:
            pixel_values: Images as the student's processor normalises them, (b, 3, hh, ww).
            output_features: Whether to return the features.

        Returns:
            By default `logits` of all classes of the student, those without a partner never the largest (without
            common classes: the network's own). With `output_features` what the method `features` returns.
        """
        if self.renormalisation is not None:
            pixel_values = self.renormalisation(pixel_values)
        output = self._running(pixel_values=pixel_values.to(self.dtype), output_features=output_features)
        if not output_features:
            logits = output.logits if self.classes is None else self.classes.spread(self._common(output.logits))
            return SemanticSegmenterOutputWithFeatures(logits=logits)
        features = {tap: feature for tap, feature in output.features.items() if tap != "logits"}
        if self.classes is not None:
            features["logits"] = self._common(output.features["logits"])
        return SemanticSegmenterOutputWithFeatures(features=features)

    @property
    def _running(self) -> nn.Module:
        return self._copies[0] if self._copies else self.network

    def _settle(self, images: Tensor) -> None:
        """Choose the arithmetic, if it is not chosen, and make the network that computes so."""
        images = images if self.renormalisation is None else self.renormalisation(images)
        images = images.to(self.network.dtype)
        chosen = self.arithmetic
        if chosen is None:
            chosen = fastest(self.network, images, not self.uses_batch_statistics, self._channels_last)
            (fields,) = broadcast_object_list([chosen._asdict()])  # processes may measure differently
            chosen = self.arithmetic = Arithmetic(**fields)
        given = Arithmetic(str(self.network.dtype).removeprefix("torch."), False, self._channels_last)
        self._copies = [self.network if chosen == given else network_in(chosen, self.network, images)]
        self.dtype = self._running.dtype
        self._call = self.__call__ if self._compile is None else self._compile(self).__call__

    def _common(self, logits: Tensor) -> Tensor:
        return logits if self.classes.is_identity else self.classes.merge(logits)

    def _takes_batch_statistics(self, wanted: bool | None) -> bool:
        if not _batch_norms(self.network):
            if self._batch_norm == "batch_stats":
                raise ValueError(
                    "teacher_batch_norm is batch_stats, but the teacher has no batch norm: it would change nothing. "
                    "Leave it at auto."
                )
            if self._batch_norm == "auto" and wanted is not False:
                logger.warning(
                    "The method wants the teacher's batch norms to use the statistics of each batch, and the teacher "
                    "has none: it works as it always does."
                )
            return False
        if self._batch_norm != "auto":
            return self._batch_norm == "batch_stats"
        if wanted is None:
            raise ValueError(
                "One of the methods wants the teacher's batch norms to use the statistics of each batch, another their "
                "running ones, and there is one teacher. Set teacher_batch_norm (--teacher_batch_norm eval or "
                "batch_stats)."
            )
        return wanted


class Renormalisation(nn.Module):
    """Turns pixels as one image processor normalises them into those of another, both (b, c, h, w).

    With pixels u of 0 to 255 and f, m, s the rescale factor, mean and std of a processor, x = (f u - m) / s; so
    y = x * (s f' / (f s')) + (m f' / f - m') / s'. Where one of the two gives BGR, the channels are swapped first.
    The result is what the other processor gives for the same crop: padding keeps its colour.

    Args:
        before: The processor of the pixels that are given.
        after: The processor of the pixels that are wanted.
    """

    def __init__(self, before: Any, after: Any) -> None:
        super().__init__()
        self.reverses = reverses_channels(before) != reverses_channels(after)
        (mean, std, factor), (new_mean, new_std, new_factor) = _constants(before), _constants(after)
        if self.reverses:
            mean, std = mean.flip(0), std.flip(0)
        ratio = new_factor / factor
        self.register_buffer("scale", (std * ratio / new_std).float().view(1, -1, 1, 1))
        self.register_buffer("offset", ((mean * ratio - new_mean) / new_std).float().view(1, -1, 1, 1))

    @property
    def is_identity(self) -> bool:
        """Whether both processors prepare pixels alike."""
        same = torch.allclose(self.scale, torch.ones(())) and torch.allclose(self.offset, torch.zeros(()), atol=1e-6)
        return same and not self.reverses

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        if self.reverses:
            pixel_values = pixel_values.flip(1)
        return torch.addcmul(self.offset.to(pixel_values), pixel_values, self.scale.to(pixel_values))


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, the network's batch norms normalise by the statistics of each batch, as in training.

    Their running statistics are neither read nor changed, and nothing else, such as dropout, leaves its mode.
    `SyncBatchNorm` takes the statistics of all processes.

    Args:
        network: The network, in any mode.
    """
    norms = _batch_norms(network)
    modes = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, track_running_stats) in zip(norms, modes, strict=True):
            norm.training, norm.track_running_stats = training, track_running_stats


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _in_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network itself if all its floating-point numbers have this dtype, else a copy in which they do."""
    numbers = (value for value in itertools.chain(network.parameters(), network.buffers()) if value.is_floating_point())
    return network if all(value.dtype == dtype for value in numbers) else copy.deepcopy(network).to(dtype)


def _renormalisation(student_processor: Any, processor: Any) -> Renormalisation | None:
    if processor is None:
        return None
    if student_processor is None:
        raise ValueError(
            "teacher_processor is given but not processing_class, the student's image processor: how the pixels "
            "come is not known. Pass both, or neither."
        )
    change = Renormalisation(student_processor, processor)
    return None if change.is_identity else change


def _constants(processor: Any) -> tuple[Tensor, Tensor, float]:
    """Mean, std and rescale factor; the mean and std in float64."""
    values = normalisation(processor)
    mean, std = (torch.tensor(values[name], dtype=torch.float64) for name in ("image_mean", "image_std"))
    return mean, std, values["rescale_factor"]
