import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from hf_segkd.commands import cli
from hf_segkd.commands.cli import plain_errors

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_every_command_has_a_script_that_runs_the_same_code():
    for name in cli.COMMANDS:
        assert f'import run\n\nif __name__ == "__main__":\n    run("{name}")\n' in (SCRIPTS / f"{name}.py").read_text()


@pytest.mark.parametrize(("flag", "shown"), [("--help", [f"  {name}" for name in cli.COMMANDS]), ("--version", ["0."])])
def test_help_and_version_do_not_load_torch(flag, shown):
    check = (
        f"import sys; from hf_segkd.commands.cli import main\ntry: main(['{flag}'])\nexcept SystemExit as e: code = e"
    )
    check += "\nassert code.code == 0 and 'torch' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
    assert all(text in listed for text in shown)


@pytest.mark.parametrize(("args", "told"), [([], "distill"), (["destil"], "'destil'. Did you mean 'distill'?")])
def test_no_or_an_unknown_command_shows_the_commands_and_fails(args, told, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    shown = "".join(capsys.readouterr())
    assert "usage: hf-segkd COMMAND" in shown
    assert told in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_takes_the_flags_of_its_script(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-segkd", name])
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    own = {"train": "--student_config", "distill": "--teacher", "convert_checkpoint": "--network_config"}
    own |= {"draw_masks": "--annotations", "count_statistics": "--dataset"}
    own |= {"compare": "--methods"}
    assert own.get(name, "--model") in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--modle", "x"])
    assert stop.value.code == 2


MISTAKE = ["--model", "nowhere", "--images", "none.png", "--output", "out"]
TOLD = "\nerror: There is no file or folder none.png.\n(HF_SEGKD_TRACEBACK=1 shows where it was raised.)\n"


def test_a_mistake_in_the_flags_of_a_script_ends_with_one_line_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py", *MISTAKE])
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])  # as Python itself does
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / "predict.py"), run_name="__main__")
    assert (stop.value.code, capsys.readouterr().err) == (1, TOLD)
    assert str(SCRIPTS) not in sys.path  # its evaluate.py would hide the package `evaluate`


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_reporting_integration_callbacks(["nonsense"]), "nonsense is not supported, only"),
        (lambda: get_scheduler("linear", None, 0, 1, {"power": 1}), "unexpected keyword argument 'power'"),
    ],
)
def test_what_transformers_says_of_flags_is_a_message_too(make, message, capsys):
    with pytest.raises(SystemExit) as stop, plain_errors():
        make()
    assert (stop.value.code, message in capsys.readouterr().err) == (1, True)


def test_ctrl_c_ends_a_command_as_it_ends_other_programs(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt  # also while torch is imported

    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.run("train", [])
    assert (stop.value.code, capsys.readouterr().err) == (130, "\nInterrupted.\n")


@pytest.mark.parametrize("length", [1, 10**6])
def test_a_reader_who_leaves_ends_a_command_quietly(length):
    code = "import sys\nfrom hf_segkd.commands.cli import plain_errors\nsys.stdin.read()\nwith plain_errors(): "
    command = [sys.executable, "-c", f"{code}print({length} * 'x')"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
