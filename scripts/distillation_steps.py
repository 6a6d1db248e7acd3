"""The steps that the benchmarks compare: the student's own, ours, with cached features, and as published."""

import contextlib
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_segkd.losses import create_loss
from hf_segkd.losses.attnfd import normalized_distance
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.networks.teacher import Teacher
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller, network_spec
from hf_segkd.training.parameter_groups import parameter_groups
from hf_segkd.training.teacher_cache import TeacherCache
from hf_segkd.types import Features

ROOT = Path(__file__).resolve().parents[1]
# Operations whose result the host waits for.
HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


@dataclass(frozen=True)
class Case:
    """Networks and a batch.

    Attributes:
        name: What it is called.
        size: Height and width of the crops.
        batch: Images in a batch.
        classes: How many there are.
        student: Arguments of the student's `DeepLabV3PlusConfig`.
        teacher: Those of the teacher's.
    """

    name: str
    size: tuple[int, int]
    batch: int
    classes: int
    student: dict[str, Any] = field(default_factory=lambda: {"backbone": "resnet18"})
    teacher: dict[str, Any] = field(default_factory=lambda: {"backbone": "resnet101"})


class Steps:
    """Networks, batch and optimizer that the variants share.

    Args:
        case: Networks and batch.
        method: The distillation loss, with its defaults.
        device: Where all is.
        autocast: Number format of the forwards, None for float32.
        backend: What compiles teacher and student, None for nothing.
        networks: Student and teacher of the case, None to make them.
    """

    def __init__(
        self,
        case: Case,
        method: str = "attnfd",
        device: str = "cpu",
        autocast: torch.dtype | None = None,
        backend: str | None = None,
        networks: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.case, self.device, self.dtype = case, torch.device(device), autocast
        self.student, self.teacher = networks or (
            network(case.student, case.classes).to(self.device).train(),
            network(case.teacher, case.classes).to(self.device).eval(),
        )
        self.loss = create_loss(method, network_spec(self.student), network_spec(self.teacher))
        self.distiller = Distiller(self.student, self.loss).to(self.device)
        self.arguments = DistillationArguments(
            output_dir=tempfile.mkdtemp(), use_cpu=self.device.type == "cpu", method=method
        )
        self.optimizer = torch.optim.SGD(parameter_groups(self.distiller, self.arguments), lr=1e-3, momentum=0.9)
        images, labels = random_batch(case)
        self.batch = {"pixel_values": images.to(self.device), "labels": labels.to(self.device)}
        self.mark: Callable[[str], None] = lambda part: None  # told when each part of `ours` ends
        self._run_student, self._run_teacher, self._run_distiller = self.student, self.teacher, self.distiller
        if backend is None:
            self.student.register_forward_hook(lambda *_: self.mark("student's forward"))
        else:
            modules = (self.student, self.teacher, self.distiller)
            compiled = [torch.compile(module, backend=backend) for module in modules]
            self._run_student, self._run_teacher, self._run_distiller = compiled
        self._cache: TeacherCache | None = None
        self._fastest: Teacher | None = None

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """The autocast of the forwards."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def update(self, loss: Tensor) -> None:
        """Backward and optimizer step."""
        loss.backward()
        self.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.mark("optimizer")

    def taught(self, images: Tensor) -> Features:
        """What the loss reads of the teacher."""
        with torch.no_grad(), self.precision():
            features = self._run_teacher(pixel_values=images, output_features=True).features
        self.mark("teacher's forward")
        return {tap: features[tap] for tap in self.loss.teacher_taps}

    def learn(self, features: Features) -> None:
        """The step with the teacher's features at hand."""
        with self.precision():
            loss = self._run_distiller(**self.batch, teacher_features=features)["loss"]
        self.mark("loss")
        self.update(loss)

    def student_alone(self) -> None:
        """The student's step on its labels."""
        with self.precision():
            loss = self._run_student(**self.batch).loss
        self.update(loss)

    def bare_sum(self) -> None:
        """The floor: the student's step on its labels, and the teacher's forward in inference mode."""
        with torch.inference_mode(), self.precision():
            self._run_teacher(pixel_values=self.batch["pixel_values"])
        self.student_alone()

    def ours(self) -> None:
        """The distillation step as the trainer takes it."""
        self.learn(self.taught(self.batch["pixel_values"]))

    def cached(self) -> None:
        """The same with what the loss reads of the teacher in files of 16 bits."""
        if self._cache is None:
            # Random weights give more than float16 holds.
            self._cache = TeacherCache(tempfile.mkdtemp(), torch.bfloat16, {})
        crops = [f"image {index}" for index in range(self.case.batch)]
        self.learn(self._cache.features(self.batch["pixel_values"], crops, self.taught))

    def fastest_teacher(self) -> None:
        """The same with a teacher of `teacher_dtype fastest`."""
        if self._fastest is None:
            self._fastest = Teacher(self.teacher, dtype="fastest")
        features = self._fastest.features(self.batch["pixel_values"])
        self.learn({tap: features[tap] for tap in self.loss.teacher_taps})

    def as_published(self) -> None:
        """As AttnFD's released code does it: the teacher in training mode and in the autograd graph."""
        self.teacher.train().requires_grad_(True)
        with self.precision():
            teacher = self._run_teacher(pixel_values=self.batch["pixel_values"], output_features=True).features
            student = self._run_student(**self.batch, output_features=True)
            modules = zip(self.loss.student_attention, self.loss.connectors, self.loss.teacher_attention, strict=True)
            distances = [
                normalized_distance(connector(attention(student.features[place])), teacher_attention(teacher[place]))
                for place, (attention, connector, teacher_attention) in zip(
                    self.loss.student_taps, modules, strict=True
                )
            ]
        self.update(student.loss + self.loss.weights["attnfd"] * sum(distances))
        self.teacher.eval().requires_grad_(False).zero_grad()


def network(options: dict[str, Any], classes: int) -> DeepLabV3PlusForSemanticSegmentation:
    """A network with random weights."""
    return DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(**options, num_labels=classes))


def random_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Images and labels of a case."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, *case.size, generator=generator)
    return images, torch.randint(case.classes, (case.batch, *case.size), generator=generator)


def waits(function: Callable[[], None], device: torch.device) -> Counter[str]:
    """Places in the code at which a call waits for the device, each with how often.

    On a GPU they are what CUDA's sync debug mode warns of: also copies to the device that the host waits for. Elsewhere
    they are the operations whose result the host reads, but for those on images that are not on the device yet.
    """
    if device.type != "cuda":
        with _HostReads() as reads:
            function()
        return reads.places
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    return Counter(f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}" for warning in found)


class _HostReads(TorchDispatchMode):
    """Counts the operations whose result the host reads, by the innermost line of a library that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in HOST_READS:
            place = next(_frames_outside_torch())
            if "/data/" not in place.filename:  # runs on the host in any case
                self.places[f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}"] += 1
        return func(*args, **(kwargs or {}))


def _frames_outside_torch() -> Iterator[traceback.FrameSummary]:
    """From the innermost out."""
    own = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_stack()):
        if not Path(frame.filename).is_relative_to(own) and frame.filename != __file__:
            yield frame
    yield traceback.FrameSummary(__file__, 0, "")
