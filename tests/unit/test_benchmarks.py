"""The pure parts of the comparison with peers: statistics, order of rounds, goals, reports."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.suite import plot, report, results, rows
from benchmarks.suite.goals import judge, title
from benchmarks.suite.model import Check, Comparison, Figures, Goal, Load, Measured, Row, Side
from benchmarks.suite.quick import ratios, regressions
from benchmarks.suite.rounds import order
from benchmarks.suite.soak import growth
from benchmarks.suite.statistics import Spread, median_interval, paired_ratios, spread

PLACE = {"command": "bench.py a", "machine": "2 CPUs", "commit": "abc1234", "date": "2026-01-02"}


def row(**more: Any) -> Row:
    fields: dict[str, Any] = {
        "name": "a",
        "title": "whole answers",
        "worker": "frame pump",
        "load": Load(connections=1, seconds=1.0, body={}),
        "sides": [Side(name, _never) for name in ("ours", "nginx", "missing")],
        "measure": _never,
    }
    return Row(**fields | more)


def _never(*_: Any) -> Any:
    raise AssertionError("nothing is started")


def found(ours: list[float], nginx: list[float], figure: str = "cpu_us") -> Measured:
    sides: dict[str, list[Figures]] = {
        name: [{figure: value, "errors": 0.0} for value in values]
        for name, values in (("ours", ours), ("nginx", nginx))
    }
    return Measured(sides, {"missing": "not installed: make bench"})


class TestStatistics:
    def test_the_spread_of_values(self) -> None:
        assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
        assert spread([4.0, 1.0, 2.0, 3.0]).median == 2.5

    def test_ratios_pair_the_values_of_a_round(self) -> None:
        assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
        with pytest.raises(ValueError, match="shorter"):
            paired_ratios([1.0, 2.0], [1.0])

    def test_the_interval_of_equal_values_is_one_point(self) -> None:
        assert median_interval([1.5] * 10) == (1.5, 1.5)

    def test_the_interval_contains_the_median_and_follows_from_the_seed(self) -> None:
        values = [0.9, 1.0, 1.1, 1.2, 1.0, 1.05, 0.95, 1.3, 1.1, 1.0]
        low, high = median_interval(values, seed=7)
        assert min(values) <= low < spread(values).median < high <= max(values)
        assert median_interval(values, seed=7) == (low, high)

    def test_the_interval_covers_the_true_median_in_most_samples(self) -> None:
        chance = random.Random(1)
        samples = [[chance.gauss(1.0, 0.1) for _ in range(10)] for _ in range(20)]
        covered = [low <= 1.0 <= high for low, high in map(median_interval, samples)]
        assert sum(covered) >= 16


class TestRounds:
    def test_every_second_round_is_reversed(self) -> None:
        sides = ["ours", "nginx", "router"]
        assert order(sides, 0) == sides
        assert order(sides, 1) == ["router", "nginx", "ours"]
        assert order(sides, 2) == sides

    def test_the_rows_have_different_names_and_their_goals_name_their_sides(self) -> None:
        names = [each.name for each in rows.ROWS]
        assert len(names) == len(set(names))
        for each in (*rows.ROWS, *rows.QUICK):
            sides = {side.name for side in each.sides}
            for goal in each.goals:
                assert (goal.kind is Comparison.ABSOLUTE) == (not goal.peer), each.name
                assert not goal.peer or goal.peer in sides or goal.peer == "LiteLLM", each.name
            assert all(check.peer in sides for check in each.checks), each.name

    def test_the_quick_rows_are_checked(self) -> None:
        assert [each.name for each in rows.QUICK] == ["a", "c", "ten"]
        assert all(each.checks for each in rows.QUICK)


class TestGoals:
    def test_a_ratio_is_computed_in_each_round(self) -> None:
        verdict = judge(Goal("cpu_us", 2.0, "nginx"), found([3, 4, 9], [1, 2, 5]).rounds, "ours")
        assert verdict is not None
        assert verdict.values == (2.0, 1.8, 3.0)
        assert verdict.is_met

    def test_a_difference_and_an_absolute_bound(self) -> None:
        measured = found([3.0], [1.0]).rounds
        near = judge(Goal("cpu_us", 1.0, "nginx", kind=Comparison.DIFFERENCE), measured, "ours")
        high = judge(Goal("cpu_us", 3.0, kind=Comparison.ABSOLUTE), measured, "ours")
        assert near is not None
        assert (near.values.median, near.is_met) == (2.0, False)
        assert high is not None
        assert high.is_met

    def test_a_minimum(self) -> None:
        goal = Goal("requests_per_second", 0.5, "nginx", is_minimum=True)
        for ours, is_met in ((49.0, False), (50.0, True)):
            verdict = judge(goal, found([ours], [100.0], goal.figure).rounds, "ours")
            assert verdict is not None
            assert verdict.is_met == is_met

    def test_a_small_figure_meets_a_goal_whose_ratio_is_missed(self) -> None:
        goal = Goal("cpu_us", 2.0, "nginx", or_at_most=6.0)
        for ours, is_met in ((5.0, True), (7.0, False)):
            verdict = judge(goal, found([ours], [1.0]).rounds, "ours")
            assert verdict is not None
            assert verdict.is_met == is_met

    def test_the_near_end_of_the_interval_must_meet_a_goal_by_interval(self) -> None:
        measured = found([1.0, 1.1, 0.9, 1.2, 1.1], [1.0] * 5).rounds
        by_median = Goal("cpu_us", 1.0, "nginx", is_minimum=True)
        by_interval = replace(by_median, is_by_interval=True)
        verdicts = [judge(goal, measured, "ours") for goal in (by_median, by_interval)]
        assert [verdict and verdict.is_met for verdict in verdicts] == [True, False]
        assert title(by_interval) == "95 % interval of CPU µs per unit ≥ 1 x nginx"

    def test_a_goal_against_a_peer_that_did_not_run_has_no_verdict(self) -> None:
        assert judge(Goal("cpu_us", 2.0, "missing"), found([1.0], [1.0]).rounds, "ours") is None

    def test_titles(self) -> None:
        assert title(Goal("cpu_us", 1.15, "nginx")) == "CPU µs per unit ≤ 1.15 x nginx"
        goal = Goal("requests_per_second", 3_000.0, kind=Comparison.ABSOLUTE, is_minimum=True)
        assert title(goal) == "requests/s ≥ 3,000"
        goal = Goal("first_p99_ms", 2.0, "nginx", or_at_most=6.0)
        assert title(goal) == "first event p99 ms ≤ 2 x nginx or ≤ 6"


class TestGrowth:
    def test_the_memory_at_the_end_is_compared_with_the_end_of_the_first_tenth(
        self,
    ) -> None:
        samples = [float(number) for number in range(100)]
        assert growth(samples) == 99.0 - 10.0
        assert growth([50.0] * 90 + [40.0] * 10) == -10.0


class TestQuick:
    def test_the_best_try_counts(self) -> None:
        measured = found([20.0, 14.9, 30.0], [1.0, 1.0, 1.0])
        tries = ratios(row(checks=[Check("cpu_us", "nginx")]), measured.rounds)
        [name] = tries
        assert name == "a: CPU µs per unit, ours to nginx"
        assert regressions(tries, {name: 10.0}) == []
        [line] = regressions(tries, {name: 9.9})
        assert line.startswith(f"{name}: 14.90 in the best of 3 tries")

    def test_a_committed_ratio_must_be_measured(self) -> None:
        assert regressions({}, {"a: x": 2.0}) == ["a: x: not measured; the committed ratio is 2.00"]

    def test_a_new_ratio_is_not_compared(self) -> None:
        assert regressions({"a: new": [100.0]}, {}) == []

    def test_a_peer_that_did_not_run_has_no_ratio(self) -> None:
        measured = found([1.0], [1.0])
        assert ratios(row(checks=[Check("cpu_us", "missing")]), measured.rounds) == {}


class TestReports:
    def test_the_section_of_a_row(self) -> None:
        goals = [Goal("cpu_us", 2.0, "nginx", stretch=1.5)]
        measured = found([30.0, 20.0, 40.0], [10.0, 10.0, 10.0])
        text = report.section(results.summary(row(goals=goals), measured, PLACE, 0.5))
        assert "| per request | CPU µs per unit |\n| --- | --- |\n" in text
        assert "| ours | 30 (20 to 40) |\n| nginx | 10 |\n" in text
        assert "| CPU µs per unit ≤ 2 x nginx | 1.5 | 3 (2 to 4) | 2 to 4 | no |" in text
        assert "Not run: missing (not installed: make bench)" in text
        assert "Behind our proxy: frame pump. 3 rounds, 2026-01-02, commit abc1234" in text

    def test_errors_are_shown(self) -> None:
        measured = found([1.0], [1.0])
        measured.rounds["ours"][0]["errors"] = 7.0
        text = report.section(results.summary(row(), measured, PLACE, 0.5))
        assert "| ours | 1 | 7 |\n| nginx | 1 | 0 |" in text

    @pytest.mark.parametrize(
        ("value", "text"), [(1234567.8, "1,234,568"), (99.94, "99.9"), (0.01234, "0.0123")]
    )
    def test_numbers_have_three_digits(self, value: float, text: str) -> None:
        assert report.number(value) == text

    def test_bars_are_relative_to_the_reference(self) -> None:
        summary = results.summary(row(), found([30.0], [10.0]), PLACE, 0.5)
        assert [bar[:2] for bar in plot.bars(summary)] == [("ours", 3.0), ("nginx", 1.0)]
        assert plot.length(10.0) - plot.length(1.0) == pytest.approx(plot.DECADE)

    def test_a_row_without_the_reference_has_no_bars(self) -> None:
        summary = results.summary(row(), Measured({"ours": [{"cpu_us": 1.0}]}), PLACE, 0.5)
        assert plot.bars(summary) == []

    def test_the_plot_is_well_formed(self) -> None:
        summary = results.summary(row(title="a < b & c"), found([30.0], [10.0]), PLACE, 0.5)
        root = ET.fromstring(plot.svg([summary]))  # noqa: S314 - our own text
        assert len(root.findall("{*}rect")) == 3
        assert "a: a < b & c" in {element.text for element in root.findall("{*}text")}

    def test_files_are_written_and_read(self, tmp_path: Path) -> None:
        folder = tmp_path / "results"
        assert results.committed_ratios(folder) is None
        summary = results.summary(row(), found([30.0, 20.0], [10.0, 10.0]), PLACE, 0.5)
        results.write(folder, summary, {"nginx": "1.22.1"})
        results.write_quick(folder, [summary], {"a: x": [3.0, 2.0]}, {"nginx": "1.22.1"})
        assert results.committed_ratios(folder) == {"a: x": 2.5}
        written = json.loads((folder / "row-a.json").read_text())
        assert written["sides"]["ours"]["cpu_us"] == [25.0, 20.0, 30.0, 30.0, 20.0]
        assert "nginx 1.22.1" in (folder / "table.md").read_text()
        assert {path.name for path in folder.iterdir()} == {
            *("row-a.json", "table.md", "plot.svg"),
            *("quick.json", "quick.md", "quick.svg"),
        }
