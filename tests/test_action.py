"""The GitHub Action and the pre-commit hook: valid, and their scripts do what they say."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.cli import parser_of
from harness_ext.comparison.choices import BARS
from harness_ext.protocol.task_folders import tasks_path

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"] if "name" in step}
COMMENT = ROOT / ".github/action/comment.py"

# Stands in for the command: it notes its arguments, and writes what the real one would.
STUB = """\
#!{python}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps(words) + "\\n")
if words[0] == "report":
    sys.exit(2)
if "--output" in words:
    Path(words[words.index("--output") + 1]).parent.mkdir(parents=True, exist_ok=True)
    Path(words[words.index("--output") + 1]).write_text("| a table |\\n")
sys.exit(int(os.environ.get("CODE", "0")) if words[0] == "compare" else 0)
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what GitHub's runner sets up, and the stub in front of PATH."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/harness-ext"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("RUNNER_TEMP", str(tmp_path / "temp"))
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def run(step: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as GitHub does."""
    empty = dict.fromkeys(STEPS[step]["env"], "")
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[step]["run"]]
    environment = {**os.environ, **empty, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def logged(runner: Path) -> list[list[str]]:
    return [json.loads(line) for line in (runner / "log").read_text().splitlines()]


def test_it_is_a_valid_action() -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions"]
    done = subprocess.run([*command, str(ROOT / "action.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_input_stands_within_a_script() -> None:
    """It could end the script and begin another one."""
    assert not [name for name, step in STEPS.items() if "${{" in step.get("run", "")]


def test_every_input_is_used_and_documented() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8").partition("\nruns:")[2]
    page = (ROOT / "docs/publishing.md").read_text(encoding="utf-8")
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in text
        assert f"`{name}`" in page or name in ("python-version", "token")
    bars = re.search(r"`fail-on` \| (.*)", page)
    assert bars
    assert all(f"`{bar}`" in bars[1] for bar in BARS)


def test_evaluate(runner: Path) -> None:
    done = run(
        "evaluate", MODEL_ARGS="pretrained=org/tiny,dtype=float32", ADAPTERS="adapters/a\n  adapters/b", LIMIT="20",
        TASKS="sst2_choice sst2_generate", FETCH="smollm2-135m-instruct", EVAL_FLAGS="--num_fewshot 2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fetch, evaluate = logged(runner)
    assert fetch == ["fetch", "smollm2-135m-instruct"]
    options = parser_of("eval").parse_args(evaluate[1:])
    assert options.adapters == ["adapters/a", "adapters/b"]
    assert options.tasks == ["sst2_choice", "sst2_generate"]
    assert (options.limit, options.num_fewshot, options.log_samples) == (20, 2, True)
    results = f"{runner}/temp/harness-ext/results"
    assert options.output_path == results
    assert (runner / "GITHUB_OUTPUT").read_text() == f"results={results}\n"


def test_values_are_never_run(runner: Path) -> None:
    hostile = f"a;touch${{IFS}}{runner}/hit $(touch {runner}/hit) `touch {runner}/hit`"
    assert run("evaluate", MODEL_ARGS=hostile, ADAPTERS=hostile, TASKS="x", EVAL_FLAGS="").returncode == 0
    assert not (runner / "hit").exists()
    assert hostile in logged(runner)[0]


@pytest.mark.parametrize(("code", "passed"), [("0", "true"), ("1", "false")])
def test_compare(code: str, passed: str, runner: Path) -> None:
    done = run("compare", RESULTS=f"{runner}/temp/harness-ext/results", FAIL_ON="worse", CODE=code)
    assert done.returncode == 0, done.stderr  # the gate is the last step, behind artifact and comment
    assert f"passed={passed}\n" in (runner / "GITHUB_OUTPUT").read_text()
    assert (runner / "GITHUB_STEP_SUMMARY").read_text() == "| a table |\n"
    options = parser_of("compare").parse_args(logged(runner)[0][1:])
    assert (options.fail_on, options.format) == ("worse", "markdown")
    assert options.output == f"{runner}/temp/harness-ext/comparison.md"


def test_a_comparison_that_cannot_be_made_fails_at_once(runner: Path) -> None:
    assert run("compare", RESULTS=f"{runner}/temp/harness-ext/results", CODE="2").returncode == 2


def test_the_gate_fails(runner: Path) -> None:
    assert run("gate", FAIL_ON="worse").returncode == 1
    assert STEPS["gate"] is ACTION["runs"]["steps"][-1]


# -- the comment -----------------------------------------------------------------------------------------------------


class GitHub(BaseHTTPRequestHandler):
    comments: list[dict[str, Any]]
    status: int

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        page = int(self.path.rpartition("page=")[2])
        self._send(self.comments[100 * (page - 1) : 100 * page])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.status == 200:
            self.comments.append({"id": len(self.comments), **body})
        self._send({})

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.comments[int(self.path.rpartition("/")[2])].update(body)
        self._send({})

    def _send(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[GitHub]]:
    handler = type("Handler", (GitHub,), {"comments": [{"id": n, "body": "chat"} for n in range(130)], "status": 200})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "GITHUB_API_URL": f"http://127.0.0.1:{server.server_address[1]}", "GITHUB_TOKEN": "t", "PULL_REQUEST": "7",
        "GITHUB_REPOSITORY": "me/mine", "TITLE": "harness-ext", "BODY_FILE": str(tmp_path / "body.txt"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def leave(body: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "body.txt").write_text(body, encoding="utf-8")
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, str(COMMENT)], env=environment, capture_output=True, text=True, check=False)


def test_one_comment_is_left_and_updated(github: type[GitHub], tmp_path: Path) -> None:
    for body in ("first", "second"):
        assert leave(body, tmp_path).returncode == 0
    assert len(github.comments) == 131  # behind the first page of a hundred
    assert "second" in github.comments[-1]["body"]
    assert "first" not in github.comments[-1]["body"]
    assert leave("other", tmp_path, TITLE="another --> title").returncode == 0
    assert leave("other still", tmp_path, TITLE="another --> title").returncode == 0
    assert len(github.comments) == 132


def test_a_long_comparison_is_cut(github: type[GitHub], tmp_path: Path) -> None:
    assert leave("x" * 200_000, tmp_path).returncode == 0
    assert len(github.comments[-1]["body"]) < 65_536
    assert "cut here" in github.comments[-1]["body"]


def test_a_token_that_may_not_comment_does_not_fail_the_job(github: type[GitHub], tmp_path: Path) -> None:
    github.status = 403
    done = leave("body", tmp_path)
    assert done.returncode == 0
    assert "::warning::" in done.stdout
    assert leave("body", tmp_path, PULL_REQUEST="").returncode == 0  # a push


# -- the hook --------------------------------------------------------------------------------------------------------


def test_the_hook_is_valid_and_takes_tasks_only() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook.keys() >= {"id", "name", "entry", "language"}
    names = [f"tasks/{file.relative_to(tasks_path())}" for file in tasks_path().rglob("*.yaml")]
    taken = [name for name in names if re.search(hook["files"], name) and not re.search(hook["exclude"], name)]
    assert "tasks/sst2/sst2_choice.yaml" in taken
    assert "tasks/sst2/_sst2.yaml" in names
    assert not [name for name in taken if Path(name).name.startswith("_")]
    options = parser_of("check").parse_args([*hook["entry"].split()[2:], *taken])
    assert options.tasks == taken
