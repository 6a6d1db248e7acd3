"""`make gpu` on the CPU at tiny size, so that it can't rot where there is no GPU."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))  # at the end: evaluate.py there would hide the package

spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
gpu_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)


def rows(text, header):
    """The cells of the table whose first column has this header."""
    lines = text[text.index(f"| {header}") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_check_runs_on_the_cpu_and_its_table_is_consistent(capsys):
    before = gpu_check.PAGE.read_text()
    assert gpu_check.main(["--device", "cpu", "--tiny"]) == 0
    text = capsys.readouterr().out
    steps = {(row[1], row[2]): row for row in rows(text, "case ")}
    variants = [variant.replace("_", " ") for variant in gpu_check.VARIANTS]
    assert list(steps) == [(precision, variant) for precision in ("fp32", "bf16") for variant in variants]
    for (precision, _), row in steps.items():
        milliseconds, images, _, beside_student, beside_published, beside_fp32 = row[3:]
        student, published, plain = (
            float(steps[key][3])
            for key in ((precision, "student alone"), (precision, "as published"), ("fp32", "as published"))
        )
        assert float(images) == pytest.approx(2000 / float(milliseconds), rel=0.02)
        assert float(beside_student) == pytest.approx(float(milliseconds) / student, rel=0.02, abs=0.02)
        assert float(beside_published) == pytest.approx(float(milliseconds) / published, rel=0.02, abs=0.02)
        assert float(beside_fp32) == pytest.approx(float(milliseconds) / plain, rel=0.02, abs=0.02)
    shares = [re.findall(r"(\d+) %", line) for line in text.splitlines() if line.count(" %") == len(gpu_check.PARTS)]
    assert len(shares) == 2
    assert all(sum(map(int, line)) == pytest.approx(100, abs=3) for line in shares)
    assert "- tiny, fp32: 0\n" in text  # no step waits for the device
    assert "Left out for want of time: nothing." in text
    assert gpu_check.PAGE.read_text() == before  # the page is a GPU's


def test_what_is_not_reached_or_fails_is_named(monkeypatch):
    check = gpu_check.Check("cpu", gpu_check.TINY_CASES, gpu_check.Clock(0), tiny=True)
    check.clock.end -= 1
    check.run()
    assert check.left_out == ["tiny, fp32", "tiny, bf16", "tiny, kd"]

    def broken(*args, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_check, "Steps", broken)
    check = gpu_check.Check("cpu", gpu_check.TINY_CASES, gpu_check.Clock(1), tiny=True)
    check.run()
    assert check.left_out == []
    assert "- tiny, bf16: RuntimeError: no such kernel" in check.text("none")


def test_the_text_replaces_what_stands_between_the_markers():
    page = f"a\n{gpu_check.START}\nold\n{gpu_check.END}\nb\n"
    assert gpu_check.with_measured(page, "new") == f"a\n{gpu_check.START}\nnew\n{gpu_check.END}\nb\n"
    assert gpu_check.PAGE.read_text().count(gpu_check.START) == gpu_check.PAGE.read_text().count(gpu_check.END) == 1


def test_a_host_that_reads_a_value_is_seen():
    import torch

    distillation_steps = sys.modules["distillation_steps"]
    value = torch.ones(3)
    found = distillation_steps.waits(lambda: (value.sum().item(), bool(value.any()), value * 2), value.device)
    assert sum(found.values()) == 2
    assert all(place.startswith("tests/test_gpu_check.py") for place in found)


def test_all_tests_that_are_marked_for_a_gpu_are_where_the_check_runs_them():
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark." + "gpu" in path.read_text()]
    assert [path.relative_to(ROOT) for path in marked] == [Path("tests/gpu/test_gpu.py")]
