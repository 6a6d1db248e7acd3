"""What every distillation loss must satisfy."""

import copy

import pytest
import torch
from loss_cases import NUM_LABELS, STUDENT, TEACHER, make_features, make_labels

from hf_segkd.losses import LOSSES, create_loss
from hf_segkd.types import NetworkSpec

# Taps a loss takes statistics from, without gradient.
STATISTICS_TAPS = {"fakd_pd": {"decoder"}, "fakd_cwd": {"decoder"}}
# A score, not a distance.
SIGNED_TERMS = {"skds_adversarial"}
ARXIV = {
    "kd": "1503.02531",
    "hint": "1412.6550",
    "at": "1612.03928",
    "sp": "1907.09682",
    "ickd": "2202.03680",
    "ofd": "1904.01866",
    "dist": "2205.10536",
    "cirkd": "2204.06986",
    "lad": "",
    "skds": "1903.04197",
    "ifvd": "",
    "cwd": "2011.13256",
    "attnfd": "2403.05451",
    "fakd_pd": "2208.14143",
    "fakd_cwd": "2208.14143",
}
VARIANTS = {
    **{name: (name, {}) for name in LOSSES},
    "ofd official": ("ofd", {"preset": "official"}),
    "ofd mmrazor": ("ofd", {"margins": "none", "divide_by_batch": True, "divisors": {"decoder_pre": 1000}}),
    "ofd estimated margins": ("ofd", {"divisors": {"stage2": 1.0, "backbone": 0.5}}),
    "at three taps": ("at", {"taps": ["low_level", "backbone", "encoder"], "reduction": "mean"}),
    "ickd imagenet": ("ickd", {"variant": "imagenet"}),
    "ickd logits": ("ickd", {"tap": "logits"}),
    "dist mmrazor": ("dist", {"temperature": 4.0, "variant": "mmrazor", "auxiliary_tap": "logits"}),
    "cirkd without kd": ("cirkd", {"kd_weight": 0.0, "region_weight": 0.0}),
    "cirkd without memory": ("cirkd", {"pixel_weight": 0.0, "region_weight": 0.0}),
    "cirkd without pixels": ("cirkd", {"pixel_weight": 0.0}),
    "lad channel": ("lad", {"vector": "channel", "tap": "backbone"}),
    "lad patch": ("lad", {"vector": "patch"}),
    "lad nfd": ("lad", {"vector": "centred_channel"}),
    "skds official": ("skds", {"preset": "official"}),
    "skds cirkd": ("skds", {"preset": "cirkd"}),
    "hint cosine": ("hint", {"distance": "cosine", "taps": ["low_level", "backbone"]}),
    "kd drop_ignored": ("kd", {"drop_ignored": True, "reduction": "element_mean"}),
    "cwd feature": ("cwd", {"tap": "encoder"}),
    "attnfd official": ("attnfd", {"preset": "official"}),
    "attnfd paper": ("attnfd", {"preset": "paper"}),
    "fakd_pd diagonal": ("fakd_pd", {"covariance": "diagonal", "schedule": "constant"}),
    "fakd_cwd diagonal": ("fakd_cwd", {"covariance": "diagonal", "preset": "mm_ade"}),
    "attnfd map": ("attnfd", {"norm": "map", "teacher_attention": "trained"}),
}
pytestmark = pytest.mark.parametrize("variant", VARIANTS)


def build(variant):
    """The loss of a variant, with the same initial parameters each time, half-way through training."""
    name, kwargs = VARIANTS[variant]
    torch.manual_seed(0)
    loss = create_loss(name, STUDENT, TEACHER, **kwargs)
    loss.set_progress(0.5)
    return loss


def total(terms):
    return torch.stack(list(terms.values())).sum()


def test_terms_are_finite_fp32_scalars_with_a_weight_each(variant):
    loss = build(variant)
    terms = loss(make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels())
    assert terms.keys() == loss.weights.keys()
    for name, value in terms.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert value > 0 or name in SIGNED_TERMS


def test_gradients_reach_each_tap_and_parameter_and_never_the_teacher(variant):
    loss = build(variant)
    student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2)
    total(loss(student, teacher, make_labels())).backward()
    names = set(loss.student_taps) - STATISTICS_TAPS.get(loss.name, set())
    names |= {"classifier_weight"} if loss.uses_classifier_weight else set()
    for name in names:
        assert student[name].grad.abs().sum() > 0, name
    assert all(feature.grad is None for feature in teacher.values())
    for name, parameter in loss.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_an_ignored_border_leaves_everything_finite(variant):
    check_finite(build(variant), make_labels(border=8))


def test_a_batch_of_ignored_pixels_gives_finite_terms_with_a_graph(variant):
    check_finite(build(variant), torch.full((2, 33, 49), 255))


def test_logits_of_standard_deviation_50_are_finite_in_bf16(variant):
    student = make_features(STUDENT, 1, scale=50.0, dtype=torch.bfloat16)
    teacher = make_features(TEACHER, 2, scale=50.0, dtype=torch.bfloat16)
    check_finite(build(variant), make_labels(), student, teacher)


def test_fp16_features_under_autocast_give_the_terms_of_fp32_and_its_gradients_up_to_rounding(variant):
    rounded = make_features(STUDENT, 1, dtype=torch.float16), make_features(TEACHER, 2, dtype=torch.float16)
    terms, gradients, scale = {}, {}, None
    for dtype in (torch.float32, torch.float16):
        student, teacher = ({tap: x.detach().to(dtype).requires_grad_() for tap, x in side.items()} for side in rounded)
        loss = build(variant)
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            terms[dtype] = loss(student, teacher, make_labels())
        taps = [student[tap] for tap in student if tap in loss.student_taps]
        parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        if scale is None:  # as a gradient scaler has it: far from overflow and from 0
            largest = torch.autograd.grad(total(terms[dtype]), taps, retain_graph=True, allow_unused=True)
            scale = 1000 / max(x.abs().max() for x in largest if x is not None)
        gradients[dtype] = torch.autograd.grad(scale * total(terms[dtype]), taps + parameters, allow_unused=True)
    assert terms[torch.float16] == terms[torch.float32]
    for half, single in zip(gradients[torch.float16], gradients[torch.float32], strict=True):
        assert (half is None) == (single is None)
        if half is not None:
            torch.testing.assert_close(half.float(), single, rtol=2e-3, atol=1e-4)


def test_a_teacher_sure_of_one_class_is_finite(variant):
    teacher = make_features(TEACHER, 2)
    teacher["logits"] = torch.nn.functional.one_hot(
        torch.randint(NUM_LABELS, (2, 9, 13), generator=torch.Generator().manual_seed(0)), NUM_LABELS
    ).movedim(-1, 1) * torch.tensor(1e4)
    check_finite(build(variant), make_labels(), teacher=teacher)


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_maps_of_one_value_are_finite(variant, value):
    sides = make_features(STUDENT, 1), make_features(TEACHER, 2)
    check_finite(
        build(variant),
        make_labels(),
        *({tap: torch.full_like(x, value).requires_grad_() for tap, x in f.items()} for f in sides),
    )


@pytest.mark.parametrize("size", [(17, 25), (3, 4)])
def test_teacher_maps_of_another_size_are_aligned_first(variant, size):
    teacher = make_features(TEACHER, 2, sizes={}, default_size=size)
    check_finite(build(variant), make_labels(), teacher=teacher)


def test_autocast_changes_nothing(variant):
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    expected = build(variant)(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = build(variant)(*arguments)
    assert actual == expected


def test_two_runs_give_the_same_bits_and_draw_no_random_number(variant):
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    first, second = build(variant), build(variant)
    state = torch.get_rng_state()
    assert first(*arguments) == second(*arguments)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_says_truly_whether_its_options_make_it_need_labels(variant):
    features = make_features(STUDENT, 1), make_features(TEACHER, 2)
    changed = build(variant)(*features, make_labels()) != build(variant)(*features, make_labels(seed=1, border=8))
    assert changed == build(variant).needs_labels


def test_weights_scale_the_raw_terms(variant):
    loss = build(variant)
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    unit = copy.deepcopy(loss)
    unit.weights = dict.fromkeys(loss.weights, 1.0)
    raw, weighted = unit(*arguments), loss(*arguments)
    for term, value in raw.items():
        torch.testing.assert_close(weighted[term], loss.weights[term] * value)


def test_state_dict_restores_the_loss(variant):
    loss = build(variant)
    loss(make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels())
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.1)
    restored = build(variant)
    restored.load_state_dict(copy.deepcopy(loss.state_dict()))
    arguments = make_features(STUDENT, 3), make_features(TEACHER, 4), make_labels(1)
    assert restored(*arguments) == loss(*arguments)


def test_the_publication_is_complete(variant):
    paper = LOSSES[VARIANTS[variant][0]].paper
    assert paper.title in paper.bibtex.replace("{{", "").replace("}}", "")
    assert paper.venue
    assert paper.arxiv == ARXIV[VARIANTS[variant][0]]
    assert paper.bibtex.startswith("@")
    assert paper.bibtex.count("{") == paper.bibtex.count("}")
    assert paper.code is None or paper.code.startswith("https://github.com/")


def test_a_missing_tap_lists_the_taps_there_are(variant):
    name, kwargs = VARIANTS[variant]
    bare = NetworkSpec(channels={"pooled": 4}, num_labels=NUM_LABELS)
    with pytest.raises(ValueError, match=r"student's \[.*\], but that network offers \['pooled'\]"):
        create_loss(name, bare, TEACHER, **kwargs)
    with pytest.raises(ValueError, match=r"teacher's \[.*\], but that network offers \['pooled'\]"):
        create_loss(name, STUDENT, bare, **kwargs)


def test_a_misspelt_argument_names_the_nearest(variant):
    with pytest.raises(ValueError, match="Did you mean 'weight'"):
        create_loss(VARIANTS[variant][0], STUDENT, TEACHER, wieght=1.0)


def test_a_negative_weight_is_refused(variant):
    with pytest.raises(ValueError, match="must be 0 or more"):
        create_loss(VARIANTS[variant][0], STUDENT, TEACHER, weight=-1.0)


def check_finite(loss, labels, student=None, teacher=None):
    """Value, and gradient of every tap and parameter, are finite; there is a graph."""
    student = make_features(STUDENT, 1) if student is None else student
    terms = loss(student, make_features(TEACHER, 2) if teacher is None else teacher, labels)
    total(terms).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    gradients = [student[tap].grad for tap in loss.student_taps if student[tap].grad is not None]
    gradients += [parameter.grad for parameter in loss.parameters() if parameter.requires_grad]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dead", [(0, slice(None), 2, 3), (slice(None), 1), 0], ids=["pixel", "channel", "image"])
def test_a_dead_part_of_a_map_has_no_larger_gradient_than_others(variant, dead):
    # ReLUs leave whole vectors at zero; a unit vector made by dividing by almost nothing would explode there.
    largest = {}
    for planted in (False, True):
        student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2)
        student = {name: value.detach().clone() for name, value in student.items()}
        for name, value in student.items():
            if planted and name != "classifier_weight":
                value[dead] = 0.0
            value.requires_grad_()
        total(build(variant)(student, teacher, make_labels())).backward()
        largest[planted] = max(value.grad.abs().max() for value in student.values() if value.grad is not None)
    assert largest[True] < 100 * largest[False]
