"""One report writes what every evaluator found: sentences and tables for people, every value for programs."""

from __future__ import annotations

import json
from pathlib import Path

from kuosan.evaluate.report import FigureTable, Report, figure
from kuosan.metrics.estimate import Estimate

TABLE = FigureTable(["run", "KID"], [["a", "1.0"], ["b", "2.0"]])


def test_markdown_has_the_sections_in_order_with_a_blank_line_behind_each() -> None:
    report = Report("result.json", [["One.", "Two."], TABLE, ["Why."]], {})
    assert report.markdown() == "One.\nTwo.\n\n| run | KID |\n|---|---:|\n| a | 1.0 |\n| b | 2.0 |\n\nWhy.\n"


def test_numbers_stand_left_where_the_table_is_not_aligned() -> None:
    assert FigureTable(["a", "b"], [], aligned=False).lines()[1] == "|---|---|"
    assert FigureTable(["a", "b"], [], left=0).lines()[1] == "|---:|---:|"


def test_what_json_cannot_say_is_null_and_every_other_value_stays() -> None:
    tree = {"kid": float("nan"), "far": [1.5, float("inf")], "name": "é", "n": 3}
    assert json.loads(Report("x.json", [], tree).json()) == {"kid": None, "far": [1.5, None], "name": "é", "n": 3}
    assert "é" in Report("x.json", [], tree).json()


def test_a_report_writes_its_files_and_a_csv_only_where_it_has_rows(tmp_path: Path) -> None:
    Report("a.json", [["One."]], {}).write(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"table.md", "a.json"}
    Report("a.json", [["One."]], {}, [["n", "kid"], [3, 0.5]]).write(tmp_path / "rows")
    assert (tmp_path / "rows" / "table.csv").read_text() == "n,kid\n3,0.5\n"


def test_a_figure_is_shown_with_its_error_its_sign_and_its_range() -> None:
    assert figure(None, 2) == ""
    assert figure(Estimate(1.234, 0.05), 2) == "1.23 ± 0.05"
    assert figure(Estimate(1.234, 0.05), 2, signed=True) == "+1.23 ± 0.05"
    assert figure(Estimate(0.0012, 0.0003), 1, times=1000) == "1.2 ± 0.3"
    assert figure(Estimate(0.99, 0.03), 3, ends=(0.03, 0.01)) == "0.990 +0.010 -0.030"
    assert figure(Estimate(4.0, float("nan")), 1) == "4.0"  # of a single image
