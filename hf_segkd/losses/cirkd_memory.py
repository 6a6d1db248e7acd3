"""CIRKD's memory terms: relations of pixels to the teacher's vectors of earlier images (Yang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hf_segkd.losses.class_covariance import sort_by_class
from hf_segkd.losses.distributed import gather_rows
from hf_segkd.losses.ifvd import class_sums

# Pixels of each class that an image puts into the queue, at most (authors' code).
PIXELS_PER_IMAGE = 16
# Seed of the random draws, with the number of updates.
SEED = 0


def key_divergence(
    student: Tensor, teacher: Tensor, keys: Tensor, temperature: float = 0.1, kd_temperature: float = 1.0
) -> Tensor:
    r"""Mean over pixels of $T^2 \, KL(p^t \| p^s)$, p being a pixel's relations to the keys, in nats.

    With unit vectors f of a pixel and v of the keys, $p = \mathrm{softmax}_v(f \cdot v / (\tau T))$.

    Args:
        student: Pixels of the student, (m, c). Without any, the result is 0 with a graph.
        teacher: The same pixels of the teacher, (m, c).
        keys: (q, c).
        temperature: tau, positive.
        kd_temperature: T, positive.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])  # one pixel
        >>> round(key_divergence(student, teacher, keys=torch.eye(2)).item(), 2)  # the other key is 10 = 1 / tau away
        10.0
    """
    return _KeyDivergence.apply(student, teacher, keys, temperature, kd_temperature)


class _KeyDivergence(torch.autograd.Function):
    """`key_divergence` in chunks of pixels. The gradient, only the student's, is made on the way: (m, c) is kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, student: Tensor, teacher: Tensor, keys: Tensor, temperature: float, kd_temperature: float
    ) -> Tensor:
        total = student.new_zeros(())
        slope = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        elements = 2**20 if student.device.type == "cpu" else 2**22  # about the cache; enough for a GPU
        height = max(1, elements // max(1, len(keys)))
        for rows in (slice(start, start + height) for start in range(0, len(student), height)):
            log_student = (student[rows] @ keys.T).div_(temperature * kd_temperature).log_softmax(1)
            log_teacher = (teacher[rows] @ keys.T).div_(temperature * kd_temperature).log_softmax(1)
            probability = log_teacher.exp()
            total += log_teacher.sub_(log_student).mul_(probability).sum()
            if slope is not None:
                slope[rows] = log_student.exp_().sub_(probability) @ keys
        pixels = max(1, len(student))
        if slope is not None:
            ctx.save_for_backward(slope.mul_(kd_temperature / (temperature * pixels)))
        return total * (kd_temperature**2 / pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient, None, None, None, None


class ClassQueues(nn.Module):
    """For each class a queue of the latest vectors, of fixed length; a class takes memory from its first vector on.

    Args:
        num_classes: k.
        length: Vectors a class may have.
        channels: c.

    Attributes:
        vectors: (classes so far, length, c); the first `filled` of each class mean something. It grows.
        row: Where in `vectors` a class is, -1 before its first vector: (k,) int64.
        filled: (k,) int64.
        position: Where the next vectors go, (k,) int64.
    """

    def __init__(self, num_classes: int, length: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(0, length, channels))
        self.register_buffer("row", torch.full((num_classes,), -1))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(num_classes, dtype=torch.int64))

    def push(self, vectors: Tensor, groups: Sequence[tuple[int, int]]) -> None:
        """Add vectors in groups.

        As in the authors' code, a group that reaches the end of its queue takes the last places, and the next group
        starts at the first.

        Args:
            vectors: One group after the other, (m, c).
            groups: Class and number of vectors of each; the numbers sum to m and are at most the queue's length.
        """
        row = self._make_room(y for y, _ in groups)
        length = self.vectors.shape[1]
        filled, position = self.filled.tolist(), self.position.tolist()
        source: dict[int, int] = {}  # place -> the last vector that was put there
        first = 0
        for y, number in groups:
            start = position[y]
            position[y] += number
            filled[y] = max(filled[y], min(position[y], length))
            if position[y] >= length:
                start, position[y] = length - number, 0
            source.update((row[y] * length + start + i, first + i) for i in range(number))
            first += number
        device = self.vectors.device
        self.filled.copy_(torch.tensor(filled))
        self.position.copy_(torch.tensor(position))
        chosen = vectors[torch.tensor(list(source.values()), dtype=torch.int64, device=device)]
        places = torch.tensor(list(source), dtype=torch.int64, device=device)
        self.vectors.flatten(0, 1).index_copy_(0, places, chosen.to(self.vectors.dtype))

    def draw(self, number: int, rng: np.random.Generator) -> Tensor:
        """Random vectors, `number` of each class (all of them, where it has fewer): (q, c).

        Where all queues are full, the same places are drawn for all classes, as in the authors' code.
        """
        length = self.vectors.shape[1]
        order = rng.permutation(length)
        queues = zip(self.row.tolist(), self.filled.tolist(), strict=True)
        places = [row * length + order[order < filled][:number] for row, filled in queues]
        return self.vectors.flatten(0, 1)[torch.from_numpy(np.concatenate(places)).to(self.vectors.device)]

    def _make_room(self, classes: Iterable[int]) -> list[int]:
        """Give a row to each class that has none; returns `row`."""
        row = self.row.tolist()
        first = number = len(self.vectors)
        for y in classes:
            if row[y] < 0:
                row[y], number = number, number + 1
        if number > first:
            self.row.copy_(torch.tensor(row))
            self.vectors = F.pad(self.vectors, (0, 0, 0, 0, 0, number - first))
        return row

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads also what was saved when more or fewer classes had been seen."""
        saved = state_dict.get(f"{prefix}vectors", self.vectors)
        if saved.shape[1:] == self.vectors.shape[1:]:
            self.vectors = self.vectors.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class CIRKDMemory(nn.Module):
    """The teacher's vectors of earlier images: some pixels and the mean of each class of each image.

    All processes hold the same state: the vectors that enter the queues are gathered first, and random draws depend on
    a counter of updates. So DDP may leave it out of its broadcast of buffers (and must: they are replaced when classes
    appear), and a run that is resumed from the state goes on as it would have. All of it is buffers, (pixel + region
    length) * c floats for each class that any process has seen.

    The authors' code draws the pixels of a class among the first pixels of the image, of whatever class they be, and
    starts with queues full of random vectors; both is mended here.

    Args:
        num_classes: k.
        channels: c.
        pixel_queue: Pixels kept of each class; None for no queue.
        region_queue: Class means kept of each class; None for no queue.
    """

    def __init__(self, num_classes: int, channels: int, pixel_queue: int | None, region_queue: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pixels_per_image = min(PIXELS_PER_IMAGE, pixel_queue or PIXELS_PER_IMAGE)
        self.pixels = None if pixel_queue is None else ClassQueues(num_classes, pixel_queue, channels)
        self.regions = None if region_queue is None else ClassQueues(num_classes, region_queue, channels)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Put a batch into the queues; every process must call it, with labelled pixels or without.

        Args:
            rows: The teacher's unit vectors, (b*h*w, c).
            labels: (b, h, w) int64, 0 to k-1; pixels of any other label are left out.
        """
        sums, group = class_sums(rows, labels, self.num_classes)
        chosen = self._choose(group.cpu(), images=len(labels))
        groups = torch.tensor(list(chosen), dtype=torch.int64)
        numbers = torch.tensor([len(pixels) for pixels in chosen.values()], dtype=torch.int64)
        entries = torch.stack((groups % (self.num_classes + 1), numbers), dim=1)
        entries = gather_rows(entries.to(rows.device)).tolist()
        if self.pixels is not None:
            pixels = torch.cat((groups[:0], *chosen.values()))
            self.pixels.push(gather_rows(rows.index_select(0, pixels.to(rows.device))), entries)
        if self.regions is not None:
            means = F.normalize(sums.index_select(0, groups.to(rows.device)), dim=1)
            self.regions.push(gather_rows(means), [(y, 1) for y, _ in entries])
        self.updates += 1

    def _choose(self, group: Tensor, images: int) -> dict[int, Tensor]:
        """Pixels drawn from each class of each image that has any, by their group as in `class_sums`."""
        rng = self._rng(purpose=0)
        order, sizes = sort_by_class(group, images * (self.num_classes + 1))
        chosen = {}
        for g, members in enumerate(order.split(sizes.tolist())):
            if g % (self.num_classes + 1) < self.num_classes and len(members):
                drawn = torch.from_numpy(rng.permutation(len(members))[: self.pixels_per_image])
                chosen[g] = members[drawn]
        return chosen

    def draw(self, pixel_keys: int, region_keys: int) -> tuple[Tensor | None, Tensor | None]:
        """Random keys, so many of each class: of pixels and of regions, (q, c) each; None where there is no queue."""
        rng = self._rng(purpose=1)
        pixels = None if self.pixels is None else self.pixels.draw(pixel_keys, rng)
        regions = None if self.regions is None else self.regions.draw(region_keys, rng)
        return pixels, regions

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((SEED, int(self.updates), purpose))
