"""FAKD: distillation under endless Gaussian augmentation of the student's features (Yuan et al., 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from hf_segkd.losses.base import require_choice, require_positive
from hf_segkd.losses.cwd import CWD_PRESETS
from hf_segkd.losses.fakd_base import AbstractFAKDLoss, Schedule
from hf_segkd.losses.fakd_bounds import (
    CWDBound,
    PDBound,
    augmented_channel_wise_divergence,
    augmented_pixel_wise_divergence,
)
from hf_segkd.types import NetworkSpec


class FAKDPDLoss(AbstractFAKDLoss):
    """FAKD, pixel-wise form (eq. 8): KD whose student is augmented in feature space.

    No public code exists; the paper's misprints are mended as `fakd_bounds` says. The paper gives no weight for this
    form: 1 at temperature 1 are CIRKD's for plain KD (TorchDistiller: 10 / k in this reduction).

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term, relative to a cross-entropy averaged over the pixels.
        temperature: T, positive.
        lambda0: Largest strength of the augmentation (1.0: best of the paper's Table 5; 2.5 did harm).
        schedule: See `augmentation_strength`.
        bound: `pair` (the paper's) or `direct`; see `augmented_pixel_wise_divergence`.
        sigma_index: `pixel` (mended) or `class` (as printed); see `augmented_pixel_wise_divergence`.
        tap: The map that enters the student's classifier, before dropout. ISDA takes it after.
        covariance: `full` or `diagonal`; None takes `full` up to 270 channels.
        drop_ignored: Leave ignored pixels out of the loss too; they never enter the statistics.
        label_resize: How labels come to the logits' size; see `resize_labels`.
        detach_w: No gradient in the classifier weight through the variance.
        sync_stats: All-reduce the statistics over the processes.
        subtract_entropy: Log a KL divergence and not the paper's cross-entropy; the gradient is the same.

    Raises:
        ValueError: If a tap is missing, the class counts differ, or a value is out of range.
    """

    name: ClassVar[str] = "fakd_pd"
    matches: ClassVar[str] = "`kd` over augmented features, in closed form"
    needs_labels: ClassVar[bool] = True
    couples_images: ClassVar[bool] = True

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        lambda0: float = 1.0,
        schedule: Schedule = "cosine",
        bound: PDBound = "pair",
        sigma_index: Literal["pixel", "class"] = "pixel",
        tap: str = "decoder",
        covariance: Literal["full", "diagonal"] | None = None,
        drop_ignored: bool = False,
        label_resize: Literal["nearest", "nearest-exact"] = "nearest",
        detach_w: bool = False,
        sync_stats: bool = True,
        subtract_entropy: bool = True,
    ) -> None:
        super().__init__(
            student,
            teacher,
            weight=weight,
            lambda0=lambda0,
            schedule=schedule,
            tap=tap,
            covariance=covariance,
            label_resize=label_resize,
            sync_stats=sync_stats,
        )
        require_positive("temperature", temperature)
        require_choice("bound", bound, ("pair", "direct"))
        require_choice("sigma_index", sigma_index, ("pixel", "class"))
        self.options = {
            "temperature": temperature,
            "bound": bound,
            "sigma_index": sigma_index,
            "drop_ignored": drop_ignored,
            "detach_weight": detach_w,
            "subtract_entropy": subtract_entropy,
        }

    def bound_loss(self, *tensors: Tensor) -> Tensor:
        """See `augmented_pixel_wise_divergence`."""
        return augmented_pixel_wise_divergence(*tensors, **self.options)


class FAKDCWDLoss(AbstractFAKDLoss):
    """FAKD, channel-wise form (eq. 7): CWD whose student is augmented in feature space.

    No public code exists; the paper's misprints are mended as `fakd_bounds` says. The paper takes temperature
    and weight "as CWD", whose authors use three settings: the presets.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        preset: Defaults of `temperature` and `weight`: `paper` 4 and 3, `mm_city` 1 and 5, `mm_ade` 1 and 10;
            see `CWDLoss`.
        weight: Weight of the term.
        temperature: tau, positive.
        lambda0: Largest strength of the augmentation (1.0: best of the paper's Table 5; 2.5 did harm).
        schedule: See `augmentation_strength`.
        bound: `pair` (the paper's), `tight`, `direct` or `isda`; see `augmented_channel_wise_divergence`.
        var_tau_power: Power of tau under the variance: 2 (as derived) or 1 (as printed).
        tap: The map that enters the student's classifier, before dropout. ISDA takes it after.
        covariance: `full` or `diagonal`; None takes `full` up to 270 channels.
        drop_ignored: Leave ignored pixels out of the loss too; they never enter the statistics.
        label_resize: How labels come to the logits' size; see `resize_labels`.
        detach_w: No gradient in the classifier weight through the variance.
        sync_stats: All-reduce the statistics over the processes.
        subtract_entropy: Log a KL divergence and not the paper's cross-entropy; the gradient is the same.

    Raises:
        ValueError: If a tap is missing, the class counts differ, or a value is out of range.
    """

    name: ClassVar[str] = "fakd_cwd"
    matches: ClassVar[str] = "`cwd` over augmented features, in closed form"
    needs_labels: ClassVar[bool] = True
    couples_images: ClassVar[bool] = True

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        preset: Literal["paper", "mm_city", "mm_ade"] = "paper",
        weight: float | None = None,
        temperature: float | None = None,
        lambda0: float = 1.0,
        schedule: Schedule = "cosine",
        bound: CWDBound = "pair",
        var_tau_power: int = 2,
        tap: str = "decoder",
        covariance: Literal["full", "diagonal"] | None = None,
        drop_ignored: bool = False,
        label_resize: Literal["nearest", "nearest-exact"] = "nearest",
        detach_w: bool = False,
        sync_stats: bool = True,
        subtract_entropy: bool = True,
    ) -> None:
        require_choice("preset", preset, tuple(CWD_PRESETS))
        preset_temperature, preset_weight = CWD_PRESETS[preset]
        super().__init__(
            student,
            teacher,
            weight=preset_weight if weight is None else weight,
            lambda0=lambda0,
            schedule=schedule,
            tap=tap,
            covariance=covariance,
            label_resize=label_resize,
            sync_stats=sync_stats,
        )
        temperature = preset_temperature if temperature is None else temperature
        require_positive("temperature", temperature)
        require_choice("bound", bound, ("pair", "tight", "direct", "isda"))
        if var_tau_power not in (1, 2):
            raise ValueError(f"var_tau_power is {var_tau_power}; it must be 2 (as derived) or 1 (as printed).")
        self.options = {
            "temperature": temperature,
            "bound": bound,
            "var_tau_power": var_tau_power,
            "drop_ignored": drop_ignored,
            "detach_weight": detach_w,
            "subtract_entropy": subtract_entropy,
        }

    def bound_loss(self, *tensors: Tensor) -> Tensor:
        """See `augmented_channel_wise_divergence`."""
        return augmented_channel_wise_divergence(*tensors, **self.options)
