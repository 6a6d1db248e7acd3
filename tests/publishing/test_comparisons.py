import pytest
from card_reports import alone, report, student

from hf_segkd.publishing.comparisons import check_comparable, differences_in_words, gain_in_words


def check(runs=(), baseline_runs=(), teacher=None, reference=None):
    check_comparable(reference or student(75), runs=runs, baseline_runs=baseline_runs, teacher=teacher)


def other_truth():
    return {"confusion_matrix": [[75, 25, 0], [25, 75, 0], [0, 0, 7]]}


PROTOCOL = [
    ({"dataset": "cityscapes"}, "dataset = cityscapes, the published network voc2012"),
    ({"split": "test"}, "split = test"),
    ({"num_images": 9}, "num_images = 9, the published network 10"),
    ({"classes": {"road": {}, "car": {}}}, "classes"),
    (other_truth(), "labelled pixels of each class"),
    ({"data": {"tile": [512]}}, "tiles = tiles of 512 x 512 that overlap by 128 x 128, the published network whole"),
    ({"settings": {"eval_tile": [512, 768], "eval_overlap": 64}}, "tiles = tiles of 512 x 768 that overlap by 64 x 64"),
]
BUDGET = [
    ({"steps": 4000}, "steps = 4000"),
    ({"batch_size": 8}, "batch_size = 8"),
    ({"train_images": 9}, "train_images"),
    ({"ema_decay": 0.999}, "ema_decay = 0.999, the published network 0.0"),
    ({"initial_weights": "IMAGENET1K_V1"}, "initial_weights = IMAGENET1K_V1, the published network random"),
    ({"network": {"depth": 18, "width": 2, "new": 1}}, "width of the network = 2, the published network 1"),
]


@pytest.mark.parametrize(("difference", "message"), PROTOCOL + BUDGET)
def test_students_of_another_protocol_or_budget_are_refused(difference, message):
    with pytest.raises(ValueError, match=f"A baseline run has {message}"):
        check(baseline_runs=[alone(50), alone(50, 1).extended(**difference)])
    with pytest.raises(ValueError, match=f"A run has {message}"):
        check(runs=[student(75), student(80, 1).extended(**difference)])


@pytest.mark.parametrize(("difference", "message"), PROTOCOL)
def test_a_teacher_of_another_protocol_is_refused(difference, message):
    with pytest.raises(ValueError, match=f"The teacher has {message}"):
        check(teacher=report(90).extended(**difference))


def test_tiles_are_the_same_however_they_were_asked_for():
    reference = {**student(75), "data": {"tile": [512], "overlap": None}}
    check(reference=reference, teacher={**report(90), "settings": {"eval_tile": [512, 512], "eval_overlap": 128}})


def test_a_teacher_has_a_budget_of_its_own():
    check(teacher=report(90, steps=9000, batch_size=2, method="none"))


def test_what_a_report_does_not_tell_is_no_difference():
    check(baseline_runs=[report(50, method="none")])
    check(reference=report(75), baseline_runs=[alone(50)], runs=[student(75)])


def test_runs_of_another_method_or_with_other_arguments_are_refused():
    with pytest.raises(ValueError, match="method = kd, the published network attnfd"):
        check(runs=[student(75, method="kd")])
    with pytest.raises(ValueError, match="method_kwargs"):
        check(runs=[student(75, method_kwargs={"weight": 3})], reference=student(75, method_kwargs={}))


def test_runs_whose_teachers_classes_were_paired_otherwise_are_refused():
    with pytest.raises(ValueError, match=r"A run has class_map = \[0, None\], the published network \[0, 1\]"):
        check(runs=[student(75, 1, class_map=[0, None])], reference=student(75, class_map=[0, 1]))


def test_runs_with_other_unlabelled_images_are_refused_and_a_baseline_has_none():
    mixed = {"unlabelled_images": 500, "unlabelled_ratio": 1.0}
    with pytest.raises(ValueError, match="A run has unlabelled_images = 0, the published network 500"):
        check(reference=student(75, **mixed), runs=[student(80, 1, **{**mixed, "unlabelled_images": 0})])
    with pytest.raises(ValueError, match="A run has unlabelled_ratio = 2"):
        check(reference=student(75, **mixed), runs=[student(80, 1, **{**mixed, "unlabelled_ratio": 2.0})])
    check(reference=student(75, **mixed), baseline_runs=[alone(50, unlabelled_images=0)])


def test_a_baseline_that_was_distilled_is_refused():
    with pytest.raises(ValueError, match="has the method 'kd'"):
        check(baseline_runs=[student(50, method="kd")])


def test_a_baseline_that_does_not_say_how_it_was_trained_is_refused():
    with pytest.raises(ValueError, match="How a baseline run was trained is not recorded"):
        check(baseline_runs=[report(50)])


def test_a_run_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"A baseline run occurs twice: the seeds are \[0, 1, 0\]"):
        check(baseline_runs=[alone(50), alone(60, 1), alone(50)])


def test_without_a_baseline_no_gain_is_claimed():
    words = gain_in_words([student(75)], [])
    assert "no undistilled baseline under the same protocol" in words
    assert "**" not in words


def test_a_gain_is_that_of_pairs_with_one_seed():
    runs, baseline = [student(75, 0), student(80, 1)], [alone(50, 1), alone(60, 0)]
    # 60.00 - 42.86 and 66.67 - 33.33
    assert "**+25.24 ± 11.45** points (seed 0: +17.14, seed 1: +33.33)." in gain_in_words(runs, baseline)


def test_with_seeds_that_differ_the_gain_is_that_of_all_runs_and_the_pairs_stand_beside():
    words = gain_in_words([student(75, 0), student(80, 1)], [alone(60, 0), alone(50, 5)])
    assert "**+25.24** points" in words  # (60.00 + 66.67) / 2 - (42.86 + 33.33) / 2
    assert "seeds are not the same: 0, 1, labels alone 0, 5; of those in common seed 0: +17.14)." in words


def test_pairs_cannot_be_picked():
    runs = [student(60, seed) for seed in (0, 1, 2)]
    words = gain_in_words(runs, [alone(50, 0), alone(75, 3), alone(75, 4)])  # 42.86 against 33.33, 60.00 and 60.00
    assert "**-8.25** points" in words
    assert "seed 0: +9.52" in words
    assert "did not help" in words
    words = gain_in_words([student(50, 0), student(90, 1)], [alone(60, 0), alone(50, 2)])
    assert "seeds in common show no gain" in words


def test_a_run_without_a_seed_counts_too():
    words = gain_in_words([student(75, 0), report(50)], [alone(60, 0)])
    assert "**+3.81** points" in words  # (60.00 + 33.33) / 2 - 42.86
    assert "0, unknown, labels alone 0" in words


@pytest.mark.parametrize("baseline", [[alone(50, 7)], [report(50)]])
def test_without_a_common_seed_the_gain_is_that_of_the_means(baseline):
    words = gain_in_words([student(75, 0), student(80, 1)], baseline)
    assert "**+30.00** points" in words  # (60.00 + 66.67) / 2 - 33.33
    assert "no seed is common to both" in words


def test_a_gain_that_is_none_or_within_its_spread_is_said_as_it_is():
    baseline = [alone(60, 0), alone(60, 1)]
    assert "**-4.76 ± 6.73** points" in gain_in_words([student(50, 0), student(60, 1)], baseline)
    assert "did not help" in gain_in_words([student(50, 0), student(60, 1)], baseline)
    assert "within its spread" in gain_in_words([student(80, 0), student(50, 1)], baseline)
    nearly = gain_in_words([student(80, 0), student(60, 1)], baseline)  # +23.81 and 0
    assert "**+11.90 ± 16.84** points" in nearly
    assert "within its spread" in nearly
    assert "spread" not in gain_in_words([student(80, 0), student(65, 1)], baseline)  # 14.55 ± 13.10
    clear = gain_in_words([student(80, 0), student(75, 1)], baseline)
    assert "spread" not in clear
    assert "did not help" not in clear


# --- what is only told ---


def words(ours, *baselines, runs=()):
    told = [alone(50, seed, **({} if settings is None else {"settings": settings})) for seed, settings in baselines]
    return differences_in_words(student(75, settings=ours), runs=runs, baseline_runs=told)


def test_settings_in_which_runs_differ_beside_method_and_seed_are_named():
    ours = {"learning_rate": 0.01, "photometric": "none", "method": "kd", "seed": 0, "output_dir": "/a", "weight": 1}
    theirs = {"learning_rate": 0.05, "photometric": "none", "method": "none", "seed": 1, "output_dir": "/b"}
    assert words(ours, (0, theirs), (1, theirs)) == (
        "The runs differ in more than method and seed, and so may their scores: "
        "`learning_rate` `0.01`, labels alone `0.05`."
    )
    other_seed = student(80, 1, settings=ours | {"photometric": "voc"})
    assert '`photometric` `"none"`, other seeds `"voc"`.' in words(ours, runs=[other_seed])
    assert words(ours, (0, ours | {"method": "none", "logging_steps": 5}), runs=[student(80, 1, settings=ours)]) == ""


def test_settings_of_the_method_are_compared_with_other_seeds_and_not_with_baselines():
    ours, theirs = {"teacher_dtype": "auto", "a": 1}, {"teacher_dtype": "bfloat16", "a": 1}
    assert words(ours, (0, theirs)) == ""
    assert '`teacher_dtype` `"auto"`, other seeds `"bfloat16"`.' in words(ours, runs=[student(80, 1, settings=theirs)])


def test_settings_that_select_the_score_or_that_nobody_classified_are_compared():
    ours = {"load_best_model_at_end": True, "logit_noise": 0, "do_eval": True}
    told = words(ours, (0, {"load_best_model_at_end": False, "logit_noise": 1, "do_eval": False}))
    assert told.endswith("`load_best_model_at_end` `true`, labels alone `false`; `logit_noise` `0`, labels alone `1`.")


def test_seeds_that_learnt_from_other_teachers_are_named_and_no_folder_is():
    first, second = (student(75, seed, settings={"a": 1}, teacher=f"/home/ann/teacher{seed}") for seed in (0, 1))
    told = differences_in_words(first, runs=[first, second], baseline_runs=[alone(50, settings={"a": 1}, teacher=None)])
    assert told.endswith('so may their scores: `teacher` `"teacher0"`, other seeds `"teacher1"`.')


def test_settings_that_are_not_recorded_are_not_called_the_same():
    assert "same is not recorded for 1 of the runs" in words({"learning_rate": 0.01}, (0, None))
    assert "same is not recorded for 2 of the runs" in words({}, (0, None), (1, {"learning_rate": 0.05}))
    assert words({}) == ""
    assert words({}, runs=[student(75, settings={})]) == ""  # the network itself, of which nothing is recorded


def test_a_report_without_any_labelled_pixel_is_no_score():
    nothing = student(75).extended(mean_iou=None, num_images=3)
    with pytest.raises(ValueError, match="The published network has no mIoU: its images have no labelled pixel"):
        check(reference=nothing)
    with pytest.raises(ValueError, match="The teacher has no mIoU"):
        check(teacher=nothing)
