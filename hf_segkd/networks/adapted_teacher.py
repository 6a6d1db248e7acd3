"""A teacher that was made for other pixels or other classes than its student."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_segkd.data.image_processors import normalisation, reverses_channels
from hf_segkd.models.modeling_segmentation import SemanticSegmenterOutputWithFeatures
from hf_segkd.networks import with_taps
from hf_segkd.networks.channels import check_teacher
from hf_segkd.networks.class_map import ClassMap, match_classes


class Renormalisation(nn.Module):
    """From pixels as one image processor normalises them to pixels as another does, (b, c, h, w) both.

    With pixels u of 0 to 255 and f, m, s the rescale factor, mean and std of a processor, x = (f u - m) / s; so
    y = x * (s f' / (f s')) + (m f' / f - m') / s'. Where one of the two gives BGR, the channels change places first.
    It is what the other processor gives for the same crop: padding keeps its colour.

    Args:
        before: The processor of the pixels that come.
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


class AdaptedTeacher(nn.Module):
    """A network that sees the student's pixels as its own image processor makes them, and speaks of its classes.

    It offers what a teacher offers: `tap_channels`, `tap_norms`, `config` and `forward`.

    Args:
        network: The teacher, one that names its taps.
        renormalisation: From the student's pixels to the teacher's; None where they are the same.
        class_map: From the teacher's classes to the student's; None where they have nothing to do with each other:
            then there is no tap `logits`.

    Attributes:
        config: The network's; of a mapped one with the student's classes.
        tap_channels: Tap name -> channels; `logits` has one for each class that teacher and student have in common.
    """

    def __init__(
        self, network: nn.Module, renormalisation: Renormalisation | None = None, class_map: ClassMap | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.renormalisation = renormalisation
        self.class_map = class_map
        self.tap_norms = network.tap_norms
        self.tap_channels = {tap: channels for tap, channels in network.tap_channels.items() if tap != "logits"}
        self.config = copy.deepcopy(network.config)
        if class_map is not None:
            self.tap_channels["logits"] = len(class_map.common)
            self.config.id2label = dict(enumerate(class_map.student))
            self.config.label2id = {name: index for index, name in enumerate(class_map.student)}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    def forward(self, pixel_values: Tensor, output_features: bool = False) -> SemanticSegmenterOutputWithFeatures:
        """Logits, or the taps when they are asked for.

        Args:
            pixel_values: Images as the student's processor normalises them, (b, 3, hh, ww).
            output_features: Whether to return the taps.

        Returns:
            Without taps `logits` of all classes of the student, those without a partner never the largest (without a
            class map: the network's own). Else `features`, and `features["logits"]` of the common classes alone.
        """
        if self.renormalisation is not None:
            pixel_values = self.renormalisation(pixel_values)
        output = self.network(pixel_values=pixel_values, output_features=output_features)
        if not output_features:
            logits = output.logits
            if self.class_map is not None:
                logits = self.class_map.spread(self.class_map.merge(logits))
            return SemanticSegmenterOutputWithFeatures(logits=logits)
        features = {tap: feature for tap, feature in output.features.items() if tap in self.tap_channels}
        if self.class_map is not None:
            features["logits"] = self.class_map.merge(features["logits"])
        return SemanticSegmenterOutputWithFeatures(features=features)


def adapted(
    teacher: nn.Module,
    student: PreTrainedModel,
    *,
    teacher_processor: Any = None,
    student_processor: Any = None,
    class_map: ClassMap | str | None = None,
) -> nn.Module:
    """A teacher for a student: the network itself where pixels and classes are the student's, else adapted.

    Args:
        teacher: Any segmentation network.
        student: The student.
        teacher_processor: Image processor of the teacher; None where it sees pixels as the student does.
        student_processor: Image processor of the student.
        class_map: See `match_classes`.

    Raises:
        ValueError: If the student's processor is missing, the class map does not fit, or the teacher takes images of
            another number of channels.
    """
    network, renormalisation = with_taps(teacher), None
    check_teacher(network.config, student.config)
    if teacher_processor is not None:
        if student_processor is None:
            raise ValueError(
                "teacher_processor is given but not processing_class, the student's image processor: how the pixels "
                "come is not known. Pass both, or neither."
            )
        renormalisation = Renormalisation(student_processor, teacher_processor)
        if renormalisation.is_identity:
            renormalisation = None
    classes = match_classes(class_map, network.config.id2label, student.config.id2label)
    if renormalisation is None and classes is not None and classes.is_identity:
        return network
    return AdaptedTeacher(network, renormalisation, classes)


def class_map_of(teacher: nn.Module) -> ClassMap | None:
    """From the classes of a teacher that `adapted` gave to the student's; None where they have nothing in common."""
    if isinstance(teacher, AdaptedTeacher):
        return teacher.class_map
    return ClassMap.from_indices(teacher.config.id2label, teacher.config.id2label)


def _constants(processor: Any) -> tuple[Tensor, Tensor, float]:
    """Mean, std and rescale factor; the mean and std in float64."""
    values = normalisation(processor)
    mean, std = (torch.tensor(values[name], dtype=torch.float64) for name in ("image_mean", "image_std"))
    return mean, std, values["rescale_factor"]
