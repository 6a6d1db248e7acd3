import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from card_reports import LABELS, alone, report, row, student
from huggingface_hub import ModelCard
from PIL import Image
from tiny_runs import SIZE, network, processor

from hf_segkd.data.licences import DATA_TERMS
from hf_segkd.data.loading import LOADERS
from hf_segkd.losses import LOSSES
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.model_card import TEMPLATE, card_data, class_series, render_card
from hf_segkd.publishing.privacy import shareable
from hf_segkd.types import Paper

ROOT = Path(__file__).parents[2]
PARITY = {"images": 32, "max_logit_difference": 1e-6, "argmax_agreement": 0.9991, "miou": 0.36, "miou_exported": 0.35}
EXPORT = {
    "exports": [
        {"format": "onnx", "file": "onnx/model.onnx", "file_mb": 1.64, "argmax": False, "dynamic": True, "opset": 20}
        | {"parity": PARITY},
        {"format": "torch_export", "file": "model.pt2", "file_mb": 1.7, "argmax": True, "dynamic": False, "opset": None}
        | {"parity": {**PARITY, "max_logit_difference": None}},
    ],
    "latency": {
        "image_size": [96, 128],
        "threads": 2,
        "device": "A processor",
        "runs": 50,
        "rows": [
            {"network": "student", "runtime": "eager", "median_ms": 5.02, "p95_ms": 6.5, "file_mb": 1.6},  # no peak_mb
            {"network": "student", "runtime": "ncnn", "median_ms": 2.0, "p95_ms": 3.0, "file_mb": 1.5, "peak_mb": 48.6},
        ],
    },
    "versions": {},
}


def minimal(**more):
    values = {"architecture": "DeepLabV3+ (mobilenet_v2)", "id2label": LABELS.id2label, "dataset": "voc2012"}
    return CardFacts(**{"repo_id": "ann/student", "method": "none", **values, **more})


def full(**more):
    values = {
        "method": "attnfd",
        "method_kwargs": {"weight": 2},
        "dataset_id": "ann/voc",
        "teacher": "/home/ann/runs/teacher",
        "teacher_id": "ann/teacher",
        "license": "apache-2.0",
        "report": student(75, 0),
        "runs": [student(75, 0), student(80, 1)],
        "baseline_runs": [alone(50, 1), alone(60, 0)],
        "teacher_report": report(90, seed=0, steps=900, batch_size=8),
        "costs": [
            {"network": "student", "parameters": 383_000, "macs": 41_000_000, "image_size": [96, 128], "file_mb": 1.6},
            {"network": "teacher", "parameters": 3_384_000, "macs": None, "image_size": None, "file_mb": None},
        ],
        "export": EXPORT,
        "settings": {"learning_rate": 0.02, "seed": 42, "crop_size": None},
        "defaults": {"learning_rate": 0.007, "seed": 42, "crop_size": None},
        "versions": {"hf_segkd": "0.1.0", "torch": "2.9"},
        "pictures": ["two rows.png"],
        "chart": "per_class_iou.png",
        "space_id": "ann/space",
    }
    return minimal(**{**values, **more})


# --- metadata ---


def test_metadata_read_back_as_they_were_meant():
    data = ModelCard(render_card(full())).data
    assert data.base_model == "ann/teacher"
    assert data.datasets == ["ann/voc"]
    assert data.license == "apache-2.0"
    assert data.metrics == ["mean_iou"]
    assert data.pipeline_tag == "image-segmentation"
    assert data.library_name == "transformers"
    assert {"semantic-segmentation", "knowledge-distillation", "hf_segkd", "attnfd", "onnx"} == set(data.tags)
    assert data.model_name == "student"
    assert data.eval_results == card_data(full()).eval_results
    results = {result.metric_type: result for result in data.eval_results}
    values = {name: result.metric_value for name, result in results.items()}
    assert values == {"mean_iou": 60.0, "mean_accuracy": 75.0, "overall_accuracy": 75.0}  # of this network, no mean
    assert results["mean_iou"].dataset_name == "Pascal VOC 2012"
    assert results["mean_iou"].dataset_split == "val"


def test_a_network_that_was_not_evaluated_has_no_scores():
    card = render_card(minimal())
    assert ModelCard(card).data.eval_results is None
    assert "This network was not evaluated." in card
    assert "- accuracy, on any images;" in card
    assert "accuracy, on any images" not in render_card(full())


def test_no_licence_is_assumed():
    card = render_card(full(license=None))
    assert "license" not in ModelCard(card).data.to_dict()
    assert "No licence was given for this network" in card


def test_an_unpublished_teacher_is_no_base_model_and_its_folder_stays_private():
    card = render_card(full(teacher_id=None))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "a teacher network:\nteacher, without a Hub id.\n" in card
    assert "/home/ann" not in card
    assert "network:\nbig, without a Hub id" in render_card(full(teacher_id=None, teacher="C:\\runs\\big"))
    backbone = "UperNet (microsoft/resnet-50)"
    assert f"a teacher network:\n{backbone}, without" in render_card(full(teacher_id=None, teacher=backbone))
    assert "network:\nwhich one is not recorded" in render_card(full(teacher_id=None, teacher=None))


def test_a_published_teacher_is_linked_where_it_is_named_and_where_its_terms_count():
    card = render_card(full(teacher="PSPNet (resnet101, output stride 8)"))
    link = "(https://huggingface.co/ann/teacher)"
    assert f"a teacher network:\nPSPNet (resnet101, output stride 8), [ann/teacher]{link}.\n" in card
    assert f"The terms of the data and of the [teacher]{link} apply beside it." in card


def test_only_a_distilled_network_is_called_so():
    card = render_card(minimal(report=alone(50)))
    assert "knowledge-distillation" not in ModelCard(card).data.tags
    assert "from the labels alone, without a teacher" in card
    assert "Gain in mIoU" not in card
    assert "no gain" not in card
    assert ModelCard(render_card(minimal(self_contained=True))).data.tags[-1] == "custom_code"


def test_what_is_not_known_of_the_training_is_said_and_not_guessed():
    unknown = student(75).extended(method=None, seed=None, steps=None)
    card = render_card(minimal(method=None, dataset=None, report=unknown))
    assert "How, and on what, it was trained is not recorded.\n" in card
    assert "What the network was trained on is not recorded; ask the publisher." in card
    assert row(card, "this network")[1:] == ["60.00", "75.00", "75.00", "1", "-", "16"]
    assert "Published with `hf_segkd`." in card
    assert "10 images of Pascal VOC 2012, split `val`" in card
    for claim in ("labels alone", "Distilled", "Gain", "no gain", "last step", "settings", "Made"):
        assert claim not in card
    assert "It was trained on Pascal VOC 2012; how is not recorded.\n" in render_card(minimal(method=None))
    assert "knowledge-distillation" not in ModelCard(card).data.tags


def test_scores_on_other_data_than_the_training_are_not_filed_under_the_trainings():
    other = student(75).extended(dataset="cityscapes")
    card = render_card(full(report=other, runs=[], baseline_runs=[], teacher_report=None))
    assert "It was trained on Pascal VOC 2012, from the labels" in card
    assert "10 images of Cityscapes, split `val`" in card
    (result, *_) = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("cityscapes", "Cityscapes")


# --- results ---


def test_reports_that_cannot_be_compared_make_no_card():
    with pytest.raises(ValueError, match="A baseline run has steps = 4000"):
        full(baseline_runs=[alone(50, steps=4000)])
    with pytest.raises(ValueError, match="The teacher has split = test"):
        full(teacher_report=report(90, split="test"))
    with pytest.raises(ValueError, match="A run has batch_size = 2"):
        full(runs=[student(75), student(80, 1, batch_size=2)])
    with pytest.raises(ValueError, match=r"The report has the classes .*'tram'.*, the network \['road', 'car'\]"):
        full(id2label={0: "road", 1: "car"})


def test_the_card_tells_of_images_that_could_not_be_read():
    assert "could not be read" not in render_card(full(report=student(75, unreadable_images=0)))
    card = render_card(full(report=student(75, unreadable_images=3)))
    assert "512 images.\n3 of the training images could not be read and were left out.\n" in card
    card = render_card(full(report=student(75, unreadable_images=3, resumed_from_step=40)))
    assert "were left out, counted since the run was resumed at step 40.\n" in card


def test_the_card_tells_of_images_without_labels():
    assert "without labels" not in render_card(full())
    mixed = {"unlabelled_images": 9000, "unlabelled_ratio": 2.0}
    card = render_card(minimal(report=student(75, **mixed), runs=[student(75, **mixed)]))
    assert (
        "Students learnt from 512 images.\nThe distilled student also learnt from 9000 images without labels.\n" in card
    )
    none = student(75, **mixed, train_images=0)
    card = render_card(minimal(method="kd", dataset=None, report=none, runs=[none]))
    assert "It was trained on images without labels, from a teacher network" in card
    assert "\nThe distilled student learnt from 9000 images without labels.\n" in card
    assert "0 images." not in card


def test_the_card_tells_of_averaged_weights():
    assert "average over the steps" not in render_card(full())
    card = render_card(minimal(report=student(75, ema_decay=0.999)))
    assert "The weights are an average over the steps, with decay 0.999." in card


def test_teacher_undistilled_and_distilled_students_stand_side_by_side():
    card = render_card(full())
    assert row(card, "teacher")[1:] == ["81.82", "90.00", "90.00", "1 (0)", "900", "8"]
    plain = ["38.10 ± 6.73", "55.00 ± 7.07", "55.00 ± 7.07", "2 (1, 0)", "250", "16"]
    assert row(card, "student, labels alone")[1:] == plain
    distilled = ["63.33 ± 4.71", "77.50 ± 3.54", "77.50 ± 3.54", "2 (0, 1)", "250", "16"]
    assert row(card, "student, distilled")[1:] == distilled
    assert row(card, "**this network**")[1:] == ["60.00", "75.00", "75.00", "1 (0)", "250", "16"]
    assert "**+25.24 ± 11.45** points (seed 0: +17.14, seed 1: +33.33)" in card
    assert "The student reaches 77.41 % of the teacher's mIoU." in card  # 63.33 / 81.82
    assert "10 images of Pascal VOC 2012, split `val`" in card
    assert "Students learnt from 512 images." in card


def test_without_a_baseline_the_card_says_so():
    assert "no undistilled baseline under the same protocol, and so no gain" in render_card(full(baseline_runs=[]))


def test_a_teacher_without_scores_is_no_silent_gap():
    silent = "The teacher's scores under this protocol are not known."
    assert silent in render_card(full(teacher_report=None))
    assert silent not in render_card(full())
    assert silent not in render_card(minimal(report=alone(50)))


def test_one_seed_has_no_spread():
    card = render_card(full(runs=[], baseline_runs=[]))
    assert "One seed: how much the scores differ from seed to seed is not known." in card
    assert "±" not in card
    assert "One seed" not in render_card(full())


def test_the_selection_of_the_checkpoint_is_told():
    assert "last step, without selection" in render_card(full())
    selected = render_card(full(settings={"load_best_model_at_end": True}))
    assert "last step" not in selected
    assert "The checkpoint was chosen by its score" in selected
    unknown = student(75).extended(steps=None)
    assert "last step" not in render_card(minimal(report=unknown))


def test_each_class_has_its_row_and_one_without_iou_a_dash():
    card = render_card(full())
    assert row(card, "class") == ["class", "teacher", "student, labels alone (mean of 2)", "this network"]
    assert row(card, "road") == ["road", "81.82", "38.10", "60.00"]
    assert row(card, "tram") == ["tram", "-", "-", "-"]
    assert 'is marked "-"' in card
    assert class_series(full())["this network"] == pytest.approx([0.6, 0.6, None])
    assert class_series(minimal()) == {}


def test_classes_are_in_the_order_of_their_ids():
    facts = full(id2label={2: "tram", 0: "road", 1: "car"})
    assert render_card(facts) == render_card(full())


def test_only_long_tables_are_folded():
    names = {index: f"class {index}" for index in range(40)}
    scores = {name: {"iou": 0.5, "accuracy": 0.5} for name in names.values()}
    card = render_card(minimal(id2label=names, report=alone(50).extended(classes=scores, confusion_matrix=None)))
    assert "<details><summary>Table of the 40 classes</summary>\n\n| class" in card
    assert "class 39 " in card
    assert "Table of the" not in render_card(full())
    assert 'is marked "-"' not in card


# --- size, speed, training ---


def test_costs_exports_and_latencies_are_listed():
    card = render_card(full())
    assert row(card, "student | 0.383") == ["student", "0.383 M", "0.041 G for 96 x 128 pixels", "1.60"]
    assert row(card, "teacher | 3.384") == ["teacher", "3.384 M", "-", "-"]
    assert row(card, "onnx/model.onnx") == ["onnx/model.onnx", "onnx, opset 20", "", "", "1.64", "logits", "any"]
    assert row(card, "model.pt2") == ["model.pt2", "torch\\_export", "", "", "1.70", "class ids", "fixed"]
    assert row(card, "student | eager") == ["student", "eager", "5.02", "6.50", "1.60", "-"]
    assert row(card, "student | ncnn") == ["student", "ncnn", "2.00", "3.00", "1.50", "49"]
    assert "one image of 96 x 128 pixels (height x width) on A processor,\n2 threads, 50 runs" in card
    onnx, exported = card[card.index("- onnx/model.onnx: on 32 images, 99.91 %") :].split("- model.pt2", 1)
    assert "mIoU 35.00 %, of the network itself 36.00 %; largest difference of a logit 1.0e-06." in onnx
    assert "36.00 %, both of masks resized to the labels." in exported.split("\n\n")[0]
    assert "largest difference" not in exported.split("\n\n")[0]
    assert "latency on other hardware than named above" in card


def test_exports_tell_which_images_they_were_checked_on():
    onnx, program = EXPORT["exports"]
    told = {"dataset": "voc2012", "split": "val_2", "image_size": [96, 128], "snippet_agreement": 0.9988}
    card = render_card(full(export={**EXPORT, "exports": [onnx | told, program | dict.fromkeys(told)]}))
    where = r"on 32 images of Pascal VOC 2012, split val\_2, resized to 96 x 128 pixels (height x width), 99.91 %"
    assert f"- onnx/model.onnx: {where}" in card
    assert r"run\_onnx.py beside it gives 99.88 % of the pixels of whole images" in card
    assert "- model.pt2: on 32 images, 99.91 %" in card
    assert "run\\_onnx.py" not in render_card(full())


def test_formats_for_devices_stand_beside_each_other_with_what_they_were_run_in():
    plain = {"format": "openvino", "file": "openvino/model.xml", "file_mb": 1.6, "argmax": False, "dynamic": False}
    fp32 = plain | {"opset": None, "runtime": "OpenVINO", "precision": "fp32", "parity": PARITY}
    bf16 = fp32 | {"runtime": "OpenVINO bf16", "precision": "bf16", "parity": PARITY | {"argmax_agreement": 0.985}}
    unrun = fp32 | {"format": "coreml", "file": "coreml/model.mlpackage", "runtime": "Core ML", "parity": None}
    missing = {"network": "student", "runtime": "Core ML", "reason": "it runs on other systems only"}
    latency = EXPORT["latency"] | {"missing": [missing]}
    card = render_card(full(export={**EXPORT, "exports": [fp32, bf16, unrun], "latency": latency}))
    first = ["openvino/model.xml", "openvino", "OpenVINO", "fp32", "1.60", "logits", "fixed"]
    assert row(card, "openvino/model.xml") == first
    assert "| OpenVINO bf16 | bf16 |" in " ".join(card.split())
    assert "- openvino/model.xml in OpenVINO: on 32 images, 99.91 %" in card
    assert "- openvino/model.xml in OpenVINO bf16: on 32 images, 98.50 %" in card
    assert "- coreml/model.mlpackage: converted, and not run: its runtime is for other systems" in card
    assert "- Not timed: student, Core ML: it runs on other systems only." in card


def test_without_measurements_no_speed_is_told():
    card = render_card(full(costs=[], export=None))
    assert "## Size and speed" not in card
    assert "latency on any hardware" in card


def test_changed_settings_come_first_with_their_default():
    card = render_card(full())
    assert row(card, r"learning\_rate") == [r"learning\_rate", "0.02", "0.007"]
    assert row(card, "seed") == ["seed", "42"]
    assert card.index(r"learning\_rate") < card.index("<details>") < card.index("| seed ")
    assert row(card, r"crop\_size") == [r"crop\_size", "-"]


@pytest.mark.parametrize("place", ["settings", "method_kwargs"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", "SECRET/run"),
        ("logging_dir", "SECRET"),
        ("hub_token", "SECRET"),
        ("hub_model_id", "SECRET/net"),
        ("push_to_hub_token", "SECRET"),
        ("run_name", "SECRET"),
        ("resume_from_checkpoint", "SECRET"),
        ("deepspeed", "/home/SECRET/ds.json"),
        ("fsdp_config", {"nested": ["~/SECRET"]}),
        ("config", "C:\\SECRET"),
        ("share", "\\\\SECRET\\share"),
        ("optim_args", "file=/SECRET"),
        ("project", "SECRET"),
        ("unheard_of_dir", "SECRET"),
        ("proxy", "hf_SECRETabcdefgh"),
    ],
)
def test_paths_and_tokens_stay_private(place, name, value):
    facts = full(**{place: {name: value, "weight": 0.25}})
    assert "SECRET" not in render_card(facts)
    assert "0.25" in render_card(facts)


def test_what_must_stay_complete_keeps_the_last_part_of_paths_and_no_secret():
    state = {
        "best_model_checkpoint": "/home/ann/run/checkpoint-1",
        "nested": [{"output_dir": "C:\\ann\\run"}, "~/ann", "hf_abcdefghij", "/home/ann/hf_abcdefghij"],
        "hub_token": "<HUB_TOKEN>",
        "lr_scheduler_kwargs": {"power": 0.9, "names": ["a.b", "loss/kd"], "none": None},
        "average_tokens_across_devices": True,
        "log_history": [{"eval_mean_iou": float("nan")}],
    }
    assert shareable(state) == {
        "best_model_checkpoint": "checkpoint-1",
        "nested": [{"output_dir": "run"}, "ann", None, None],
        "hub_token": None,
        "lr_scheduler_kwargs": state["lr_scheduler_kwargs"],
        "average_tokens_across_devices": True,
        "log_history": [{"eval_mean_iou": None}],
    }


def test_ordinary_settings_are_no_secrets():
    settings = {"optim_args": "momentum=0.9", "frozen": ["backbone.conv1"], "average_tokens_across_devices": True}
    card = render_card(full(settings=settings, defaults={}))
    assert row(card, r"average\_tokens\_across\_devices")[1] == "true"
    assert row(card, r"optim\_args")[1] == '"momentum=0.9"'
    assert row(card, "frozen")[1] == r'\["backbone.conv1"\]'


def test_the_card_tells_what_the_training_started_from():
    assert "weights at the start of the training were random." in render_card(full())
    for name, shown in (("/home/ann/resnet.pth", "resnet.pth"), ("nvidia/mit-b0", "nvidia/mit-b0")):
        card = render_card(full(report=student(75, initial_weights=name), runs=[], baseline_runs=[]))
        assert f"training were those of {shown}." in card
    assert "at the start" not in render_card(minimal())


def test_the_card_names_what_makes_a_comparison_unfair():
    differs = alone(50, settings={"learning_rate": 0.1})
    card = render_card(full(report=student(75, settings={"learning_rate": 0.02}), runs=[], baseline_runs=[differs]))
    assert "**+26.67** points" in card
    assert "so may their scores: `learning_rate` `0.02`, labels alone `0.1`." in card


def test_versions_are_listed_where_they_are_known():
    assert "hf\\_segkd 0.1.0, torch 2.9." in render_card(full())
    assert "  version = {0.1.0},\n" in render_card(full())
    unknown = render_card(full(versions={}))
    assert "## Training" in unknown
    assert "version = " not in unknown
    assert "</details>\n\n## Data" in unknown
    assert "## Training" not in render_card(full(versions={}, settings={}, report=None))


# --- data, licence, citation ---


def test_the_terms_of_every_data_set_of_the_package_are_known():
    assert set(LOADERS) - {"folder"} <= set(DATA_TERMS)
    for name, terms in DATA_TERMS.items():
        card = render_card(minimal(dataset=name.upper()))
        assert terms.terms in card
        assert terms.limits in card
        assert terms.url in card


def test_the_licence_of_other_data_is_the_users_or_not_stated():
    assert "my photos: its licence is not stated; ask the publisher." in render_card(minimal(dataset="my photos"))
    card = render_card(minimal(dataset="my photos", dataset_license="CC0"))
    assert "Licence as given by the publisher of this network: CC0." in card
    assert "not stated" not in card


def test_a_loss_of_its_makers_own_has_its_paper_or_none():
    paper = Paper("A title", "ABC 2030", "", "@article{made_up}")
    card = render_card(
        full(method="mine,kd", own_paper=paper, method_kwargs={}, report=None, runs=[], baseline_runs=[])
    )
    assert "`mine` (A title, ABC 2030) and\n`kd` ([Distilling" in card
    assert "@article{made_up}" in card
    card = render_card(full(method="mine", method_kwargs={}, report=None, runs=[], baseline_runs=[]))
    assert "`mine` (a loss of its makers' own, without a publication)." in card
    assert card.count("```bibtex") == 1


def test_losses_on_the_labels_are_named_with_their_papers():
    assert "From the labels it learnt" not in render_card(full())
    card = render_card(full(settings={"label_loss": "ce, dice,focal"}))
    assert "From the labels it learnt with `dice` ([V-Net: " in card
    assert "`focal` ([Focal Loss for Dense Object Detection](https://arxiv.org/abs/1708.02002), ICCV 2017)." in card
    assert "@inproceedings{milletari2016vnet" in card


def test_citations_are_those_of_the_papers_each_once(monkeypatch):
    paper = Paper("A title", "ABC 2030", "3001.00001", "@article{made_up,\n  title = {A title}\n}")
    for name in ("fakd_pd", "fakd_cwd"):
        monkeypatch.setattr(LOSSES[name], "paper", paper)
    card = render_card(full(method="fakd_pd,fakd_cwd", method_kwargs={}, report=None, runs=[], baseline_runs=[]))
    assert card.count(f"```bibtex\n{paper.bibtex}\n```") == 1
    assert card.count("[A title](https://arxiv.org/abs/3001.00001), ABC 2030)") == 2
    assert "@software{hf_segkd" in card
    assert "version = {0.1.0}" in card


# --- text ---


@pytest.mark.parametrize(
    "facts",
    [
        minimal(),
        minimal(report=alone(50)),
        full(),
        full(self_contained=True, teacher=None, teacher_id=None, license=None, dataset_id=None, versions={}),
        full(teacher_report=report(0)),
        full(pictures=[], chart=None, export=None, method="cwd,attnfd", method_kwargs={}, report=None),
    ],
)
def test_nothing_of_the_template_or_of_python_shows(facts):
    card = render_card(facts)
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|Undefined|<hf_segkd", card)
    prose = re.sub(r"```.*?```", "code", card, flags=re.DOTALL)
    assert not re.search(r"\n{3}|\(\)|\[\]\(| \.\n| ,", prose)


def test_names_cannot_break_the_table_or_the_page():
    name = "a|b *c* <img src=x> `d`\n[e](f)"
    classes = {other if other != "car" else name: scores for other, scores in student(75).classes.items()}
    facts = minimal(id2label={0: "road", 1: name, 2: "tram"}, report=student(75, method="none", classes=classes))
    card = render_card(facts)
    assert len(row(card, r"a\|b")) == len(row(card, "road"))
    assert "<img" not in card
    assert r"a\|b \*c\* &lt;img src=x&gt; \`d\` \[e\](f)" in card


def test_pictures_are_shown_or_their_absence_explained():
    assert "](two%20rows.png)" in render_card(full())
    assert "](per_class_iou.png)" in render_card(full())
    assert "Its licence forbids it." in render_card(full(pictures=[], pictures_note="Its licence forbids it."))


def test_the_template_at_the_top_level_is_the_one_that_is_shipped():
    assert (ROOT / "model_cards" / "template.md").resolve() == TEMPLATE.resolve()


# --- use ---


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the card's code finds its network and its image by the names it gives them."""
    network().save_pretrained(tmp_path / "ann/student")
    processor().save_pretrained(tmp_path / "ann/student")
    Image.new("RGB", (2 * SIZE[1], 2 * SIZE[0]), "grey").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippet(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def test_the_code_in_the_card_runs_as_it_stands(folder):
    seen = {}
    exec(snippet(render_card(minimal())), seen)
    assert "hf_segkd" in seen
    assert seen["class_ids"].shape == (2 * SIZE[0], 2 * SIZE[1])
    assert {segment["label"] for segment in seen["segments"]} == {
        seen["model"].config.id2label[int(index)] for index in seen["class_ids"].unique()
    }


def test_networks_of_transformers_itself_need_no_package():
    card = render_card(minimal(needs_package=False))
    assert "import hf_segkd" not in card
    assert "Needs the package" not in card
    assert "## Use\n\n```python\nimport torch" in card


@pytest.mark.slow
def test_the_code_in_the_card_of_a_self_contained_network_runs_without_the_package(folder, monkeypatch):
    monkeypatch.setattr(DeepLabV3PlusConfig, "_auto_class", "AutoConfig")
    monkeypatch.setattr(DeepLabV3PlusForSemanticSegmentation, "_auto_class", "AutoModelForSemanticSegmentation")
    network().save_pretrained(folder / "ann/student")
    code = snippet(render_card(minimal(self_contained=True)))
    assert "import hf_segkd" not in code
    script = (
        f'import sys\nsys.modules["hf_segkd"] = None\n{code}\nassert class_ids.shape == ({2 * SIZE[0]}, {2 * SIZE[1]})'
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=folder, check=True)
