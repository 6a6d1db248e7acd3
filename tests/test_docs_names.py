"""What README and docs tell users to type is there: flags, commands, files, names."""

import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from hf_segkd.commands import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)")
COMMAND = re.compile(r"(?:hf-segkd |hf_segkd\.commands\.cli |scripts/)(\w+)(?:\.py)?(.*)")
page_names = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class _StopError(Exception):
    pass


@pytest.fixture(scope="module")
def flags_of():
    """Command -> its flags, as its own `main` hands them to the parser; and those of the scripts without commands."""
    flags = {}

    def note(*types, args=None):
        raise _StopError([field.name for kind in types for field in dataclasses.fields(kind)])

    for command in cli.COMMANDS:
        module = sys.modules[importlib.import_module(f"hf_segkd.commands.{command}").main.__module__]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "parse_arguments", note)
            with pytest.raises(_StopError) as stop:
                module.main([])
        flags[command] = {"config", "help", *stop.value.args[0]}
    for script in [*ROOT.glob("scripts/*.py"), ROOT / "app" / "app.py"]:
        flags.setdefault(script.stem, {"help", *re.findall(r'"--(\w+)"', script.read_text())})
    return flags


@pytest.fixture(scope="module")
def launchers():
    """Flags of `accelerate launch` and `torchrun`."""
    actions = [*launch_command_parser()._actions, *get_args_parser()._actions]
    return {option.removeprefix("--") for action in actions for option in action.option_strings}


def blocks(page, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)


@page_names
def test_every_flag_is_one_of_some_command(page, flags_of, launchers):
    known = set().union(*flags_of.values()) | launchers
    text = re.sub(r"^#SBATCH .*|mnnconvert .*", "", page.read_text(), flags=re.MULTILINE)  # SLURM's, MNN's
    assert [flag for flag in FLAG.findall(text) if flag not in known] == []


@page_names
def test_every_command_is_there_and_takes_the_flags_it_is_shown_with(page, flags_of):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command, rest in COMMAND.findall(line):
                assert command in flags_of, line
                assert [flag for flag in FLAG.findall(rest) if flag not in flags_of[command]] == [], line
    for names in re.findall(r"`hf-segkd ([a-z_|]+)", page.read_text()):
        assert set(names.split("|")) <= cli.COMMANDS.keys()


@page_names
def test_every_file_and_make_target_is_there(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = re.findall(r"(?<![\w./])(?:scripts|tests|hf_segkd|docs|app)/[\w/.-]*\w\.(?:py|md|yaml|png)", text)
    assert [file for file in files if "NAME" not in file and not (ROOT / file).exists()] == []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)


def test_the_index_lists_every_page():
    listed = set(re.findall(r"\]\(([\w/]+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert listed == pages - {"index.md"}


@page_names
def test_every_python_block_compiles_and_what_it_imports_is_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(re.sub(r"^  ", "", block, flags=re.MULTILINE) if block[0] == " " else block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
