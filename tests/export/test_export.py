import json
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign_models import SIDE, build, eomt, no_scipy  # noqa: F401
from PIL import Image
from tiny_runs import NUM_CLASSES, SIZE, network, processor, scenes
from torch import nn
from transformers import (
    BeitImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from hf_segkd.commands import export as export_command
from hf_segkd.commands import export_files
from hf_segkd.commands.cli import plain_errors
from hf_segkd.data.image_processors import fixed_size
from hf_segkd.evaluation.metrics import MeanIoU
from hf_segkd.export import run_onnx, runtimes
from hf_segkd.export.formats import DEVICE_FORMATS, DeviceFormat
from hf_segkd.export.formats import ONNX as ONNX_PACKAGES
from hf_segkd.export.graph import DenseNetwork, check_takes, save_onnx, trace
from hf_segkd.export.latency import Missing, latency_report, onnx_variant, pytorch_variants, traced_variants
from hf_segkd.export.metadata import check_description, describe, with_size
from hf_segkd.networks import with_taps
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network

ROOT = Path(__file__).parents[2]
OPTIONS = {"image_size": list(SIZE), "num_classes": NUM_CLASSES, "num_images": 8}
ONNX = ["--format", "onnx", "--latency_runs", "0"]


def save_model(folder, model=None, image_processor=None):
    (model or network()).save_pretrained(folder)
    (image_processor or processor()).save_pretrained(folder)
    return folder


def export(model, *flags):
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--num_images", "5"]
    return export_command.main(["--model", str(model), *data, *flags])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def exported(model):
    """The folder of an ONNX export with int8."""
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")
    export(model, *ONNX, "--int8", "--calibration_images", "4")
    return model / "onnx"


@pytest.fixture
def copied_onnx(exported, monkeypatch):
    """Makes further exports quick: the ONNX file is that of the first one, changed by what is returned."""
    changes = []

    def save(program, path, output_name, dynamic=False, opset=20):
        shutil.copy(exported / "model.onnx", path)
        for change in changes:
            change(path)

    monkeypatch.setattr(export_files, "save_onnx", save)
    return changes


def child(code, *arguments, hidden, cwd):
    """Run code in a process in which some packages cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
    command = [sys.executable, "-c", hide + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_export_reports_that_it_is_the_same_network(exported):
    report = json.loads((exported / "export.json").read_text())
    first, second = report["exports"]
    for export in (first, second):
        assert (export["dataset"], export["split"], export["image_size"]) == ("demo", "val", list(SIZE))
    assert first["snippet_agreement"] == 1.0
    assert (first["format"], first["file"], first["opset"]) == ("onnx", "model.onnx", 20)
    assert (first["argmax"], first["dynamic"]) == (False, False)
    assert first["file_mb"] == pytest.approx((exported / "model.onnx").stat().st_size / 1e6)
    assert first["parity"]["images"] == 5
    assert first["parity"]["argmax_agreement"] > 0.999
    assert 0 < first["parity"]["max_logit_difference"] < 1e-3
    assert first["parity"]["miou"] == pytest.approx(first["parity"]["miou_exported"], abs=5e-4)
    assert (second["format"], second["file"]) == ("onnx-int8", "model-int8.onnx")
    assert second["file_mb"] < first["file_mb"]
    assert second["parity"]["max_logit_difference"] > first["parity"]["max_logit_difference"]
    assert report["latency"] is None
    assert report["weights_sha256"] == sha256((exported.parent / "model.safetensors").read_bytes()).hexdigest()
    assert {"torch", "onnxruntime"} <= set(report["versions"])


def test_the_reported_score_is_that_of_evaluation(model, exported):
    report = json.loads((exported / "export.json").read_text())
    score = MeanIoU(NUM_CLASSES)
    for row in export_files.evenly_spread(scenes("val", 8), 5):
        score.update(predict(*load_network(str(model)), row["image"]), np.array(row["annotation"]))
    assert report["exports"][0]["parity"]["miou"] == score.compute()["mean_iou"]


def test_the_file_says_how_to_prepare_images_and_what_the_classes_are(model, exported):
    _, facts = run_onnx.load(exported / "model-int8.onnx")
    image_processor = processor()
    assert facts["size"] == {"height": SIZE[0], "width": SIZE[1]}
    assert facts["resample"] == 2
    assert facts["rescale_factor"] == image_processor.rescale_factor
    assert facts["image_mean"] == list(image_processor.image_mean)
    assert facts["image_std"] == list(image_processor.image_std)
    assert facts["id2label"] == {str(key): name for key, name in network().config.id2label.items()}
    assert (facts["input"], facts["output"]) == ("pixel_values", "logits")
    assert "torch" in facts["versions"]
    assert "license" not in facts
    assert facts == run_onnx.load(exported / "model.onnx")[1]


def test_a_licence_in_the_config_goes_into_the_file():
    student = network()
    student.config.license = "mit"
    assert describe(student, processor(), "logits")["license"] == "mit"


def test_batch_norm_is_gone_and_files_tell_nothing_of_the_machine(exported):
    import onnx

    graph = onnx.load(exported / "model.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert not any(node.metadata_props for node in graph.node)
    for file in exported.iterdir():
        content = file.read_bytes()
        for word in (str(ROOT), "site-packages", str(exported.parent), "stack_trace"):
            assert word.encode() not in content, (file.name, word)


def test_the_written_program_gives_the_masks_of_predict_without_torch(model, exported, tmp_path):
    # Not the network's size, and one that PIL and torchvision reduce to the same bits; by other factors some pixels
    # differ by one level of 255, and so may the class where two are close.
    image = scenes("val", 1)[0]["image"].resize((2 * SIZE[1], 3 * SIZE[0]))
    image.save(tmp_path / "photo.png")
    code = "import runpy; script = sys.argv[1]; sys.argv[:] = sys.argv[1:]; runpy.run_path(script, run_name='__main__')"
    hidden = ["torch", "transformers", "hf_segkd"]
    output = child(code, exported / "run_onnx.py", "photo.png", "mask.png", hidden=hidden, cwd=tmp_path)
    expected = predict(*load_network(str(model)), image).numpy()
    assert len(np.unique(expected)) > 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)
    assert "background" in output


@pytest.mark.parametrize("size", [{"height": 33, "width": 20}, {"shortest_edge": 24}, None])
def test_the_program_prepares_images_as_the_processor_does(size):
    image_processor = SegformerImageProcessor(do_resize=size is not None, size=size or {"height": 1, "width": 1})
    facts = json.loads(json.dumps(describe(network(), image_processor, "logits")))
    image = scenes("val", 1)[0]["image"].resize((75, 61))
    expected = image_processor(images=image, return_tensors="np")["pixel_values"]
    level = 1 / 255 / min(facts["image_std"])
    np.testing.assert_allclose(run_onnx.prepare(image, facts), expected, atol=1.01 * level)
    check_description(facts, image_processor, [image])


@pytest.mark.parametrize(
    "image_processor",
    [
        BeitImageProcessor(
            size={"height": 40, "width": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32}
        ),
        SegformerImageProcessor(size={"max_height": 40, "max_width": 30}),
    ],
)
def test_a_processor_that_does_more_than_a_user_of_the_file_could_know_is_refused(image_processor):
    facts = describe(network(), image_processor, "logits")
    with pytest.raises(ValueError, match=f"{type(image_processor).__name__} does something else"):
        check_description(facts, image_processor, [scenes("val", 1)[0]["image"]])


def test_an_export_that_is_another_network_is_not_kept(model, copied_onnx, tmp_path):
    import onnx

    def disturb(path):
        broken = onnx.load(path)
        weight = next(array for array in broken.graph.initializer if array.name.endswith("classifier.weight"))
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(-values, weight.name))
        onnx.save(broken, path)

    copied_onnx.append(disturb)
    with pytest.raises(ValueError, match=r"model\.onnx is not the network .* mIoU is .* instead of"):
        export(model, *ONNX, "--output", str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    before = {file: file.read_bytes() for file in (model / "onnx").iterdir()}
    with pytest.raises(ValueError, match="is not the network"):
        export(model, *ONNX)
    assert {file: file.read_bytes() for file in (model / "onnx").iterdir()} == before
    assert not list(model.glob(".export-*"))


def test_int8_that_costs_more_than_allowed_is_refused(model, copied_onnx, tmp_path):
    flags = ["--int8", "--calibration_images", "2", "--max_int8_loss", "-100", "--output", str(tmp_path / "new")]
    with pytest.raises(ValueError, match=r"model-int8\.onnx in int8 costs .* mIoU .* --max_int8_loss allows -100"):
        export(model, *ONNX, *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_an_earlier_export_does_not_stay_beside_a_new_one(model, copied_onnx, tmp_path):
    (tmp_path / "model-int8.onnx").write_text("of another network")
    (tmp_path / "notes.txt").write_text("the user's own")
    export(model, *ONNX, "--output", str(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "export.json",
        "model.onnx",
        "notes.txt",
        "run_onnx.py",
    ]


def segformer():
    torch.manual_seed(0)
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 2, 2, 2]}
    labels = network().config.id2label
    config = SegformerConfig(
        **sizes, decoder_hidden_size=16, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    return SegformerForSemanticSegmentation(config).eval()


def test_small_logits_are_brought_to_the_size_of_the_image_as_the_post_processor_does():
    model, images = segformer().bfloat16(), torch.rand(2, 3, 37, 50)
    logits = DenseNetwork(model)(images)
    assert logits.shape == (2, NUM_CLASSES, 37, 50)
    assert logits.dtype == torch.float32
    masks = processor().post_process_semantic_segmentation(model(pixel_values=images), target_sizes=[(37, 50)] * 2)
    assert torch.equal(DenseNetwork(model, argmax=True)(images), torch.stack(masks).byte())


class Ties(nn.Module):
    """Logits of three classes of which the first two are always equal."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, pixel_values):
        first, last = self.conv(pixel_values).split(1, dim=1)
        return SimpleNamespace(logits=torch.cat([first, first, last], dim=1))


def test_of_equal_logits_the_first_class_wins_in_onnx_runtime_too(tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")
    network = DenseNetwork(Ties(), argmax=True)
    save_onnx(trace(network, (9, 7)), tmp_path / "model.onnx", network.output_name)
    images = torch.randn(1, 3, 9, 7)
    mask = runtimes.onnx_network(tmp_path / "model.onnx")(images)
    assert mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) == {0, 2}
    assert torch.equal(mask, network(images))


class OneSize(Ties):
    def forward(self, pixel_values):
        return super().forward(pixel_values.reshape(-1, 3, 9, 7))


def test_a_network_for_one_size_is_not_exported_as_one_for_any(model, copied_onnx, tmp_path):
    trace(DenseNetwork(OneSize()), (9, 7))
    with pytest.raises(ValueError, match="OneSize takes no images of 5 x 4; choose another --image_size"):
        check_takes(DenseNetwork(OneSize()), torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"OneSize is written so .* without --dynamic"):
        trace(DenseNetwork(OneSize()), (9, 7), dynamic=True)
    with pytest.raises(ValueError, match=r"model\.onnx does not run with several images .* without --dynamic"):
        export(model, *ONNX, "--dynamic", "--output", str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_a_torch_export_file_runs_where_this_package_is_not(model, tmp_path):
    report = export(model, "--format", "torch_export", "--latency_runs", "0")
    assert (report["exports"][0]["file"], report["exports"][0]["opset"]) == ("model.pt2", None)
    assert sorted(file.name for file in (model / "torch_export").iterdir()) == ["export.json", "model.pt2"]
    content = (model / "torch_export" / "model.pt2").read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    images = torch.randn(1, 3, *SIZE)
    torch.save(images, tmp_path / "images.pt")
    code = """
import json, torch
extra = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
assert program.example_inputs is None
print(json.loads(extra["metadata.json"])["id2label"]["0"])
torch.save(program.module()(torch.load("images.pt")), "logits.pt")
"""
    file = model / "torch_export" / "model.pt2"
    assert "background" in child(code, file, hidden=["hf_segkd", "transformers"], cwd=tmp_path)
    student, _ = load_network(str(model))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), student(pixel_values=images).logits)


def test_the_size_of_images_is_the_users_or_the_processors(tmp_path):
    free = SegformerImageProcessor(do_resize=False)
    assert fixed_size(free) is None
    assert fixed_size(processor()) == SIZE
    assert fixed_size(with_size(free, (8, 9))) == (8, 9)
    save_model(tmp_path, image_processor=free)
    with pytest.raises(ValueError, match=r"does not resize to one height and width.*--image_size.*--dynamic"):
        export(tmp_path, *ONNX)


def test_an_output_that_cannot_be_is_refused_before_the_work(model, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")
    (tmp_path / "notes").write_text("the user's own")
    with pytest.raises(ValueError, match="notes is a file, and --output takes the folder"):
        export("nowhere", *ONNX, "--output", str(tmp_path / "notes"))
    with pytest.raises(ValueError, match="no split 'nosuch'"):
        export(model, *ONNX, "--int8", "--calibration_split", "nosuch", "--output", str(tmp_path / "new" / "onnx"))
    assert [file.name for file in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "torch_export", "--int8"], "--int8 makes files of the formats onnx, litert, executorch; it"),
        (["--format", "onnx", "--int8_steps", "9"], "--int8_steps is for the files of --int8"),
        (["--format", "onnx", "--int8", "--int8_steps", "-1"], "int8_steps must be at least 0"),
        (["--format", "torch_export", "--opset", "18"], "opset is of ONNX files; it does not go with .* torch_export"),
        (["--format", "onnx", "onnx"], "names one twice: onnx onnx"),
        (["--format", "onnx", "--compile_seconds", "-1"], "compile_seconds must be at least 0"),
        (
            ["--format", "litert", "--dynamic", "--model", "nowhere"],
            "one size of images; it does not go with --dynamic",
        ),
        (["--format", "ncnn", "--argmax"], "give logits; it does not go with --argmax"),
        (["--format", "onnx", "--image_size", "32"], "takes height and width"),
        (["--format", "onnx", "--image_size", "1", "1"], "in pixels, from 2"),
        (["--format", "onnx", "--calibration_images", "3"], "--calibration_images is for the files of --int8"),
        (["--format", "onnx", "--teacher", "x", "--latency_runs", "0"], "--latency_runs 0 times nothing"),
        (["--format", "onnx", "--num_images", "0"], "num_images must be at least 1"),
        (["--format", "onnx", "--num_images", "1", "--dynamic"], "num_images must be at least 2"),
        (["--format", "onnx", "--latency_runs", "-1"], "latency_runs must be at least 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        export("nowhere", *flags)


def test_a_wrong_format_is_named_with_the_right_ones(capsys):
    with pytest.raises(SystemExit):
        export("nowhere", "--format", "tflite")
    message = capsys.readouterr().err
    assert all(word in message for word in ("tflite", *export_command.FORMATS))


def test_what_a_format_needs_is_named_with_the_line_that_installs_it(monkeypatch, capsys, model):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    for name, made in DEVICE_FORMATS.items():
        with pytest.raises(SystemExit), plain_errors():
            export(model, "--format", name)
        message = capsys.readouterr().err
        assert f"{made.runtime} files need {', '.join(made.packages)}: pip install 'hf-segkd[{name}]'" in message


def test_each_format_has_an_extra_that_installs_it():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for name, made in DEVICE_FORMATS.items():
        listed = setup["options.extras_require"][name].replace("-", "_")
        assert all(package in listed or package in ONNX_PACKAGES for package in made.packages), name


@pytest.mark.parametrize("failing", ["save", "load", "run", "wrong"])
def test_a_format_that_its_runtime_does_not_take_is_not_written(monkeypatch, model, tmp_path, failing):
    def save(network, program, path, size):
        if failing == "save":
            raise RuntimeError("no such operation")
        path.write_text("a file")

    def load(path):
        if failing == "load":
            raise RuntimeError("unresolved BROADCAST_TO")
        student = DenseNetwork(load_network(str(model))[0])
        return lambda images: student(images[:, :2]) if failing == "run" else -student(images)

    fake = DeviceFormat("Runtime X", "model.x", (), save, load)
    monkeypatch.setitem(DEVICE_FORMATS, "litert", fake)
    says = {
        "save": "Runtime X's converter does not take the network.* RuntimeError: no such operation",
        "load": r"Runtime X does not load model\.x.* RuntimeError: unresolved BROADCAST_TO",
        "run": r"Runtime X does not run model\.x, so it was not kept",
        "wrong": r"model\.x is not the network .* % of the pixels have the same class",
    }
    with pytest.raises(ValueError, match=says[failing]):
        export(model, "--format", "litert", "--latency_runs", "0", "--output", str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    if failing != "wrong":
        return
    # Of several formats the others are written, and the command fails all the same.
    with pytest.raises(ValueError, match="^litert: .*" + says[failing]):
        export(model, "--format", "litert", "torch_export", "--latency_runs", "0", "--output", str(tmp_path / "new"))
    assert sorted(file.name for file in (tmp_path / "new").rglob("*")) == ["export.json", "model.pt2", "torch_export"]


def test_files_are_there_before_the_timing_which_may_be_interrupted(monkeypatch, model, tmp_path, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_files, "latency_report", interrupted)
    flags = ["--format", "torch_export", "--latency_runs", "1", "--compile_seconds", "0", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        export(model, *flags)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["export.json", "model.pt2"]
    report = json.loads((tmp_path / "export.json").read_text())
    assert (report["latency"], report["exports"][0]["parity"]["images"]) == (None, 5)
    assert "the files are complete, and export.json has no times" in capsys.readouterr().out
    monkeypatch.undo()
    assert export(model, *flags) == json.loads((tmp_path / "export.json").read_text())
    out = capsys.readouterr().out
    assert "Not timed: student, compiled: --compile_seconds 0 leaves it out." in out


def test_compiling_is_given_up_when_its_time_is_over(monkeypatch):
    def slow(network, dynamic):
        return lambda image: time.sleep(60)

    monkeypatch.setattr(torch, "compile", slow)
    start = time.perf_counter()
    _, missing = pytorch_variants("student", DenseNetwork(network()), torch.zeros(1, 3, *SIZE), compile_seconds=1)
    assert time.perf_counter() - start < 10
    assert missing == Missing("student", "compiled", "torch.compile failed: it took more than 1 seconds")


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch, tmp_path, capsys):
    find_spec = runtimes.importlib.util.find_spec
    monkeypatch.setattr(
        runtimes.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    for needs_it in (lambda: save_onnx(None, tmp_path / "a.onnx", "logits"), lambda: runtimes.onnx_network(tmp_path)):
        with pytest.raises(ImportError, match=r"need onnxruntime: pip install 'hf-segkd\[export\]'"):
            needs_it()
    with pytest.raises(SystemExit), plain_errors():  # before the model is looked for
        export("nowhere", *ONNX)
    assert "error: ONNX files need onnxruntime" in capsys.readouterr().err


def test_latencies_are_of_all_variants_on_one_image(exported):
    image = torch.zeros(1, 3, *SIZE)
    variants = [onnx_variant("student", name, exported / "model.onnx") for name in ("ONNX Runtime", "again")]
    report = latency_report(variants, image, runs=3)
    assert (report["image_size"], report["runs"], report["threads"]) == ([*SIZE], 3, torch.get_num_threads())
    assert report["device"]
    for row, runtime in zip(report["rows"], ("ONNX Runtime", "again"), strict=True):
        assert (row["network"], row["runtime"]) == ("student", runtime)
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["file_mb"] == pytest.approx((exported / "model.onnx").stat().st_size / 1e6)
    assert "ONNX Runtime" in export_files.latency_table(report)


def test_a_teacher_of_queries_is_timed_where_it_runs(model, no_scipy, monkeypatch, tmp_path, caplog):  # noqa: F811
    query_model = build(eomt)
    teacher = save_model(tmp_path / "teacher", query_model)
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: network)  # takes minutes, and is tested below
    flags = ["--format", "torch_export", "--teacher", str(teacher), "--latency_runs", "1"]
    report = export(model, *flags, "--image_size", str(SIDE), str(SIDE), "--output", str(tmp_path / "files"))
    rows = [(row["network"], row["runtime"]) for row in report["latency"]["rows"]]
    assert rows == [(name, runtime) for name in ("student", "teacher") for runtime in ("eager", "compiled")]
    with pytest.raises(ValueError, match="EomtForUniversalSegmentation takes no images of 48 x 32"):
        export(model, *flags)
    if runtimes.importlib.util.find_spec("onnxruntime"):
        (missing,) = traced_variants("teacher", DenseNetwork(with_taps(query_model)), torch.zeros(1, 3, SIDE, SIDE))
        assert missing.runtime == "ONNX Runtime"
        assert missing.reason.startswith("its export failed: ")
        assert "The teacher is not timed in ONNX Runtime" in caplog.text


@pytest.mark.slow
def test_without_a_compiler_the_compiled_network_is_left_out():
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        variants = pytorch_variants("student", DenseNetwork(network()), torch.zeros(1, 3, *SIZE))
    assert [variant.runtime for variant in variants] == ["eager", "compiled"]
    assert "torch.compile failed" in variants[1].reason


@pytest.mark.slow
def test_the_table_has_student_and_teacher_in_every_runtime(model, exported, tmp_path, capsys):
    teacher = save_model(tmp_path / "teacher", network(width=12))
    flags = ["--int8", "--teacher", str(teacher), "--latency_runs", "2", "--output", str(tmp_path / "onnx")]
    report = export(model, "--format", "onnx", *flags)
    rows = [(row["network"], row["runtime"]) for row in report["latency"]["rows"]]
    plain = ["eager", "compiled", "ONNX Runtime"]
    assert rows == [("student", name) for name in [*plain, "ONNX Runtime int8"]] + [("teacher", name) for name in plain]
    assert "95th percentile" in capsys.readouterr().out
    measured = {row["runtime"]: row["peak_mb"] for row in report["latency"]["rows"] if row["network"] == "student"}
    assert measured["eager"] is None
    if sys.platform == "linux":
        assert min(measured["ONNX Runtime"], measured["ONNX Runtime int8"]) > 5  # the runtime alone is larger


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "resize", "name", "argmax"),
    [
        (network, {"do_resize": False}, "onnx", False),
        (network, {"size": {"shortest_edge": 48}}, "torch_export", True),
        (segformer, {"size": {"height": 64, "width": 96}}, "onnx", True),
        (segformer, {"size": {"height": 64, "width": 96}}, "torch_export", False),
    ],
)
def test_a_dynamic_export_takes_batches_and_odd_sizes(make, resize, name, argmax, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")
    student = make()
    save_model(tmp_path, student, SegformerImageProcessor(**resize))
    int8 = ["--int8", "--calibration_images", "4"] if (name, argmax) == ("onnx", False) else []
    flags = ["--format", name, "--latency_runs", "0", "--dynamic"] + ["--argmax"] * argmax
    report = export(tmp_path, *flags, *int8)
    assert [entry["dynamic"] for entry in report["exports"]] == [True] * (2 if int8 else 1)
    assert report["exports"][0]["argmax"] is argmax
    assert (report["exports"][0]["parity"]["max_logit_difference"] is None) is argmax
    load = runtimes.onnx_network if name == "onnx" else runtimes.program_network
    file = tmp_path / name / export_files.FILES[name]
    images = torch.randn(3, 3, 71, 85)
    with torch.inference_mode():
        expected, found = DenseNetwork(student, argmax)(images), load(file)(images)
    assert found.dtype == expected.dtype
    assert (found != expected).float().mean() < 1e-3 if argmax else torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_torch_export_needs_none_of_the_packages_for_onnx(model, tmp_path):
    arguments = ["--model", model, "--format", "torch_export", "--latency_runs", 0, "--output", tmp_path / "out"]
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS)]
    code = f"sys.path.insert(0, {str(ROOT)!r}); from hf_segkd.commands.export import main; main(sys.argv[1:])"
    hidden = ["onnx", "onnxscript", "onnxruntime"]
    assert "model.pt2" in child(code, *arguments, *data, hidden=hidden, cwd=tmp_path)
