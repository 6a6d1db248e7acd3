import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("network_table", ROOT / "scripts" / "network_table.py")
network_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(network_table)

PAGE = network_table.PAGE.read_text()
TABLE = PAGE.split(network_table.START)[1].split(network_table.END)[0]
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in TABLE.strip().splitlines()[2:]]
QUICK = ("DeepLabV3+ ResNet-18", "PSPNet ResNet-18", "HRNet-W18-small", "ISANet ResNet-18")


def marks(network):
    return () if network.name in QUICK and network.num_labels != 19 else pytest.mark.slow


@pytest.mark.parametrize(
    ("row", "network"),
    [
        pytest.param(row, network, marks=marks(network), id=f"{network.name}-{network.num_labels}")
        for row, network in zip(ROWS, network_table.NETWORKS, strict=True)
    ],
)
def test_the_page_gives_each_networks_own_numbers_which_are_the_originals(row, network):
    assert row == network_table.row(network), "run scripts/network_table.py --write"
    *_, parameters, original_parameters, macs, original_macs = row
    assert float(macs) == pytest.approx(float(original_macs), rel=2e-3)
    # AttnFD's table says 5.9 M where its code has 5.82 M.
    tolerance = 0.1 if network.parameters == "5.9" else 0
    assert float(parameters) == pytest.approx(float(original_parameters), abs=tolerance + 1e-9)


def test_the_recipes_that_the_page_names_are_there():
    recipes = ROOT / "hf_segkd" / "recipes"
    names = {path.stem for path in recipes.glob("*.yaml")}
    named = set()
    for cell in PAGE.split("`"):
        if cell.startswith(("attnfd_", "fakd_")):
            head, _, rest = cell.partition("{")
            choices, _, tail = rest.partition("}")
            named |= {f"{head}{choice}{tail}" for choice in choices.split(",")} if rest else {cell}
    assert named <= names
    expected = {name for name in names if name.startswith(("attnfd_", "fakd_")) and not name.endswith("teacher")}
    assert named == expected
