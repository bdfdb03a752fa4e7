"""The examples for clusters are what accelerate, Slurm and Kubernetes take, and their commands are what ours take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from harness_ext.cli import parser_of
from harness_ext.engine.array_shard import Shard

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
CONFIGURATIONS = sorted((EXAMPLES / "accelerate").glob("*.yaml"))
SCRIPTS = sorted((EXAMPLES / "slurm").glob("*.sh"))
JOBS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
PROGRAMS = ("accelerate", "harness-ext", "torchrun")


def name_of(file: Path) -> str:
    return file.name


def commands_of(script: str, folder: Path, **variables: str) -> list[list[str]]:
    """The commands that a script runs, as bash expands them; none of them is run."""
    programs, log = folder / "bin", folder / "commands"
    programs.mkdir()
    log.touch()
    record = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv), file=open({str(log)!r}, 'a'))\n"
    others = {"srun": '#!/bin/bash\nexec "$@"\n', "scontrol": "#!/bin/bash\necho node1\necho node2\n"}
    for name, content in {**dict.fromkeys(PROGRAMS, record), **others}.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", "-c", script], env=environment, cwd=folder, check=True, timeout=60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [[Path(line[0]).name, *line[1:]] for line in lines]


def parsed(command: list[str]) -> tuple[str, Any]:
    """Our command's name and options, from the parsers of accelerate and of ours; an unknown flag ends the test."""
    program, *words = command
    if program == "accelerate":
        launched = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
        assert launched.module
        assert launched.training_script == "harness_ext.cli"
        assert (EXAMPLES.parents[1] / launched.config_file).is_file()
        words = launched.training_script_args
    return words[0], parser_of(words[0]).parse_args(words[1:])


def check(commands: list[list[str]]) -> list[tuple[str, Any]]:
    found = [parsed(command) for command in commands]
    assert found
    for name, options in found:
        if name == "eval":
            assert options.store
            assert options.adapters == ["adapters/*"]
            assert options.log_samples
    return found


def same_evaluation(one: Any, other: Any) -> bool:
    """Whether two commands differ in nothing but what makes one a shard and the other the merge."""
    differing = {name for name in vars(one) if vars(one)[name] != vars(other).get(name)}
    return differing - {"run"} == {"shard", "from_store"}


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=name_of)
def test_accelerate_loads_the_configurations(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == 8
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[file.stem]
    known = {action.dest for action in launch_command_parser()._actions}
    for section in (config.fsdp_config, config.deepspeed_config):
        assert {*section} <= known, "no flag of accelerate's"


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_its_configurations(stage: int) -> None:
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    section = load_config_from_file(str(EXAMPLES / "accelerate" / f"deepspeed_zero{stage}.yaml")).deepspeed_config
    plugin = DeepSpeedPlugin(
        zero_stage=section["zero_stage"], zero3_save_16bit_model=section.get("zero3_save_16bit_model", False)
    )
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("file", SCRIPTS, ids=name_of)
def test_slurm_scripts_run_commands_that_exist(file: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text()
    flags = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert flags
    assert text.index("#SBATCH") < text.index("set -euo pipefail")
    variables = {
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_NNODES": "2", "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    found = check(commands_of(text, tmp_path, **variables))
    if any("--array=1-" in flag for flag in flags):
        assert [Shard.parse(options.shard) for _, options in found] == [Shard(3, 16)]


@pytest.mark.parametrize("file", JOBS, ids=name_of)
def test_kubernetes_jobs_run_commands_that_exist(file: Path, tmp_path: Path) -> None:
    objects = list(yaml.safe_load_all(file.read_text()))
    (job,) = [each for each in objects if each["kind"] == "Job"]
    assert job["apiVersion"] == "batch/v1"
    spec, count = job["spec"], job["spec"].get("completions", 1)
    assert spec.get("parallelism", 1) == count
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    bash, *options, script = container["command"]
    assert (bash, options) == ("bash", ["-euo", "pipefail", "-c"])
    shards = []
    for index in range(count):
        (tmp_path / str(index)).mkdir()
        for _, found in check(commands_of(script, tmp_path / str(index), JOB_COMPLETION_INDEX=str(index))):
            if getattr(found, "shard", None):
                shards.append(Shard.parse(found.shard))
    assert shards in ([], [Shard(number, count) for number in range(1, count + 1)])
    services: Mapping[str, Any] = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    assert pod.get("subdomain") in (None, *services)


def test_the_merge_is_of_the_same_evaluation(tmp_path: Path) -> None:
    found = []
    for file in ("slurm/eval_nx8.sh", "slurm/merge.sh"):
        folder = tmp_path / Path(file).stem
        folder.mkdir()
        variables = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "16"}
        commands = commands_of((EXAMPLES / file).read_text(), folder, **variables)
        found.append(next(options for name, options in map(parsed, commands) if name == "eval"))
    assert same_evaluation(*found)


def test_the_merge_of_kubernetes_is_of_the_same_evaluation(tmp_path: Path) -> None:
    found = []
    for name in ("eval_nx8", "merge"):
        job = yaml.safe_load((EXAMPLES / "kubernetes" / f"{name}.yaml").read_text())
        script = job["spec"]["template"]["spec"]["containers"][0]["command"][-1]
        (tmp_path / name).mkdir()
        commands = commands_of(script, tmp_path / name, JOB_COMPLETION_INDEX="0")
        found.append(next(options for command, options in map(parsed, commands) if command == "eval"))
    assert same_evaluation(*found)
