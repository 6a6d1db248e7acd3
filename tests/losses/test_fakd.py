import math

import fakd_case as case
import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels, reference

from hf_segkd.losses import create_loss, fakd_bounds
from hf_segkd.losses.adapters import resize_labels
from hf_segkd.losses.class_covariance import (
    logit_difference_variances,
    logit_variances,
    own_class_difference_variances,
)
from hf_segkd.losses.cwd import channel_wise_divergence
from hf_segkd.losses.fakd import augmentation_strength
from hf_segkd.losses.fakd_bounds import augmented_channel_wise_divergence, augmented_pixel_wise_divergence
from hf_segkd.losses.kd import pixel_wise_divergence

AUGMENTED = [name for name in case.OUTPUTS if "aug" in name]


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class SmallCase:
    """The reference case as leaves that gradients can be taken of."""

    def __init__(self):
        self.weight = double(case.WEIGHT).requires_grad_()
        self.bias = double(case.BIAS).requires_grad_()
        self.features = double(case.FEATURES).requires_grad_()  # (b, pixels, c)
        self.labels = torch.tensor(case.LABELS)[:, None]  # (b, 1, pixels)
        self.teacher = double(case.TEACHER_LOGITS).mT[:, :, None]
        self.covariance = double(case.COVARIANCES[-1])

    def value(self, name, strength=case.STRENGTH, detach_weight=False):
        """The output called `name`, as a cross-entropy."""
        form, *options = name.split("/")
        keys = dict(option.split("=") for option in options if "=" in option)
        logits = (self.features @ self.weight.T + self.bias).mT[:, :, None]  # (b, k, 1, pixels)
        arguments = (logits, self.teacher, self.labels, self.weight, self.covariance)
        strength = strength if "aug" in form else 0.0
        common = {
            "bound": keys.get("bound", "pair"),
            "drop_ignored": "drop_ignored" in name,
            "detach_weight": detach_weight,
            "subtract_entropy": False,
        }
        if "pd" in form:
            return augmented_pixel_wise_divergence(
                *arguments,
                strength,
                temperature=float(keys.get("T", 1)),
                sigma_index=keys.get("sigma", "pixel"),
                **common,
            )
        return augmented_channel_wise_divergence(
            *arguments, strength, temperature=float(keys["tau"]), var_tau_power=int(keys.get("P", 2)), **common
        )


@pytest.mark.parametrize("name", [name for name in case.OUTPUTS if "entropy" not in name])
def test_outputs_are_the_reference_numbers(name):
    assert SmallCase().value(name).item() == pytest.approx(case.OUTPUTS[name], rel=1e-12)


@pytest.mark.parametrize("name", AUGMENTED)
def test_without_strength_every_bound_is_the_plain_loss(name):
    small = SmallCase()
    plain = small.value(name.replace("_aug", ""), 0.0)
    torch.testing.assert_close(small.value(name, 0.0), plain, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("name", case.GRADIENTS)
@pytest.mark.parametrize("detach_weight", [False, True])
def test_gradients_are_the_reference_numbers(name, detach_weight):
    small = SmallCase()
    small.value(name, detach_weight=detach_weight).backward()
    expected = case.GRADIENTS[name]
    weight_key = "d_W_quadratic_detached" if detach_weight else "d_W"
    for leaf, key in ((small.features, "d_feats"), (small.bias, "d_bias"), (small.weight, weight_key)):
        torch.testing.assert_close(leaf.grad, double(expected[key]), rtol=0.0, atol=1e-12)


def test_the_reference_file_agrees():
    for entry in reference("fakd.json")["cases"]:
        assert entry["name"] == "small_full"
        for key, strength in (("outputs", entry["lam"]), ("outputs_lambda_0", 0.0)):
            for name, expected in entry[key].items():
                if "entropy" not in name and "NEGATIVE" not in name:
                    value = SmallCase().value(name, strength)
                    assert value.item() == pytest.approx(expected, rel=1e-12), (key, name)


def test_subtracting_the_entropy_gives_the_divergences_of_kd_and_cwd():
    student, teacher = (make_features(side, i)["logits"].double() for i, side in enumerate((STUDENT, TEACHER)))
    weight, covariance = torch.randn(5, 3).double(), torch.eye(3).double().expand(5, 3, 3)
    arguments = (student, teacher, torch.zeros(2, 9, 13, dtype=torch.int64), weight, covariance, 0.0)
    torch.testing.assert_close(augmented_pixel_wise_divergence(*arguments), pixel_wise_divergence(student, teacher))
    torch.testing.assert_close(augmented_channel_wise_divergence(*arguments), channel_wise_divergence(student, teacher))


def random_case(full, seed=0):
    """Logits (2, 5, 3, 4), labels with every kind of pixel, weight (5, 6), covariances; float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factor = randn(5, 6, 6)
    covariance = factor @ factor.mT / 6 if full else randn(5, 6).square()
    labels = torch.randint(0, 5, (2, 3, 4), generator=generator)
    labels[:, 0, 1] = 255
    return randn(2, 5, 3, 4), 2.0 * randn(2, 5, 3, 4), labels, 0.5 * randn(5, 6), covariance


def matrices(covariance):
    return covariance if covariance.dim() == 3 else torch.diag_embed(covariance)


@pytest.mark.parametrize("full", [True, False])
def test_channel_wise_value_is_eq_7_written_as_a_loop_over_pairs_of_pixels(full):
    student, teacher, labels, weight, covariance = random_case(full)
    tau, strength, expected = 3.0, 0.7, 0.0
    for n in range(2):
        z, q, y = student[n].flatten(1), teacher[n].flatten(1), labels[n].flatten()
        for c in range(5):
            variance = [strength * weight[c] @ matrices(covariance)[k] @ weight[c] if k != 255 else 0.0 for k in y]
            p = torch.softmax(q[c] / tau, 0)
            for i in range(12):
                terms = [(z[c, k] - z[c, i]) / tau + (variance[i] + variance[k]) / (2 * tau**2) for k in range(12)]
                expected += tau**2 / (2 * 5) * p[i] * torch.stack(terms).exp().sum().log()
    actual = augmented_channel_wise_divergence(
        student, teacher, labels, weight, covariance, strength, temperature=tau, subtract_entropy=False
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("full", [True, False])
def test_pixel_wise_value_is_eq_8_written_as_a_loop_over_pixels_and_classes(full):
    student, teacher, labels, weight, covariance = random_case(full)
    strength, expected = 0.7, 0.0
    z, q = student.movedim(1, -1).reshape(-1, 5), teacher.movedim(1, -1).reshape(-1, 5)
    for i, y in enumerate(labels.flatten()):
        p = torch.softmax(q[i], 0)
        for c in range(5):
            total = 0.0
            for r in range(5):
                d = weight[r] - weight[c]
                spread = 0.0 if y == 255 else strength / 2 * d @ matrices(covariance)[y] @ d
                total += (z[i, r] - z[i, c] + spread).exp()
            expected += p[c] * total.log() / len(z)
    actual = augmented_pixel_wise_divergence(
        student, teacher, labels, weight, covariance, strength, subtract_entropy=False
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("form", [logit_variances, logit_difference_variances, own_class_difference_variances])
@pytest.mark.parametrize("full", [True, False])
def test_quadratic_forms_have_the_value_and_gradient_of_their_formula(form, full):
    *_, weight, covariance = random_case(full)
    weight.requires_grad_()
    sigma = matrices(covariance)
    difference = weight[:, None] - weight
    expected = {
        logit_variances: torch.einsum("ca,yab,cb->yc", weight, sigma, weight),
        logit_difference_variances: torch.einsum("rca,yab,rcb->yrc", difference, sigma, difference),
        own_class_difference_variances: torch.einsum("rca,cab,rcb->rc", difference, sigma, difference),
    }[form]
    actual = form(weight, covariance)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    factor = torch.arange(expected.numel(), dtype=torch.float64).reshape(expected.shape)
    gradients = [torch.autograd.grad((value * factor).sum(), weight) for value in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-10)
    assert not form(weight, covariance, detach_weight=True).requires_grad


def test_the_variance_of_a_logit_is_that_of_the_pixels_seen():
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (50, 5))
    covariance = rows.T.cov(correction=0)[None]
    expected = (rows @ weight.T).var(0, correction=0)[None]
    torch.testing.assert_close(logit_variances(weight, covariance), expected)


def test_a_student_that_undoes_the_shift_is_a_stationary_point():
    _, teacher, labels, weight, covariance = random_case(full=True)
    tau, strength = 2.0, 0.7
    table = torch.cat((strength * logit_variances(weight, covariance), torch.zeros(1, 5)))
    variance = table[labels.masked_fill(labels == 255, 5)].movedim(-1, 1)
    for bound in ("pair", "direct", "isda"):
        student = (teacher - variance / (2 * tau)).requires_grad_()
        augmented_channel_wise_divergence(
            student, teacher, labels, weight, covariance, strength, temperature=tau, bound=bound
        ).backward()
        assert student.grad.abs().max() < 1e-14


def test_bounds_lie_above_the_mean_of_sampled_losses_and_isda_does_not():
    small, strength, tau = SmallCase(), 0.5, 4.0
    generator = torch.Generator().manual_seed(0)
    draws = 20_000
    roots = torch.zeros(4, 3, 3, dtype=torch.float64)
    roots[:3] = torch.linalg.cholesky(small.covariance[:3])
    with torch.no_grad():
        noise = torch.randn(draws, 12, 3, 1, generator=generator, dtype=torch.float64)
        labels = small.labels.flatten()
        factor = roots[labels.masked_fill(labels == 255, 3)] * math.sqrt(strength)
        features = small.features.reshape(12, 3) + (factor @ noise)[..., 0]
        logits = features @ small.weight.T + small.bias  # (draws, 12, k)
        target = small.teacher[:, :, 0].mT.reshape(12, 4)
        pixel_wise = -(target.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean(-1)
        per_image = (logits / tau).unflatten(1, (2, 6)).log_softmax(2)
        channel_wise = -((target / tau).unflatten(0, (2, 6)).softmax(1) * per_image).sum((1, 2, 3)) * tau**2 / 8
        error = 4 * channel_wise.std() / math.sqrt(draws)
        for bound in ("pair", "tight", "direct"):
            assert small.value(f"cwd_aug/tau=4/bound={bound}", strength) > channel_wise.mean() - error
        assert small.value("cwd_aug/tau=4/bound=isda", strength) < channel_wise.mean() - error
        for bound in ("pair", "direct"):
            bound_value = small.value(f"pd_aug/bound={bound}", strength)
            assert bound_value > pixel_wise.mean() - 4 * pixel_wise.std() / math.sqrt(draws)


@pytest.mark.parametrize("sigma_index", ["pixel", "class"])
def test_exponents_beyond_fp32_give_the_exact_value_and_gradient(sigma_index, monkeypatch):
    monkeypatch.setattr(fakd_bounds, "FALLBACK_BLOCK", 100)  # four pixels a block
    student, teacher, labels, weight, covariance = random_case(full=True)
    results = []
    for dtype in (torch.float64, torch.float32):
        logits = student.to(dtype, copy=True).requires_grad_()
        w = weight.to(dtype, copy=True).requires_grad_()
        value = augmented_pixel_wise_divergence(
            logits, teacher.to(dtype), labels, w, covariance.to(dtype), 150.0, sigma_index=sigma_index
        )
        value.backward()
        results.append((value.double(), logits.grad.double(), w.grad.double()))
    exponents = 75.0 * logit_difference_variances(weight, covariance)
    assert 80.0 < exponents.max() < 700.0  # float64 takes the matrix product, fp32 cannot
    for exact, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


def test_schedules_are_the_reference_numbers():
    # lambda0 1, 40 steps; at steps 0, 1, 5, 10, 20, 30, 39, 40.
    progress = double([0, 1, 5, 10, 20, 30, 39, 40]) / 40
    expected = {
        "constant": [1, 1, 1, 1, 1, 1, 1, 1],
        "linear": [0.0, 0.025, 0.125, 0.25, 0.5, 0.75, 0.975, 1.0],
        "cosine": [0, 0.001541333133436, 0.038060233744357, 0.146446609406726, 0.5, 0.853553390593274],
        "quarter_cosine": [0, 0.000770963759277, 0.01921471959677, 0.076120467488713, 0.292893218813452],
        "cosine_decay": [1, 0.998458666866564, 0.961939766255643, 0.853553390593274, 0.5, 0.146446609406726],
    }
    for schedule, values in expected.items():
        actual = augmentation_strength(progress, 1.0, schedule)
        torch.testing.assert_close(actual[: len(values)], double(values), rtol=0.0, atol=1e-14)
        assert actual[-1] == pytest.approx(0.0 if schedule == "cosine_decay" else 1.0, abs=1e-15)
        torch.testing.assert_close(augmentation_strength(progress, 2.5, schedule), 2.5 * actual)


def test_labels_are_brought_down_as_in_the_reference_file():
    entry = reference("fakd.json")["label_downsample"]
    labels = torch.tensor([entry["label"]])
    for mode in ("nearest", "nearest-exact"):
        assert resize_labels(labels, (entry["h"], entry["w"]), mode).tolist() == [entry[mode]]


@pytest.mark.parametrize("name", ["fakd_pd", "fakd_cwd"])
def test_the_loss_is_its_formula_with_the_weight_and_temperature_it_is_given(name):
    formula = {"fakd_pd": augmented_pixel_wise_divergence, "fakd_cwd": augmented_channel_wise_divergence}[name]
    loss = create_loss(name, STUDENT, TEACHER, weight=3.0, temperature=2.0, lambda0=1.5, schedule="linear")
    student, teacher, labels = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    loss.set_progress(0.5)
    value = loss(student, teacher, labels)[name]
    weight, labels = student["classifier_weight"].flatten(1), resize_labels(labels, (9, 13))
    arguments = student["logits"], teacher["logits"], labels, weight, loss.statistics.covariance, 0.75
    torch.testing.assert_close(value, 3.0 * formula(*arguments, temperature=2.0))
    assert not torch.isclose(value, 3.0 * formula(*arguments))


def test_one_overflow_does_not_spoil_the_statistics():
    loss = create_loss("fakd_cwd", STUDENT, TEACHER, schedule="constant")
    student, teacher, labels = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    spoilt = {**student, "decoder": student["decoder"].detach().clone()}
    spoilt["decoder"][0, 0, 3, 3] = float("inf")
    loss(spoilt, teacher, labels)
    assert loss(student, teacher, labels)["fakd_cwd"].isfinite()


@pytest.mark.parametrize("name", ["fakd_pd", "fakd_cwd"])
def test_statistics_follow_training_alone_and_enter_the_same_step(name):
    loss = create_loss(name, STUDENT, TEACHER, schedule="constant")
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    loss.eval()
    plain = loss(*arguments)[name]
    assert loss.statistics.count.sum() == 0
    loss.train()
    augmented = loss(*arguments)[name]
    labelled = resize_labels(make_labels(), (9, 13)) != 255
    assert loss.statistics.count.sum() == labelled.sum()
    assert augmented > plain
    torch.testing.assert_close(loss.eval()(*arguments)[name], augmented)
    assert arguments[0]["decoder"].grad is None


@pytest.mark.parametrize("name", ["fakd_pd", "fakd_cwd"])
def test_progress_raises_the_strength_from_the_plain_loss(name):
    loss = create_loss(name, STUDENT, TEACHER)
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    values = []
    for progress in (0.0, 0.5, 1.0):
        loss.set_progress(progress)
        values.append(loss(*arguments)[name].item())
    plain = create_loss(name.removeprefix("fakd_").replace("pd", "kd"), STUDENT, TEACHER)(*arguments)
    assert values[0] == pytest.approx(next(iter(plain.values())).item(), rel=1e-5)
    assert values[0] < values[1] < values[2]


def test_the_covariance_is_diagonal_by_default_above_270_channels():
    wide = type(STUDENT)(channels={"decoder": 271, "logits": 5}, num_labels=5)
    assert create_loss("fakd_cwd", wide, TEACHER).statistics.covariance.shape == (5, 271)
    assert create_loss("fakd_cwd", STUDENT, TEACHER).statistics.covariance.shape == (5, 8, 8)
    assert create_loss("fakd_pd", STUDENT, TEACHER, covariance="diagonal").statistics.covariance.shape == (5, 8)


def test_an_ignore_index_below_the_class_count_is_ignored():
    first = type(STUDENT)(channels=STUDENT.channels, num_labels=5, ignore_index=0)
    loss = create_loss("fakd_cwd", first, TEACHER)
    loss(make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels())
    assert loss.statistics.count[0] == 0


def test_a_map_that_does_not_enter_the_classifier_is_refused():
    loss = create_loss("fakd_pd", STUDENT, TEACHER, tap="backbone")
    with pytest.raises(ValueError, match=r"'backbone' has shape \(2, 16, 5, 7\).*weight \(5, 8\)"):
        loss(make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels())


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("fakd_cwd", {"schedule": "step"}, "schedule is 'step'"),
        ("fakd_cwd", {"lambda0": -0.1}, "lambda0 is -0.1; it must be 0 or more"),
        ("fakd_pd", {"lambda0": math.inf}, "lambda0 is inf; it must be 0 or more, and finite"),
        ("fakd_cwd", {"covariance": "low_rank"}, "covariance is 'low_rank'"),
        ("fakd_cwd", {"temperature": 0.0}, "temperature is 0.0; it must be positive"),
    ],
)
def test_wrong_values_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_loss(name, STUDENT, TEACHER, **kwargs)
