import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import hf_segkd

ROOT = Path(__file__).parents[1]


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_importing_the_package_loads_neither_torch_nor_transformers_and_is_quick():
    done = run(
        "import sys, time; start = time.process_time(); import hf_segkd; seconds = time.process_time() - start\n"
        "assert not {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules), sorted(sys.modules)\n"
        "assert seconds < 0.2, seconds"
    )
    assert done.returncode == 0, done.stderr


def test_every_module_has_a_place_in_the_order_of_imports():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    places = set(
        setup["importlinter:contract:layers"]["layers"].replace("|", " ").replace("(", "").replace(")", "").split()
    )
    for file in sorted(ROOT.glob("hf_segkd/*/*.py")) + sorted(ROOT.glob("hf_segkd/*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        assert file.stem == "__init__" or not places.isdisjoint({name, name.rpartition(".")[0]}), name


def test_lower_bounds_are_the_oldest_versions_that_were_tested():
    tested = dict(line.split("==") for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()[1:])
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    listed = setup["options"]["install_requires"] + extras["export"] + extras["app"]
    shipped = (ROOT / "hf_segkd" / "app" / "requirements.txt").read_text().partition("\n")[2]
    for line in f"{listed}\n{shipped}".split("\n"):
        if line.strip() and not line.startswith("scipy"):  # which only teachers that predict masks want
            requirement = Requirement(line.partition("#")[0])
            bounds = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
            assert bounds == [Version(tested[requirement.name])], line


@pytest.mark.parametrize("name", hf_segkd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(hf_segkd, name).__name__ == name
    assert name in dir(hf_segkd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = hf_segkd.Nonsense


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_segkd; from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoImageProcessor",
        "from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoImageProcessor; import hf_segkd",
        pytest.param(
            "import transformers, hf_segkd; "
            "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, AutoConfig",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["ours first", "theirs first", "in between"],
)
def test_the_auto_classes_know_our_networks_whatever_is_imported_first(imports, tmp_path):
    done = run(
        f"{imports}\n"
        "config = AutoConfig.for_model('segkd-deeplabv3plus', backbone='mobilenet_v2', depth_multiplier=0.1)\n"
        f"AutoModelForSemanticSegmentation.from_config(config).save_pretrained({str(tmp_path)!r})\n"
        f"from transformers import SegformerImageProcessor as P; P().save_pretrained({str(tmp_path)!r})\n"
        f"print(type(AutoModelForSemanticSegmentation.from_pretrained({str(tmp_path)!r})).__name__)\n"
        f"print(type(AutoImageProcessor.from_pretrained({str(tmp_path)!r})).__name__)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["DeepLabV3PlusForSemanticSegmentation", "SegformerImageProcessor"]


def test_the_former_name_of_the_feature_network_is_deprecated():
    with pytest.warns(DeprecationWarning, match="FeatureNetwork"):
        assert hf_segkd.ForeignNetwork is hf_segkd.FeatureNetwork
