import logging

import pytest
import torch

from hf_segkd.networks.class_map import ClassMap, match_classes

STUDENT = {0: "road", 1: "car", 2: "sky"}
LOGITS = 4 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))


def names(*labels):
    return dict(enumerate(labels))


def yaml_map(folder, text, teacher, student=STUDENT):
    file = folder / "map.yaml"
    file.write_text(text)
    return ClassMap.from_yaml(file, teacher, student)


def test_names_pair_classes_in_any_order_without_case_and_blanks():
    found = ClassMap.from_names(names("Sky ", "tree", "road", "CAR"), STUDENT)
    assert found.targets == (2, None, 0, 1)
    assert (found.common, found.groups) == ((0, 1, 2), ((2,), (3,), (0,)))
    assert found.is_complete
    assert not found.is_identity
    assert ClassMap.from_names(names(" Road", "car", "sky"), STUDENT).is_identity


def test_probabilities_of_classes_that_teach_the_same_one_add_up(tmp_path):
    teacher = names("lorry", "road", "car", "pavement", "sky")
    found = yaml_map(tmp_path, "lorry: car\nroad: road\ncar: car\n3: 0\nsky: 2", teacher)
    assert found.groups == ((1, 3), (0, 2), (4,))
    probabilities = LOGITS.double().softmax(1)
    expected = torch.stack([probabilities[:, list(group)].sum(1) for group in found.groups], dim=1)
    torch.testing.assert_close(found.merge(LOGITS.double()).softmax(1), expected)


def test_classes_without_partner_drop_out_of_the_teachers_distribution(tmp_path):
    found = yaml_map(tmp_path, "a: road\nb: null\nc: sky", names("a", "b", "c", "d", "e"))
    assert found.targets == (0, None, 2, None, None)
    assert found.without_partner == (["b", "d", "e"], ["car"])
    assert torch.equal(found.merge(LOGITS), LOGITS[:, [0, 2]])
    logits = found.spread(found.merge(LOGITS))
    assert torch.equal(logits[:, [0, 2]], LOGITS[:, [0, 2]])
    resized = torch.nn.functional.interpolate(logits, size=(7, 9), mode="bilinear")
    assert torch.isfinite(resized).all()
    assert set(resized.argmax(1).unique().tolist()) == {0, 2}


def test_merging_leaves_the_logits_that_come_as_they_are(tmp_path):
    found = yaml_map(tmp_path, "a: road\nb: road\nc: sky", names("a", "b", "c", "d", "e"))
    before = LOGITS.clone()
    found.merge(LOGITS)
    assert torch.equal(LOGITS, before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lory: car", "the teacher has no class 'lory'. Did you mean 'lorry'"),
        ("lorry: cat", "the student has no class 'cat'. Did you mean 'car'"),
        ("9: car", "the teacher has the classes 0 to 4, got 9"),
        ("lorry: 3", "the student has the classes 0 to 2, got 3"),
        ("lorry: [car, road]", "a class of the student is a name or an index"),
        ("no: car", "quote it"),
        ("lorry: car\n0: road", r"the teacher's class 0 \(lorry\) twice"),
        ("tree: sky", "the teacher has several classes 'tree'"),
        ("lorry: car", "1 common classes"),
        ("- lorry", "must hold lines"),
        ("lorry: {", "is not YAML"),
    ],
)
def test_a_file_that_is_no_map_of_these_classes_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        yaml_map(tmp_path, text, names("lorry", "road", "tree", "tree", "sky"))


def test_half_precision_is_left_before_probabilities_add_up(tmp_path):
    found = yaml_map(tmp_path, "a: road\nb: road\nc: sky", names("a", "b", "c", "d", "e"))
    half = LOGITS.to(torch.bfloat16)
    assert torch.equal(found.merge(half), found.merge(half.float()))


@pytest.mark.parametrize("labels", [{1: "road", 2: "car", 3: "sky"}, {"0": "road", "1": "car", "2": "sky"}])
def test_names_that_do_not_count_from_0_are_refused(labels):
    with pytest.raises(ValueError, match="has the keys"):
        match_classes(None, labels, STUDENT)


def test_maps_that_can_not_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        match_classes(str(tmp_path / "nowhere.yaml"), STUDENT, STUDENT)
    with pytest.raises(ValueError, match="the teacher has 2, the student 3"):
        match_classes("index", names("a", "b"), STUDENT)
    with pytest.raises(ValueError, match="0 common classes"):
        match_classes("names", names("a", "b"), STUDENT)
    with pytest.raises(ValueError, match="The class map is for a teacher of"):
        match_classes(ClassMap.from_names(STUDENT, STUDENT), names("a", "b", "c"), STUDENT)
    with pytest.raises(ValueError, match=r"classes of one name, \['sky'\]"):
        match_classes("names", STUDENT, names("road", "sky", "sky"))
    with pytest.raises(ValueError, match="got 3 as a target"):
        ClassMap([0, 1, 3], ["a", "b", "c"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="Got 2 targets for the 3 classes"):
        ClassMap([0, 1], ["a", "b", "c"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("teacher", "targets", "warning"),
    [
        (names("road", "car", "sky"), (0, 1, 2), None),
        (names("sky", "road", "car"), (2, 0, 1), None),
        (names("tree", "sky", "road", "car"), (None, 2, 0, 1), None),
        (names("tree", "sky", "road"), (None, 2, 0), "tree drop out. The student learns car from the labels alone"),
        (names("Strasse", "Auto", "sky"), (0, 1, 2), "they are paired by index"),
        (names("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1, 2), None),
    ],
)
def test_without_a_map_names_decide_then_the_order(teacher, targets, warning, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.getLogger("hf_segkd.networks.class_map"), "warning", warnings.append)
    assert match_classes(None, teacher, STUDENT).targets == targets
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def test_classes_that_agree_in_nothing_have_no_map():
    assert match_classes(None, names("a", "b"), STUDENT) is None
    defaults = {count: names(*(f"LABEL_{index}" for index in range(count))) for count in (3, 4)}
    assert match_classes(None, defaults[4], defaults[3]) is None
    assert match_classes(None, names("sky", "a"), STUDENT) is None  # one class has no distribution


def test_a_name_at_another_index_keeps_classes_from_being_paired_by_index(caplog):
    assert match_classes(None, names("sky", "Auto", "Strasse"), STUDENT) is None
    assert "sky is not at one index" in caplog.text
    assert "class_map" in caplog.text


def test_how_the_words_of_a_name_are_joined_does_not_count():
    teacher, student = names("traffic_sign", "Traffic-Light"), names("traffic light", "traffic  sign")
    assert match_classes(None, teacher, student).targets == (1, 0)


def test_a_map_tells_what_it_pairs(tmp_path):
    found = yaml_map(tmp_path, "lorry: car\ncar: car\nSky: sky", names("lorry", "car", "Sky", "tree"))
    assert found.describe() == (
        "Teacher and student have 2 common classes, under other names lorry + car -> car. The teacher's tree drop out. "
        "The student learns road from the labels alone."
    )
