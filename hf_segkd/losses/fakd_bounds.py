r"""FAKD's bounds on the expected distillation loss when the student's features are augmented.

Notation: $z_{ic}$ logit c of pixel i, $w_c$ the student's classifier row, $\Sigma_y$ the covariance of the
features of class y, $\lambda$ the strength. Pixel i is drawn from $N(s_i, \lambda \Sigma_{y_i})$; an ignored
pixel stays put. $D[y, c] = w_c^T \Sigma_y w_c$ is the variance of logit c within class y.

The paper prints several slips (v1, eq. 1-8); corrected here: the exponents are $s_k - s_i$ (the printed sign
teaches the opposite), the inner sum of eq. 7 runs over the pixels of one image, variances are divided by
$\tau^2$, and eq. 8's covariance is that of the pixel's class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_segkd.losses.adapters import pixel_rows
from hf_segkd.losses.class_covariance import (
    logit_difference_variances,
    logit_variances,
    own_class_difference_variances,
    own_class_variances,
    sort_by_class,
)

CWDBound = Literal["pair", "tight", "direct", "isda"]
PDBound = Literal["pair", "direct"]

# Stands for log 0: adds nothing to any sum, and unlike -inf never meets another infinity.
LOG_ZERO = -1e30
# Elements of the largest (pixels, k, k) block that the log-sum-exp fallback builds: 64 MiB in fp32.
FALLBACK_BLOCK = 2**24


def augmented_channel_wise_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    classifier_weight: Tensor,
    covariance: Tensor,
    strength: float | Tensor,
    *,
    temperature: float = 4.0,
    bound: CWDBound = "pair",
    var_tau_power: int = 2,
    drop_ignored: bool = False,
    detach_weight: bool = False,
    subtract_entropy: bool = True,
) -> Tensor:
    r"""Eq. 7, corrected, in O(pixels x k): mean over images and channels, in nats.

    With $v_{ic} = \lambda D[y_i, c]$ (0 if ignored), P the teacher's softmax over the M pixels of an image:
    $$\frac{\tau^2}{N C} \sum_c \sum_i P_{ic} \log \sum_k \exp\Big(
      \frac{z_{kc} - z_{ic}}{\tau} + \frac{v_{ic} + v_{kc}}{2 \tau^2} \Big)$$
    The exponent is a sum of a part of k and a part of i, so one log-sum-exp per channel is enough:
    channel-wise distillation of the logits $z + v / 2\tau$ plus $\sum P v / \tau^2$.

    Args:
        student_logits: z, (b, k, h, w).
        teacher_logits: (b, k, h, w).
        labels: (b, h, w) int64 at the logits' resolution; anything outside 0 to k-1 is ignored.
        classifier_weight: (k, c).
        covariance: (k, c, c), or the diagonals (k, c).
        strength: lambda, 0 or more; 0 gives plain channel-wise distillation.
        temperature: tau.
        bound: `pair` is the paper's; `tight` leaves the variance out of k = i; `direct` spends Jensen's
            inequality on the log-sum-exp alone, half the penalty of `pair` and the closest to the
            expectation; `isda` has no penalty and is not a bound. All but `tight` have the same gradient in
            the logits.
        var_tau_power: Power of tau under the variance: 2 as derived, 1 as printed.
        drop_ignored: Leave ignored pixels out of both softmaxes.
        detach_weight: No gradient in the classifier weight through the variance.
        subtract_entropy: Subtract the teacher's entropy, so that lambda = 0 gives a KL divergence. The
            paper's form is the cross-entropy; the gradient is the same.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
        >>> weight, covariance = torch.eye(2), torch.ones(2, 2)  # features of variance 1, 2 channels
        >>> [augmented_channel_wise_divergence(logits, logits, labels, weight, covariance, s).item() for s in (0, 1)]
        [0.0, 1.0]
    """
    images, num_classes = student_logits.shape[:2]
    table = _variance_of_present_classes(labels, classifier_weight, covariance, detach_weight)
    table = strength * table / (2.0 * temperature**var_tau_power)
    rows = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    shift = F.embedding(rows.flatten(1), table).mT  # (b, k, h*w): v / (2 tau^p)

    student = student_logits.flatten(2) / temperature
    teacher = teacher_logits.flatten(2) / temperature
    shifted = student + shift
    if drop_ignored:
        ignored = (rows == num_classes).flatten(1)[:, None]
        shifted, teacher = shifted.masked_fill(ignored, LOG_ZERO), teacher.masked_fill(ignored, LOG_ZERO)
    log_target = F.log_softmax(teacher, dim=-1)
    target = log_target.exp()
    if drop_ignored:
        target = target.masked_fill(ignored, 0.0)  # matters where a whole image is ignored

    if bound == "tight":
        others = shift - student + _log_sum_exp_of_the_others(shifted)
        loss = (target * torch.logaddexp(others, torch.zeros_like(others))).sum()
    else:
        loss = -(target * F.log_softmax(shifted, dim=-1)).sum()
        penalty = {"pair": 2.0, "direct": 1.0, "isda": 0.0}[bound]
        if penalty:
            loss = loss + penalty * (target * shift).sum()
    if subtract_entropy:
        loss = loss + (target * log_target).sum()
    return loss * temperature**2 / (images * num_classes)


# Its groups change with the labels: under torch.compile one clean graph break, instead of a recompilation a step.
@torch.compiler.disable
def augmented_pixel_wise_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    classifier_weight: Tensor,
    covariance: Tensor,
    strength: float | Tensor,
    *,
    temperature: float = 1.0,
    bound: PDBound = "pair",
    sigma_index: Literal["pixel", "class"] = "pixel",
    drop_ignored: bool = False,
    detach_weight: bool = False,
    subtract_entropy: bool = True,
) -> Tensor:
    r"""Eq. 8, corrected, in O(pixels x k^2) as one matrix product per class present: mean over pixels, in nats.

    With $Q_y[r, c] = (w_r - w_c)^T \Sigma_y (w_r - w_c)$ and the teacher's softmax p:
    $$\frac{T^2}{M} \sum_{i,c} p_{ic} \log \sum_r \exp\Big(
      \frac{z_{ir} - z_{ic}}{T} + \frac{\lambda_i}{2 T^2} Q_{y_i}[r, c] \Big)$$
    which is the plain divergence plus $\sum p_{ic} \log \sum_r q_{ir} \exp(\lambda Q[r, c] / 2T^2)$, q the
    student's softmax. Two transfers to the host: the classes present, and whether an exponent is too large
    for a matrix product.

    Args:
        student_logits: z, (b, k, h, w).
        teacher_logits: (b, k, h, w).
        labels: (b, h, w) int64 at the logits' resolution; anything outside 0 to k-1 is ignored.
        classifier_weight: (k, c).
        covariance: (k, c, c), or the diagonals (k, c).
        strength: lambda, 0 or more; 0 gives plain pixel-wise distillation.
        temperature: T.
        bound: `pair` is the paper's; `direct` has D[y_i, r] for Q, often far looser.
        sigma_index: Covariance of the `pixel`'s class (ignored pixels are not augmented), or of the summation
            `class` c, as eq. 8 prints it: a bound of another objective that needs no label and augments all.
        drop_ignored: Leave ignored pixels out of the mean.
        detach_weight: No gradient in the classifier weight through the variance.
        subtract_entropy: Subtract the teacher's entropy, so that lambda = 0 gives a KL divergence. The
            paper's form is the cross-entropy; the gradient is the same.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
        >>> weight, covariance = torch.eye(2), torch.ones(2, 2)  # features of variance 1, 2 channels
        >>> loss = augmented_pixel_wise_divergence(logits, logits, labels, weight, covariance, strength=1.0)
        >>> round(loss.item(), 4)  # log((1 + e) / 2): the difference of the two logits has the variance 2
        0.6201
    """
    num_classes = student_logits.shape[1]
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_target = F.log_softmax(teacher_logits / temperature, dim=1)
    target = log_target.exp()
    divergence = (target * ((log_target if subtract_entropy else 0.0) - log_student)).sum(1)  # (b, h, w)
    pixels: int | Tensor = labels.numel()
    if drop_ignored:
        valid = (labels >= 0) & (labels < num_classes)
        divergence, pixels = divergence * valid, valid.sum().clamp_min(1)

    log_student, target = pixel_rows(log_student), pixel_rows(target)  # (b*h*w, k)
    order, count = sort_by_class(labels.flatten(), num_classes)
    sizes = count.tolist()
    if sigma_index == "pixel" or drop_ignored:
        order = order[: sum(sizes)]
        log_student, target = log_student.index_select(0, order), target.index_select(0, order)
    if sigma_index == "pixel":
        present = [y for y, size in enumerate(sizes) if size]
        sizes, covariance = [sizes[y] for y in present], covariance[present]
        form = logit_difference_variances if bound == "pair" else logit_variances
        variances = form(classifier_weight, covariance, detach_weight)
        variances = variances if bound == "pair" else variances[:, :, None]
    else:
        sizes = [len(target)]
        form = own_class_difference_variances if bound == "pair" else own_class_variances
        variances = form(classifier_weight, covariance, detach_weight)[None]
    exponents = strength * variances / (2.0 * temperature**2)  # (groups, k, k) or (groups, k, 1)
    growth = _log_growth(log_student.split(sizes), target.split(sizes), exponents)
    return (divergence.sum() + growth) / pixels * temperature**2


@torch.compiler.disable
def _variance_of_present_classes(
    labels: Tensor, classifier_weight: Tensor, covariance: Tensor, detach_weight: bool
) -> Tensor:
    """D as a table (k + 1, k): rows of absent classes, and the last, for ignored pixels, are 0.

    Which classes are present takes one transfer to the host; it saves the products of all the others.
    """
    num_classes = len(classifier_weight)
    _, count = sort_by_class(labels.flatten(), num_classes)
    present = count.nonzero()[:, 0]
    variances = logit_variances(classifier_weight, covariance[present], detach_weight)
    return variances.new_zeros(num_classes + 1, num_classes).index_copy(0, present, variances)


def _log_sum_exp_of_the_others(x: Tensor) -> Tensor:
    """For each i of the last dimension, log of the sum of exp(x_k) over k != i, without subtracting."""
    before = F.pad(x.logcumsumexp(-1)[..., :-1], (1, 0), value=LOG_ZERO)
    after = F.pad(x.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], (0, 1), value=LOG_ZERO)
    return torch.logaddexp(before, after)


def _log_growth(student_rows: Sequence[Tensor], target_rows: Sequence[Tensor], exponents: Tensor) -> Tensor:
    """Sum over groups and their pixels i of sum_c p_ic log sum_r q_ir exp(E[r, c]).

    As q sums to 1, the inner sum is 1 + q (exp(E) - 1): a matrix product that is never below 1, and 1 exactly
    where E is 0. Exponents too large for that take the log-sum-exp in blocks, recomputed in the backward
    pass.

    Args:
        student_rows: log q of each group, (m, k).
        target_rows: p of each group, (m, k).
        exponents: E of each group, (groups, k, k), or (groups, k, 1) where it does not depend on c; not
            negative.
    """
    total = exponents.new_zeros(())
    limit = math.log(torch.finfo(exponents.dtype).max) - 8.0  # 80 in fp32: the sum over r must fit as well
    largest = exponents.detach().flatten(1).amax(1).tolist() if len(exponents) else []
    for log_q, p, table, exponent in zip(student_rows, target_rows, exponents, largest, strict=True):
        if exponent <= limit:
            total = total + (p * torch.log1p(log_q.exp() @ table.expm1())).sum()
            continue
        block = max(1, FALLBACK_BLOCK // table.numel())
        for log_q_block, p_block in zip(log_q.split(block), p.split(block), strict=True):
            total = total + checkpoint(
                _log_growth_of_block,
                log_q_block,
                p_block,
                table,
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return total


def _log_growth_of_block(log_q: Tensor, p: Tensor, table: Tensor) -> Tensor:
    """`_log_growth` of a few pixels, for exponents of any size; builds (m, k, k)."""
    return (p * (log_q[:, :, None] + table).logsumexp(1)).sum()
