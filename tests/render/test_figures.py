"""Figures: axes with round ticks, forests and waterfalls that agree with the rows, SVG and matplotlib."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval_files import labelled, sample

from harness_ext import cli
from harness_ext.errors import HarnessExtError
from harness_ext.leaderboard import Leaderboard, compare_runs
from harness_ext.render.figures import axis_over, forests_of, waterfalls_of
from harness_ext.render.verdict import evidence, sentence
from harness_ext.results.load import load_runs


@pytest.fixture
def folder(write_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A better run, a worse one and one as the baseline, on one task; a name that would be markup or mathematics."""
    for name, every in (("base", 3), ("good", 9), ("bad<b>$x$", 2), ("same", 3)):
        rows = labelled([float(n % every > 0) for n in range(900)])
        adapter = "" if name == "base" else f",peft=adapters/{name}"
        write_run(f"out/{name}", {"demo": rows}, model_args=f"pretrained=org/tiny{adapter}", ours={"variant": name})
    return tmp_path / "out"


@pytest.fixture
def comparison(folder: Path) -> Leaderboard:
    return compare_runs(load_runs(folder))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 47], "0 +10 +20 +30 +40"),
        ([-0.03, 0.02], "-0.03 -0.02 -0.01 0 +0.01 +0.02"),
        ([5, 5], "+4.0 +4.5 +5.0 +5.5 +6.0"),
        ([], "-1.0 -0.5 0 +0.5 +1.0"),
        ([float("nan"), float("inf"), 1, 2], "+1.0 +1.2 +1.4 +1.6 +1.8 +2.0"),
        ([0, 12.4], "0.0 +2.5 +5.0 +7.5 +10.0 +12.5"),
    ],
)
def test_axes_have_round_ticks(values: list[float], ticks: str) -> None:
    axis = axis_over(values, signed=True)
    assert all(0 <= tick.at <= 1 for tick in axis.ticks)
    assert 3 <= len(axis.ticks) <= 8
    shown = [float(tick.text) for tick in axis.ticks]
    assert shown == sorted(set(shown))
    if "0.0" not in ticks.split()[0]:
        assert shown == pytest.approx([float(each) for each in ticks.split()])


def test_forest_agrees_with_the_rows(comparison: Leaderboard) -> None:
    (forest,) = forests_of(comparison)
    assert forest.unit == "points"
    for drawn, row in zip(forest.rows, comparison.rows, strict=True):
        assert (drawn.run, drawn.verdict) == (row.run, row.verdict)
        assert drawn.at == pytest.approx(forest.axis.at(100 * row.difference))
        assert drawn.interval.low <= drawn.at <= drawn.interval.high
        assert (drawn.at > forest.zero) == (row.difference > 0)
        assert drawn.margin is not None
        assert drawn.margin.low < forest.zero < drawn.margin.high


def test_waterfall_ends_at_the_score(write_pair: Callable[..., Path]) -> None:
    def rows(shift: int) -> list[dict]:
        scores = [{"acc": float((n + shift) % 3 > 0), "parsed_rate": float(n % 4 != shift)} for n in range(200)]
        return [sample(n, {"idx": n}, each) for n, each in enumerate(scores)]

    both = {"configs": {"demo": {"output_type": "generate_until"}}}
    comparison = compare_runs(load_runs(write_pair("demo", rows(0), rows(1), both=both)))
    (waterfall,) = waterfalls_of(comparison)
    (row,) = comparison.rows
    assert [step.label for step in waterfall.steps] == ["baseline", "parsing", "skill", row.run]
    assert waterfall.steps[-1].end == pytest.approx(waterfall.axis.at(100 * row.score.value))
    assert waterfall.steps[-2].end == pytest.approx(waterfall.steps[-1].end)


def test_svg_is_whole_and_inert(comparison: Leaderboard, folder: Path, tmp_path: Path) -> None:
    tree = ElementTree.fromstring(comparison.to_svg())
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"good", "bad<b>$x$", "same", "▲ better", "▼ worse", "= equivalent"} <= set(texts)
    assert cli.main(["compare", str(folder), "--format", "svg", "--output", str(tmp_path / "f.svg")]) == 0
    assert (tmp_path / "f.svg").read_text(encoding="utf-8") == comparison.to_svg()
    html = comparison._repr_html_()
    assert html.startswith("<svg")
    assert "<table>" in html
    assert "<b>$x$" not in html


def test_nothing_tested_has_no_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in folder.rglob("samples_*"):
        file.unlink()
    comparison = compare_runs(load_runs(folder))
    assert comparison.to_svg() == ""
    assert cli.main(["compare", str(folder), "--format", "svg"]) == 2
    assert "no row was tested" in capsys.readouterr().err
    with pytest.raises(HarnessExtError, match="no row was tested"):
        comparison.forest()


def test_matplotlib_draws_the_same_places(comparison: Leaderboard) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `report`)")
    figure = comparison.forest()
    (axes,) = figure.axes
    (forest,) = forests_of(comparison)
    dots = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([row.at for row in forest.rows])
    assert figure._repr_png_().startswith(b"\x89PNG")
    (scores,) = comparison.plot().axes
    assert len([line for line in scores.lines if line.get_marker() == "o"]) == 2 * len(comparison.rows)
    assert comparison.plot()._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_what_to_install(
    comparison: Leaderboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness_ext.render import plots

    plots._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HarnessExtError, match=r"pip install 'harness-ext\[report\]'"):
        comparison.forest()


def test_verdict_in_words(folder: Path, comparison: Leaderboard) -> None:
    assert sentence(comparison).startswith(
        "Of 3 runs against base on demo, 1 is better, 1 is worse and 1 is equivalent"
    )
    one = compare_runs(load_runs(folder), only=["good"])
    assert sentence(one).startswith("good is better than base on demo: acc 66.7 → 88.9, +22.2 [")
    assert "200 documents became right and 0 wrong" in evidence(one.rows[0]) or "became right" in evidence(one.rows[0])
    same = compare_runs(load_runs(folder), only=["same"])
    assert "equivalent on demo, within a margin of 1 points" in sentence(same)
