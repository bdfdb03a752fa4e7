"""The doctor names planted causes, and finds no error in sound adapters; docs/doctor_proof.md has the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted.cases import CASES
from planted.runner import Case, World, run
from planted.sound import SOUND, Sound, reports
from planted.trainers import TRL

FAST = {  # of each kind of planting
    "outputs that do not parse", "swapped labels, chosen", "one label, chosen, but the scores tell", "empty outputs",
    "text behind the answer: another turn", "prompts that are cut", "abstentions scored as wrong", "only abstentions",
    "no supervised end token, loop", "truncated answers, loop", "two begin tokens, loop",
    "max_gen_toks shorter than the answer", "B·A is zero, loop", "weights are missing, loop",
    "weights of a deeper model, loop",
}  # fmt: skip

BELOW_THRESHOLD = {"trained on one label only, ours": "the other label is still given to 10 % of the documents"}


def parameter(case: Case) -> Any:
    marks = [] if case.name in FAST else [pytest.mark.long]
    if case.name in BELOW_THRESHOLD:
        marks.append(pytest.mark.xfail(reason=BELOW_THRESHOLD[case.name]))
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", map(parameter, CASES))
def test_the_cause_is_named_first(case: Case, place: World, tmp_path: Path) -> None:
    if case.trainer == TRL:
        pytest.importorskip("trl")
    outcome = run(case, place, tmp_path / "case")
    assert outcome.is_found, outcome
    assert outcome.is_first, outcome


@pytest.mark.long
@pytest.mark.parametrize("sound", SOUND, ids=lambda sound: sound.name)
def test_no_error_in_sound_adapters(sound: Sound, place: World, tmp_path: Path) -> None:
    if sound.trainer == TRL:
        pytest.importorskip("trl")
    errors = [finding for _, found in reports(sound, place, tmp_path / "sound") for finding in found
              if finding.level == "error"]  # fmt: skip
    assert not errors


def test_the_table_is_whole() -> None:
    """Every finding of the doctor has a case, but the one about checkpoints, which are no subject of these."""
    from harness_ext.catalogue import CATALOGUE

    planted = {id for case in CASES for id in case.expected}
    assert {id for id in CATALOGUE if id.startswith("D")} - planted <= {"D28"}
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.name for case in CASES} >= FAST
    assert len(SOUND) >= 20
