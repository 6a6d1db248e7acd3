import subprocess
import sys
from pathlib import Path

import pytest

from hf_segkd.commands import cli
from hf_segkd.commands.failures import plain_errors

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_every_command_has_a_script_that_runs_the_same_code():
    for name, (module, _) in cli.COMMANDS.items():
        assert f"from hf_segkd.commands.{module} import main" in (SCRIPTS / f"{name}.py").read_text()


def test_help_lists_the_commands_without_loading_torch():
    check = (
        "import sys; from hf_segkd.commands.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: code = e"
    )
    check += "\nassert code.code == 0 and 'torch' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
    assert all(f"  {name}" in listed for name in cli.COMMANDS)


@pytest.mark.parametrize("args", [[], ["destil"]])
def test_no_or_an_unknown_command_shows_the_commands_and_fails(args, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    shown = "".join(capsys.readouterr())
    assert "distill" in shown
    assert all(word in shown for word in args)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_takes_the_flags_of_its_script(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-segkd", name])
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    own = {"train": "--student_config", "distill": "--teacher", "convert_checkpoint": "--network_config"}
    assert own.get(name, "--model") in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--modle", "x"])
    assert stop.value.code == 2


MISTAKE = ["--model", "nowhere", "--images", "none.png", "--output", "out"]
TOLD = "error: There is no file or folder none.png.\n(HF_SEGKD_TRACEBACK=1 shows where it was raised.)\n"


def test_a_mistake_ends_with_one_line_and_exit_code_1():
    command = [sys.executable, SCRIPTS / "predict.py", *MISTAKE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[-len(TOLD) :]) == (1, TOLD)
    assert "Traceback" not in done.stderr


def test_the_traceback_of_a_mistake_is_there_for_who_asks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-segkd"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", *MISTAKE])
    assert (stop.value.code, capsys.readouterr().err) == (1, TOLD)
    monkeypatch.setenv("HF_SEGKD_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"no file or folder none\.png"):
        cli.main(["predict", *MISTAKE])


@pytest.mark.parametrize("error", [ValueError, FloatingPointError])
def test_what_this_package_did_not_raise_keeps_its_traceback(error):
    with pytest.raises(error), plain_errors():
        raise error("a defect")
    with pytest.raises(SystemExit) as stop, plain_errors():
        raise FileNotFoundError("of the system")
    assert stop.value.code == 1
