from hf_segkd.evaluation.reports import mean_and_std, table


def test_spread_is_the_sample_standard_deviation_and_needs_two_values():
    assert mean_and_std([1.0, 3.0]) == "2.00 ± 1.41"
    assert mean_and_std([2.0]) == "2.00"


def test_a_table_lines_up():
    assert table(["a", "long"], [["wide cell", "1"]]).splitlines() == [
        "| a         | long |",
        "| --------- | ---- |",
        "| wide cell | 1    |",
    ]
