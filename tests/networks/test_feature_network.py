import importlib
import json
import math
from types import SimpleNamespace

import foreign_models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_models import DENSE, ONEFORMER_INPUTS, QUERY, SIDE, build, no_scipy  # noqa: F401
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_commands import OPTIONS, STUDENT, flags
from tiny_runs import NUM_CLASSES, network, processor, same, scenes, trainer, weights
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch._inductor.exc import InductorError
from transformers import (
    EomtImageProcessor,
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    OneFormerImageProcessor,
    OneFormerProcessor,
    PreTrainedTokenizerFast,
    SegformerConfig,
    SegformerForImageClassification,
)

from hf_segkd.commands import evaluate, export, predict, train
from hf_segkd.networks import FeatureNetwork, query_log_probabilities, with_taps
from hf_segkd.networks.loading import load_network
from hf_segkd.training.distiller import network_spec

pytestmark = pytest.mark.usefixtures("no_scipy")
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
TAPS = {"decoder": "decode_head.linear_fuse"}
CROP = {"crop_size": [SIDE, SIDE], "max_steps": 1}  # EoMT and DPT take squares only


def names(models):
    return [model.__name__ for model in models]


def raw(network):
    """The model's own output."""
    inputs = {name: value.expand(len(IMAGES), -1) for name, value in network.reader.inputs.items()}
    with torch.no_grad():
        return network.model(pixel_values=IMAGES, **inputs)


def foreign(make, seed=0, **options):
    inputs = ONEFORMER_INPUTS if make is foreign_models.oneformer else None
    id2label = network().config.id2label
    return FeatureNetwork(build(make, seed, id2label=id2label), inputs=inputs, **options)


@pytest.mark.parametrize("make", DENSE, ids=names(DENSE))
def test_the_logits_of_a_dense_model_are_its_own(make):
    teacher = foreign(make)
    with torch.no_grad():
        output = teacher(pixel_values=IMAGES, output_features=True)
    assert torch.equal(output.logits, raw(teacher).logits)
    assert output.logits.shape[:2] == (2, NUM_CLASSES)
    assert output.features.keys() == teacher.tap_channels.keys()
    head_logits, enlarged_with = output.features["logits"], {"align_corners": make is foreign_models.dpt}
    enlarged = F.interpolate(head_logits, size=output.logits.shape[2:], mode="bilinear", **enlarged_with)
    assert torch.equal(enlarged, output.logits)
    assert teacher(pixel_values=IMAGES).features is None


@pytest.mark.parametrize("make", QUERY, ids=names(QUERY))
def test_the_logits_of_a_query_model_are_its_scores_normalised(make):
    teacher = foreign(make)
    output = raw(teacher)
    with torch.no_grad():
        logits = teacher(pixel_values=IMAGES, output_features=True).features["logits"]
    classes, masks = output.class_queries_logits.double(), output.masks_queries_logits.double()
    scores = torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    torch.testing.assert_close(logits.double(), (scores / scores.sum(1, keepdim=True)).log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones_like(logits[:, 0]))
    assert teacher.tap_channels["logits"] == NUM_CLASSES


@pytest.mark.parametrize(
    "post_processor",
    [
        MaskFormerImageProcessor(),
        Mask2FormerImageProcessor(),
        OneFormerImageProcessor(),
        EomtImageProcessor(size={"shortest_edge": 384, "longest_edge": 384}),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_the_classes_of_queries_are_those_of_the_models_own_post_processor(post_processor):
    generator = torch.Generator().manual_seed(1)
    classes = 3 * torch.randn(2, 10, NUM_CLASSES + 1, generator=generator)
    # Of the size that the post-processors of Mask2Former and EoMT resize masks to before they count.
    masks = F.interpolate(4 * torch.randn(2, 10, 24, 24, generator=generator), size=(384, 384), mode="bilinear")
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks, patch_offsets=None)
    expected = post_processor.post_process_semantic_segmentation(outputs, target_sizes=[(384, 384)] * 2)
    actual = query_log_probabilities(classes, masks).argmax(1)
    assert torch.equal(actual, torch.stack(list(expected)))
    assert len(actual.unique()) == NUM_CLASSES


@pytest.mark.parametrize("make", [foreign_models.maskformer, foreign_models.oneformer], ids=["maskformer", "oneformer"])
def test_the_classes_of_a_whole_model_are_those_of_its_post_processor(make):
    teacher = foreign(make)
    post_processor = MaskFormerImageProcessor() if make is foreign_models.maskformer else OneFormerImageProcessor()
    with torch.no_grad():
        logits = teacher(pixel_values=IMAGES).logits
    sizes = [tuple(logits.shape[2:])] * 2
    expected = post_processor.post_process_semantic_segmentation(raw(teacher), target_sizes=sizes)
    assert torch.equal(logits.argmax(1), torch.stack(list(expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_that_find_nothing_leave_finite_logits_and_gradients(dtype):
    classes = torch.tensor([[[-60000.0, -50.0, 0.0, 60000.0], [0.0, -300.0, 10.0, 500.0]]]).to(dtype).requires_grad_()
    masks = torch.full((1, 2, 2, 2), -60000.0, dtype=dtype, requires_grad=True)
    logits = query_log_probabilities(classes, masks)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.min().item() == pytest.approx(math.log(torch.finfo(torch.float32).tiny))
    logits.sum().backward()
    assert torch.isfinite(classes.grad).all()
    assert torch.isfinite(masks.grad).all()


def test_autocast_does_not_round_the_scores_of_queries():
    classes, masks = torch.randn(1, 5, 4), torch.randn(1, 5, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = query_log_probabilities(classes, masks)
    assert torch.equal(inside, query_log_probabilities(classes, masks))


@pytest.mark.parametrize("make", DENSE + QUERY, ids=names(DENSE + QUERY))
def test_a_student_learns_from_it_and_it_stays_as_it_was(make, tmp_path):
    teacher = foreign(make, seed=1)
    model = teacher.model.train()  # whatever mode it comes in
    before = weights(model)
    # OneFormer's task can't be made without its tokenizer.
    given = teacher if make is foreign_models.oneformer else model
    run = trainer(tmp_path, teacher=given, method="kd", **CROP)
    student = weights(run.student)
    run.train()
    assert not same(weights(run.student), student)
    assert same(weights(model), before)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert 0 < run.state.log_history[0]["raw_kd"] < math.inf


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_methods_on_logits_work_with_dense_models_and_with_queries(bf16, tmp_path):
    for make in (foreign_models.segformer, foreign_models.mask2former):
        run = trainer(tmp_path, teacher=foreign(make).model, method="kd,cwd,dist", bf16=bf16, **CROP)
        run.train()
        assert all(math.isfinite(value) for value in run.state.log_history[0].values())


def test_taps_are_outputs_of_the_modules_that_are_named(tmp_path):
    teacher = foreign(
        foreign_models.segformer, taps={"decoder": "decode_head.batch_norm", "encoder": "decode_head.linear_fuse"}
    )
    assert [teacher.tap_channels[tap] for tap in ("decoder", "encoder", "logits")] == [12, 12, NUM_CLASSES]
    hooks = [len(module._forward_hooks) for module in teacher.model.modules()]  # transformers has its own
    assert teacher.model.decode_head.batch_norm._forward_hooks == {}
    with torch.no_grad():
        features = teacher(pixel_values=IMAGES, output_features=True).features
        head = teacher.model.decode_head
        torch.testing.assert_close(head.batch_norm(features["encoder"]), features["decoder"])
        torch.testing.assert_close(head.classifier(head.activation(features["decoder"])), features["logits"])
    assert [len(module._forward_hooks) for module in teacher.model.modules()] == hooks
    spec = network_spec(teacher)
    assert (spec.num_labels, spec.ignore_index, spec.norms) == (NUM_CLASSES, 255, {})
    run = trainer(tmp_path, teacher=teacher, method="at", method_kwargs={"taps": ["decoder"]}, **CROP)
    run.train()
    assert run.state.log_history[0]["raw_at"] > 0


def test_what_writes_into_a_map_later_does_not_reach_the_tap():
    model = build(foreign_models.segformer)
    model.decode_head.activation = torch.nn.ReLU(inplace=True)
    features = FeatureNetwork(model, {"norm": "decode_head.batch_norm"})(IMAGES, output_features=True).features
    assert features["norm"].min() < 0


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"decoder": "decode_head.linear_fused"}, r"no such module\. The nearest are \['decode_head\.linear_fuse'"),
        ({"encoder": "decode_head.linear_projections.0"}, r"gives a tensor of shape \(1, 256, 12\)"),
        ({"encoder": "segformer"}, r"it gives 5 maps\. Name one: segformer:0 to segformer:4"),
        ({"encoder": "segformer:5"}, "it gives 5 maps, numbered from 0"),
        ({"encoder": r"segformer\.stages\.\d"}, r"matches 4 of .*: \['segformer\.stages\.0', 'segf"),
        ({"encoder": "segformer.stages.("}, "neither a module's path nor a regular expression"),
    ],
)
def test_taps_that_are_no_maps_are_refused(taps, message):
    with pytest.raises(ValueError, match=message):
        foreign(foreign_models.segformer, taps=taps)


def test_a_path_may_be_a_regular_expression_and_choose_among_several_maps():
    taps = {"first": r".*\.linear_fuse", "second": "segformer:1", "stage3": r"segformer\.stages\.0"}
    teacher = foreign(foreign_models.segformer, taps=taps)
    assert [str(teacher.taps[tap]) for tap in taps] == ["decode_head.linear_fuse", "segformer:1", "segformer.stages.0"]
    features = teacher(IMAGES, output_features=True).features
    assert torch.equal(features["second"], features["stage1"])  # behind the last hidden state
    assert torch.equal(features["stage3"], features["stage1"])  # what is named goes before the default


def test_a_method_that_reads_other_taps_says_which_there_are_and_how_to_name_more(tmp_path):
    with pytest.raises(ValueError, match=r"offers \['decoder', 'logits'\].*FeatureNetwork\(teacher, taps=\{"):
        trainer(tmp_path, teacher=build(foreign_models.eomt), method="attnfd")


def test_models_without_a_map_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"its logits are a tensor of shape \(1, 2\)"):
        FeatureNetwork(SegformerForImageClassification(SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4,
                                                                      num_attention_heads=[1] * 4)))  # fmt: skip


def test_oneformer_without_its_task_says_how_to_give_it():
    with pytest.raises(ValueError, match=r"inputs=\{'task_inputs'"):
        FeatureNetwork(build(foreign_models.oneformer))


def test_networks_of_the_package_stay_themselves():
    own = network()
    assert with_taps(own) is own


def test_the_config_is_a_copy_with_an_ignore_index():
    model = build(foreign_models.upernet)
    teacher = FeatureNetwork(model)
    assert teacher.config.semantic_loss_ignore_index == 255
    assert "semantic_loss_ignore_index" not in vars(model.config)
    assert teacher.config.id2label == model.config.id2label


@pytest.mark.parametrize("make", [foreign_models.segformer, foreign_models.mask2former, foreign_models.maskformer])
def test_load_network_loads_dense_and_query_models(make, tmp_path):
    model = build(make)
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded, _ = load_network(str(tmp_path))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert same(weights(loaded), weights(model))
    assert with_taps(loaded).name_or_path == str(tmp_path)


@pytest.mark.parametrize("make", [foreign_models.segformer, foreign_models.mask2former], ids=["dense", "queries"])
def test_the_distill_command_takes_such_a_teacher_and_evaluate_scores_it(make, tmp_path):
    teacher = tmp_path / "teacher"
    build(make, id2label=network().config.id2label).save_pretrained(teacher)
    processor().save_pretrained(teacher)
    options = {"student_config": STUDENT, "teacher": str(teacher), "method": "kd"}
    if make is foreign_models.segformer:
        options |= {"method": "at", "method_kwargs": {"taps": ["decoder"]}, "teacher_taps": TAPS}
    report = train.main(flags(tmp_path / "run", **options))
    assert (report.teacher, report.steps) == (str(teacher), 2)
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--use_cpu"]
    scores = evaluate.main(["--model", str(teacher), "--output", str(tmp_path / "scores.json"), *data])
    assert scores.num_images == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("decode_head.classifier.weight"),
            r"'missing_keys': \['decode_head\.classifier\.weight'",
        ),
        (lambda state: state.update(extra=torch.ones(1)), r"'unexpected_keys': \['extra'"),
        (
            lambda state: state.update({"decode_head.classifier.bias": torch.ones(7)}),
            r"'mismatched_keys': \[.*decode_head\.classifier\.bias.*7.*4",
        ),
    ],
    ids=["missing", "left over", "another shape"],
)
def test_weights_that_are_not_all_the_models_are_named(change, message, tmp_path):
    build(foreign_models.segformer).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_network(str(tmp_path))


def test_oneformers_task_is_what_its_processor_makes_of_it(tmp_path):
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "the", "task", "is", "semantic", "[UNK]"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    for part in (build(foreign_models.oneformer), processor(), tokenizer):
        part.save_pretrained(tmp_path)
    teacher = FeatureNetwork(load_network(str(tmp_path))[0])
    expected = OneFormerProcessor._preprocess_text(
        SimpleNamespace(tokenizer=tokenizer), ["the task is semantic"], max_length=8
    )
    assert torch.equal(teacher.reader.inputs["task_inputs"], expected)
    assert expected[0].tolist() == [1, 2, 3, 4, 0, 0, 0, 0]


def test_the_card_of_a_student_names_it_and_shows_its_cost(tmp_path):
    run = trainer(tmp_path, teacher=foreign(foreign_models.mask2former).model, method="kd", max_steps=1)
    run.train()
    run.evaluate()
    run._write_publication(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Mask2FormerForUniversalSegmentation (swin)" in card
    assert "| teacher | 0.113 M" in card


@pytest.mark.parametrize("make", [foreign_models.dpt, foreign_models.eomt], ids=["dpt", "eomt"])
def test_models_of_one_size_say_which(make):
    with pytest.raises(ValueError, match=r"works on images of 32 x 32 and not of 32 x 48: .* set crop_size"):
        foreign(make)(torch.zeros(1, 3, SIDE, 48))


def test_a_model_with_queries_is_refused_as_a_student(tmp_path):
    build(foreign_models.mask2former, id2label=network().config.id2label).save_pretrained(tmp_path / "student")
    processor().save_pretrained(tmp_path / "student")
    recipe = flags(tmp_path / "run", student=str(tmp_path / "student"), method="none", image_size=None)
    with pytest.raises(ValueError, match="can be a teacher, but not a student"):
        train.main(recipe)


def test_queries_are_not_exported_and_their_pictures_are_what_evaluation_scores(tmp_path):
    model = build(foreign_models.mask2former, id2label=network().config.id2label)
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS)]
    with pytest.raises(ValueError, match="predicts masks and their classes and is not exported"):
        export.main(["--model", str(tmp_path), "--format", "torch_export", *data])
    image = scenes("val", 1)[0]["image"]
    image.save(tmp_path / "one.png")
    predict.main(["--model", str(tmp_path), "--images", str(tmp_path / "one.png"), "--use_cpu", "--output",
                     str(tmp_path / "seen")])  # fmt: skip
    mask = torch.from_numpy(np.array(Image.open(tmp_path / "seen" / "one_mask.png"))).long()
    pixels = processor()(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = FeatureNetwork(model)(pixels).logits
    assert torch.equal(mask, F.interpolate(logits, size=mask.shape, mode="bilinear")[0].argmax(0))


def test_a_model_of_queries_without_scipy_says_how_to_get_it(tmp_path, monkeypatch):
    build(foreign_models.mask2former).save_pretrained(tmp_path)
    module = importlib.import_module("transformers.models.mask2former.modeling_mask2former")

    def refuse(owner, backends):
        raise ImportError(f"{type(owner).__name__} requires the {backends[0]} library but it was not found")

    monkeypatch.setattr(module, "requires_backends", refuse)
    with pytest.raises(ValueError, match="which needs scipy: pip install scipy"):
        load_network(str(tmp_path))


def test_a_model_that_can_not_be_compiled_is_not_said_to_take_one_size(monkeypatch):
    network = foreign(foreign_models.segformer)

    def forward(**inputs):
        raise InductorError(TypeError("cannot determine truth value"), None)

    monkeypatch.setattr(network.model, "forward", forward)
    with pytest.raises(ValueError, match=r"can't translate Segformer.*without torch_compile"):
        network(IMAGES)
