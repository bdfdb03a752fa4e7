"""The tests of what can go wrong around a run, by kind: how many there are, and how many pass.

Each kind names its tests as pytest does; a name that is no longer there is an error.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from records import Records

ROOT = Path(__file__).parents[2]
ATOMIC, STORE = "tests/test_atomic.py", "tests/engine/test_store.py"
TROUBLED, TRAINER = "tests/engine/test_troubled_store.py", "tests/training/test_trainer.py"
CHECKPOINTS, SHARDING = "tests/training/test_checkpoints.py", "tests/engine/test_sharding.py"
WRITING, ASKING = "tests/engine/test_writing.py", "tests/engine/test_asking.py"

KINDS: dict[str, Sequence[str]] = {
    "disk: full, limited, loses what was written": (
        f"{ATOMIC}::test_a_full_disk_keeps_the_old_file",
        f"{ATOMIC}::test_a_real_full_disk",
        f"{ATOMIC}::test_a_limit_on_the_size_of_files",
        f"{ATOMIC}::test_what_is_read_back_decides",
        f"{ATOMIC}::test_each_reason_has_its_remedy",
        f"{STORE}::test_a_full_disk_costs_nothing_of_the_run",
        f"{STORE}::test_a_disk_that_stays_full",
        f"{TROUBLED}::test_a_real_disk_that_runs_full",
        f"{TROUBLED}::test_the_store_fails_in_the_middle",
        f"{WRITING}::test_a_full_disk_leaves_nothing_and_the_last_results",
        f"{WRITING}::test_the_command_says_it_and_fails",
        f"{CHECKPOINTS}::test_a_full_disk_keeps_the_one_before",
        f"{TRAINER}::test_too_little_disk_space_is_said_before_training",
        f"{TRAINER}::test_a_disk_that_runs_full_in_training",
        "tests/test_cli.py::test_a_full_disk_keeps_the_last_comparison",
        "tests/test_cli.py::test_a_full_disk_behind_standard_output_is_one_line",
    ),
    "permission: folders and files that cannot be written": (
        f"{STORE}::test_a_place_where_no_file_can_be",
        f"{STORE}::test_a_folder_that_can_only_be_read",
        f"{TRAINER}::test_an_output_that_cannot_be_made",
        f"{ATOMIC}::test_what_is_no_file_is_written_to_directly",
    ),
    "damage: files cut, flipped, emptied, replaced": (
        f"{STORE}::test_a_file_that_is_no_store_is_refused_and_left_alone",
        f"{STORE}::test_a_flipped_bit_is_noticed",
        f"{STORE}::test_damage_anywhere_gives_no_wrong_answer",
        f"{CHECKPOINTS}::test_a_file_that_was_changed",
        f"{CHECKPOINTS}::test_a_manifest_that_was_changed",
        f"{TRAINER}::test_a_damaged_checkpoint_is_never_resumed",
        f"{TRAINER}::test_a_damaged_base",
        "tests/engine/test_vanishing.py",
    ),
    "concurrency: several processes, one place": (
        f"{STORE}::test_several_processes_make_a_store_at_once",
        f"{STORE}::test_several_processes_write_at_once",
        f"{TROUBLED}::test_two_evaluations_at_once_to_one_store_and_one_output",
        f"{ATOMIC}::test_what_others_are_writing_stays",
        "tests/training/test_lock.py",
        f"{TRAINER}::test_a_second_training_to_the_same_output",
        f"{TRAINER}::test_what_appeared_during_the_training_is_not_replaced",
    ),
    "ranks: torchrun, one of several processes fails or is killed": (
        SHARDING,
        f"{TRAINER}::test_two_processes_give_the_curve_of_one",
    ),
    "signals: Ctrl-C, SIGTERM, kills at chosen points": (
        f"{ASKING}::test_a_killed_run_goes_on_where_it_stood",
        f"{ATOMIC}::test_what_a_dead_process_left_is_removed",
        f"{WRITING}::test_partial_files_of_a_dead_process_are_removed",
        f"{CHECKPOINTS}::test_a_signal_leaves_a_checkpoint",
        f"{TRAINER}::test_a_resumed_run_ends_as_an_uninterrupted_one",
        f"{TRAINER}::test_an_interruption_without_a_checkpoint_leaves_nothing",
        f"{TRAINER}::test_a_second_ctrl_c_ends_at_once",
        f"{TRAINER}::test_sigterm_checkpoints_and_exits_with_143",
        "tests/test_cli.py::test_a_signal_ends_a_command_with_one_line",
    ),
    "stale answers: weights, settings or tokenizer that have changed": (
        f"{ASKING}::test_what_has_changed_is_computed_anew",
        f"{ASKING}::test_other_settings_are_other_answers",
        f"{ASKING}::test_weights_that_change_while_they_are_loaded",
        f"{ASKING}::test_answers_that_are_not_confirmed_leave_the_store",
    ),
    "one of many: a task or an adapter that fails costs the others nothing": (
        "tests/engine/test_isolation.py",
        "tests/engine/test_many_adapters.py",
    ),
    "hostile input: every reader, files of the wrong kind": (
        "tests/hostile/test_seeds.py",
        "tests/reading/test_reading.py",
        "tests/models/test_adapter_input.py",
    ),
}


def run(folder: Path, records: Records) -> None:
    """Run the tests of each kind that is not recorded yet."""
    known = {record["kind"] for record in records.all()}
    for kind, names in KINDS.items():
        if kind not in known:
            records.add({"kind": kind, **_counts(names, folder / "cases.xml")})


def _counts(names: Sequence[str], report: Path) -> dict[str, int | list[str]]:
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={report.absolute()}", *names]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest could not run {' '.join(names)} (exit code {code})")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    skipped = [str(case.get("name")) for case in suite.findall("testcase") if case.find("skipped") is not None]
    return {
        "cases": count["tests"], "passed": count["tests"] - failed - len(skipped), "failed": failed, "skipped": skipped,
    }  # fmt: skip
