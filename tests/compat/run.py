# ruff: noqa: T201
"""Compatibility: the tests that matter and the same figures, under several releases of what we build on.

    python tests/compat/run.py                                  # every environment
    python tests/compat/run.py --only oldest --only lm-eval-0.5

Environments are made with uv under `.compat/`, one at a time. The table of all results so far is written to
docs/compatibility.md. Exit code 1 when a test fails or figures differ.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".compat"
RESULTS = FOLDER / "results.json"
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("lm-eval", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
TEST_TOOLS = ("pytest>=8", "hypothesis", "scikit-learn", "statsmodels", "torchmetrics", "pandas", "psutil")
TESTS = (
    "tests/test_imports.py",
    "tests/test_tasks.py",
    "tests/protocol",
    "tests/check",
    "tests/engine/test_evaluate.py",
    "tests/engine/test_hf_tree.py",
    "tests/engine/test_store.py",
    "tests/training/test_batches.py",
    "tests/training/test_trainer.py",
)
NEW_LM_EVAL = "0.5.0.dev1"
CLOSE = 1e-3  # between releases of torch: the largest difference of a score
INTRODUCTION = f"""\
# Compatibility

`make compat` builds each environment anew, runs the tests of tasks, checks, engine and training in it, and writes this
page. **Figures** compares prompts, answers, scores and fingerprints of {{tasks}} tasks, by `hf` and `hf-tree`, with
those of the first row: *identical* means every character and every digit.

| environment | Python | {" | ".join(PACKAGES)} | tests | figures |
|---|---|{"---|" * len(PACKAGES)}---|---|
"""
NOTES = """
- *pinned* is `constraints.txt`, what `make test` installs. *oldest* has the lowest release of each dependency that
  `pyproject.toml` allows, *newest* the highest one.
- All adaptations to a release of lm-eval are in `harness_ext/protocol/lm_eval_api.py`.

## lm-eval 0.5.0.dev1

`harness-ext` gives the numbers of 0.4.13. lm-eval itself changed, which matters to tasks of your own and to plain
`lm_eval` runs:

- An empty prompt, or an answer that begins with white space, gets no `target_delimiter`.
- A list that a template writes stays text unless the YAML says `multiple_targets: true`; a function or a column may
  give a list. Choices in the context need `multiple_inputs: true`.
- A document whose target is no choice is left out with a warning. 0.4.13 stops.
- A list that a hook returns for a metric is taken for repeats; return a tuple.
- A hook may not give a metric that is registered for another output type (`acc` of a generated label). Importing
  `harness_ext.hooks`, as our YAMLs do, lifts this.
- Plain `lm_eval` resamples every aggregation 100,000 times for a standard error, ours too: hours for `macro_f1` or
  `bleu`. `harness-ext eval` does so for lm-eval's own aggregations only.
- Plain `lm_eval` names members of a group `group::task`; `harness-ext eval` keeps the plain names.
- `--samples` with `--log_samples` numbers the logged documents wrongly, so `harness-ext eval` refuses it.
- Neither 0.4.13 nor 0.5.0.dev1 reads the entry points that `pyproject.toml` declares; use
  `--include_path $(harness-ext tasks-path)` for tasks, and `harness-ext eval` for `--model hf-tree`.
"""


@dataclass(frozen=True)
class Environment:
    """One set of releases."""

    name: str
    python: str  # minor version
    resolution: str = "highest"
    constraints: bool = False
    lm_eval: str | None = None  # release in the place of the constraint
    exact: bool = False  # figures have to be those of the first environment to the last digit


ENVIRONMENTS = (
    Environment("pinned", "3.11", constraints=True),
    Environment("lm-eval-0.5", "3.11", constraints=True, lm_eval=NEW_LM_EVAL, exact=True),
    Environment("oldest", "3.10", resolution="lowest-direct"),
    Environment("newest-3.12", "3.12"),
    Environment("newest", "3.13"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the environments that are asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [environment.name for environment in ENVIRONMENTS]
    parser.add_argument("--only", action="append", choices=names, help="an environment; again for another one")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    uv = _uv()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for environment in ENVIRONMENTS:
        if options.only and environment.name not in options.only:
            continue
        print(f"{environment.name}: Python {environment.python}", flush=True)
        results[environment.name] = _run(uv, environment)
        print(f"  {results[environment.name]['tests']}; figures {results[environment.name]['figures']}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(_page(results), encoding="utf-8")
    print(_table(results))
    asked = options.only or names
    return int(any(results[name]["failed"] for name in asked))


# -- environments ------------------------------------------------------------------------------------------------


def _uv() -> str:
    """uv, installed under `.compat/` where there is none."""
    if found := shutil.which("uv"):
        return found
    own = FOLDER / "uv"
    if not (own / "bin" / "uv").is_file():
        subprocess.run([sys.executable, "-m", "venv", own], check=True)
        subprocess.run([own / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    return str(own / "bin" / "uv")


def _interpreter(uv: str, version: str) -> str | None:
    """A Python of this minor version: on the path, of pyenv, or one that uv can download."""
    on_path = shutil.which(f"python{version}")
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for candidate in [*([on_path] if on_path else []), *map(str, of_pyenv)]:
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    if subprocess.run([uv, "python", "install", version], capture_output=True, check=False).returncode:
        return None
    found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def _run(uv: str, environment: Environment) -> dict[str, Any]:
    empty: dict[str, Any] = {"python": environment.python, "versions": {}, "figures": "—", "failed": False}
    interpreter = _interpreter(uv, environment.python)
    if interpreter is None:
        return {**empty, "tests": "no such Python here"}
    folder = FOLDER / environment.name
    python = folder / "bin" / "python"
    started = time.monotonic()
    if problem := _install(uv, environment, interpreter, folder):
        return {**empty, "tests": f"cannot be installed: {problem}", "failed": True}
    print(f"  installed in {time.monotonic() - started:.0f} s", flush=True)
    versions = json.loads(_output([str(python), "-c", VERSIONS]))
    tests, tests_failed = _tests(python, environment)
    figures, differ = _figures(python, environment)
    shutil.rmtree(folder)  # with torch's libraries, several GB
    return {
        "python": versions.pop("python"),
        "versions": versions,
        "tests": tests,
        "figures": figures,
        "failed": tests_failed or differ,
    }


VERSIONS = f"""
import importlib.metadata, json, platform
print(json.dumps({{"python": platform.python_version(),
                  **{{name: importlib.metadata.version(name) for name in {PACKAGES!r}}}}}))
"""


def _install(uv: str, environment: Environment, interpreter: str, folder: Path) -> str | None:
    """Make a virtual environment with our package in it; returns what went wrong."""
    links = ["--find-links", os.environ["PIP_FIND_LINKS"]] if os.environ.get("PIP_FIND_LINKS") else []
    install = [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *links]
    if environment.constraints:
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        if environment.lm_eval:
            lines = [line for line in lines if not line.lower().startswith("lm_eval")]
            lines.append(f"lm_eval=={environment.lm_eval}")
        constraints = FOLDER / f"{environment.name}.txt"
        constraints.write_text("\n".join(lines) + "\n")
        install += ["--constraint", str(constraints)]
        install += [f"lm_eval=={environment.lm_eval}"] if environment.lm_eval else []  # a pre-release has to be named
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [uv, "venv", "--quiet", "--python", interpreter, str(folder)],
        [*install, "--resolution", environment.resolution, "--editable", str(ROOT)],
        [*install, *TEST_TOOLS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no message"])[-1].strip()
    return None


def _tests(python: Path, environment: Environment) -> tuple[str, bool]:
    """The last line of pytest in words, and whether it failed; the whole output stays beside the environment."""
    log = FOLDER / f"{environment.name}.log"
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not real", "--tb=short", *TESTS]
    with log.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", log.read_text(errors="replace").rsplit("\n", 2)[-2])
    words = ", ".join(f"{number} {what}" for number, what in counts)
    return words or f"did not run, see {log.relative_to(ROOT)}", done.returncode != 0


# -- figures -----------------------------------------------------------------------------------------------------


def _figures(python: Path, environment: Environment) -> tuple[str, bool]:
    """How this environment's figures compare with those of the first one, and whether they differ."""
    output = FOLDER / f"{environment.name}.json"
    script = str(Path(__file__).with_name("figures.py"))
    log = FOLDER / f"{environment.name}.figures.log"
    with log.open("w") as file:
        command = [str(python), script, str(FOLDER / "tiny-model"), str(output)]
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        return f"failed, see {log.relative_to(ROOT)}", True
    reference = FOLDER / f"{ENVIRONMENTS[0].name}.json"
    if environment.name == ENVIRONMENTS[0].name:
        return "reference", False
    if not reference.is_file():
        return f"run {ENVIRONMENTS[0].name} first", True
    return compared(json.loads(reference.read_text()), json.loads(output.read_text()), exact=environment.exact)


def compared(reference: Any, other: Any, *, exact: bool) -> tuple[str, bool]:
    """How two files of figures compare, and whether they differ by more than they may.

    >>> compared({"acc": 0.5, "text": "a"}, {"acc": 0.5, "text": "a"}, exact=True)
    ('identical', False)
    >>> compared({"acc": 0.5}, {"acc": 0.50001}, exact=False), compared({"acc": 0.5}, {"acc": 0.50001}, exact=True)
    (('within 1e-05', False), ('1 of 1 differ, first acc', True))
    """
    ours, theirs = dict(_leaves(reference)), dict(_leaves(other))
    places = sorted(ours.keys() | theirs.keys())
    differing = [place for place in places if place not in ours or place not in theirs or ours[place] != theirs[place]]
    if not differing:
        return "identical", False
    numbers = (int, float)
    gaps = [
        abs(ours[place] - theirs[place])
        if isinstance(ours.get(place), numbers) and isinstance(theirs.get(place), numbers)
        else float("inf")
        for place in differing
    ]
    if exact or max(gaps) > CLOSE:
        return f"{len(differing)} of {len(places)} differ, first {differing[0]}", True
    return f"within {max(gaps):.0e}", False


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{place}/{name}" if place else str(name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{place}/{number}")
    else:
        yield place, _number(value)


def _number(value: Any) -> Any:
    """lm-eval logs the answers of a model as texts, numbers among them."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


# -- the page ----------------------------------------------------------------------------------------------------


def _page(results: dict[str, Any]) -> str:
    reference = FOLDER / f"{ENVIRONMENTS[0].name}.json"
    tasks = len(json.loads(reference.read_text())["hf"]) if reference.is_file() else 0
    return INTRODUCTION.format(tasks=tasks) + _table(results) + NOTES


def _table(results: dict[str, Any]) -> str:
    lines = []
    for environment in ENVIRONMENTS:
        result = results.get(environment.name)
        if result is None:
            continue
        versions = [str(result["versions"].get(name, "—")).split("+")[0] for name in PACKAGES]
        cells = [environment.name, result["python"], *versions, result["tests"], result["figures"]]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    raise SystemExit(main())
