"""Run one case both ways and judge: agreed, refused for a declared reason, or different."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import os
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from differential.build import Built, build
from differential.cases import APPENDS_EOS, Case
from differential.compare import compare_task
from differential.models import ENCODER_DECODERS
from differential.stock import StockRun, call_settings, run_peft_alone, run_stock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What is refused although `hf` answers, and why. Anything else that only we refuse is a difference.
# (pattern of the message, pattern of the kinds of adapters it may be about, reason)
DECLARED: tuple[tuple[str, str, str], ...] = (
    (r"adapter_model\\.bin|safetensors", r"torch-file", "weights only as adapter_model.bin"),
    (r"changes nothing", r"zero", "adapter changes nothing"),
    (r"have no layer in the base", r".+", "adapter of an encoder-decoder on its decoder"),
)
# Failures of `hf` that are crashes, not refusals: there, what peft alone makes of the adapter is right, too.
# Adapters with a trained head or embedding: `hf` ties weights again after peft has loaded them, and one is lost.
RETIED = re.compile("modules-to-save|added-tokens-modules|save-embedding|embedding-lora|head-lora")
CRASHES = (IndexError, KeyError, AttributeError, RuntimeError, TypeError, UnboundLocalError)


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    seed: int
    verdict: Literal["agreed", "refused", "difference"]
    text: str = ""  # the reason, or what differs
    seconds: float = 0.0
    plain: tuple[str, ...] = ()  # what we said about going without prefix trees
    kinds: dict[str, Any] = field(default_factory=dict)  # for the summary


@dataclass
class OurRun:
    """All variants of a case in one call, or what it raised."""

    variants: dict[Path | None, Any] = field(default_factory=dict)  # folder of the adapter, None for the base
    error: BaseException | None = None
    warnings: list[str] = field(default_factory=list)


def run_case(case: Case) -> Outcome:
    """Build a case in a temporary folder, run it both ways, compare."""
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="differential-"))
    try:
        with _quiet():
            built = build(case, folder)
            verdict, text, plain = _judge(case, built, folder / "results")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(case.seed, verdict, text, round(time.monotonic() - started, 2), plain, _kinds(case, built))


def _kinds(case: Case, built: Built) -> dict[str, Any]:
    return {
        "architecture": case.architecture,
        "rope": case.rope,
        "fails": sorted({task.fails for task in case.tasks} - {""}),
        "tokenizer": case.tokenizer,
        "tasks": sorted({task.kind for task in case.tasks}),
        "adapters": sorted(set(built.adapter_kinds)),
        "generation_config": sorted(case.generation_config),
        "dtype": case.dtype,
        "merged": case.merged,
    }


def _judge(case: Case, built: Built, output: Path) -> tuple[Any, str, tuple[str, ...]]:
    stock = {adapter: run_stock(case, built, adapter) for adapter in _variants(case, built)}
    wanted, reasons = list(built.adapters), []
    while True:
        ours = run_ours(case, built, wanted, output)
        plain = tuple(sorted({_plain_reason(line) for line in ours.warnings}))
        if ours.error is None:
            break
        reason, blamed = _why_refused(case, built, wanted, stock, ours.error)
        if reason is None:
            theirs = next((f"hf raises {_described(run.error)}" for run in stock.values() if run.error), "hf answers")
            return "difference", f"{_described(ours.error)} ({theirs})", plain
        reasons.append(reason)
        if blamed == "merge":
            case = dataclasses.replace(case, own_args={**case.own_args, "merge": False})
        elif blamed is not None and len(wanted) > 1:  # go on with the others
            wanted.remove(blamed)
        else:
            return "refused", "; ".join(reasons), plain
    if case.architecture not in ENCODER_DECODERS and any(map(_appends_an_end, stock.values())):
        return "difference", "the tokenizer appends an end token, and a number comes out", plain
    problems = []
    for adapter, variant in ours.variants.items():
        comparison = _VariantComparison(case, built, adapter, stock[adapter], variant)
        problems += [f"{adapter.name if adapter else 'base'}: {problem}" for problem in comparison.problems()]
        reasons += comparison.reasons
    if problems:
        return "difference", "\n".join(problems[:12]), plain
    return ("refused" if reasons else "agreed"), "; ".join(dict.fromkeys(reasons)), plain


def _variants(case: Case, built: Built) -> list[Path | None]:
    return list(built.adapters) if case.adapter_as_argument else [None, *built.adapters]


class _VariantComparison:
    """One variant's tasks: those that `hf` answers have to be alike, those on which it raises refused."""

    def __init__(self, case: Case, built: Built, adapter: Path | None, stock: StockRun, ours: Any) -> None:
        self.case, self.built, self.adapter, self.stock, self.ours = case, built, adapter, stock, ours
        self._failures: Mapping[str, str] = getattr(ours, "failures", {})
        self.reasons: list[str] = []

    def problems(self) -> Iterator[str]:
        if not self.ours.results and self.stock.error is not None:
            self.reasons.append(f"hf raises, too: {type(self.stock.error).__name__}")
            return
        names = [task.stem for task in self.built.tasks]
        for name, reason in self._failures.items():
            if name not in names or name in self.ours.results.get("samples", {}):
                yield f"{name}: {reason}"
        for number, name in enumerate(names):
            yield from self._task(number, name)

    def _task(self, number: int, name: str) -> Iterator[str]:
        answered = name in self.ours.results.get("samples", {})
        error = self.stock.errors.get(name)
        if not answered:
            if error is None and self.case.batch_size > 1:
                error = self._hf(self.case.batch_size).errors.get(name)
            if error is None:
                yield f"{name} ({self.case.tasks[number].kind}): {self._failures.get(name, 'no samples')}, hf answers"
            else:
                self.reasons.append(f"hf raises, too: {type(error).__name__}")
        elif error is None and self.stock.errors and self.case.rope == "dynamic":
            # in one call `hf` raises for all; task by task, the lengths seen before decide the rotary frequencies
            self.reasons.append("hf raises for the whole call, and depends on the order of requests")
        elif error is None:
            problems = self._compared(number, self._hf, self.stock)
            if problems and self.case.tied and self.adapter is not None and RETIED.search(self.adapter.name):
                problems = self._compared(number, self._peft)
            yield from problems
        elif isinstance(error, CRASHES) and self.adapter is not None:
            alone = self._peft()
            if (failure := alone.errors.get(name)) is None:
                yield from self._compared(number, self._peft, alone)
            else:
                yield f"{name}: hf raises {_described(error)}, peft alone {_described(failure)}, we answer"
        else:
            yield f"{name}: hf raises {_described(error)}, we answer"

    def _compared(self, number: int, run: Callable[[int], StockRun], alone: StockRun | None = None) -> list[str]:
        """Differences from a stock run; on the plain path, what it answers at our batch size is right, too."""
        problems = compare_task(self.case, number, alone or run(1), self.ours.results)
        if problems and self.case.batch_size > 1:
            batched = run(self.case.batch_size)
            if self.built.tasks[number].stem in batched.samples:
                return compare_task(self.case, number, batched, self.ours.results) and problems
        return problems

    def _hf(self, batch_size: int = 1) -> StockRun:
        return run_stock(self.case, self.built, self.adapter, batch_size=batch_size)

    def _peft(self, batch_size: int = 1) -> StockRun:
        assert self.adapter is not None
        return run_peft_alone(self.case, self.built, self.adapter, batch_size=batch_size)


def run_ours(case: Case, built: Built, adapters: Sequence[Path], output: Path) -> OurRun:
    """All variants in one call of `harness_ext.evaluate`."""
    import harness_ext

    model_args = {"dtype": case.dtype, **case.shared_args, **case.own_args}
    if case.adapter_as_argument:
        model_args["peft"] = str(adapters[0])
        adapters = []
    said: list[str] = []
    try:
        with _listening(said):
            variants = harness_ext.evaluate(
                str(built.model),
                tasks=[str(task) for task in built.tasks],
                adapters=[str(adapter) for adapter in adapters],
                model="hf-tree",
                log_samples=True,
                output_path=str(output),
                device="cpu",
                batch_size=case.batch_size,
                model_args=model_args,
                **{name: value for name, value in call_settings(case).items() if value is not None},
            )
    except (Exception, SystemExit) as error:
        return OurRun(error=error, warnings=said)
    if errors := [each.error for each in variants if each.error is not None]:
        return OurRun(error=errors[0], warnings=said)
    folders = {str(adapter): adapter for adapter in built.adapters}
    return OurRun({folders.get(each.variant.adapter or ""): each for each in variants}, warnings=said)


def _why_refused(
    case: Case, built: Built, wanted: Sequence[Path], stock: dict[Path | None, StockRun], error: BaseException
) -> tuple[str | None, Any]:
    """The declared reason for an error of ours, and the adapter (or "merge") it is about; None for no reason."""
    from harness_ext.errors import HarnessExtError

    message = str(error)
    if not isinstance(error, HarnessExtError) or "\n" in message:
        return None, None
    if case.tokenizer == APPENDS_EOS and re.search(r"append|\bend", message):
        return "tokenizer appends an end token", None
    kinds = dict(zip(built.adapters, built.adapter_kinds, strict=True))
    named = [adapter for adapter in wanted if adapter.name in message]
    for adapter in named:
        for pattern, kind, reason in DECLARED:
            if re.search(pattern, message) and re.fullmatch(kind, kinds[adapter]):
                return reason, adapter
        if "changes nothing" in message and _answers_alike(
            run_stock(case, built, None, resized=bool(case.padding_rows)),  # `hf` cuts them off with peft=
            stock[adapter],
        ):
            return "adapter changes none of these answers", adapter
    if case.merged and "merge" in message:
        return f"{', '.join(sorted({kinds[adapter] for adapter in named}))} cannot be merged exactly", "merge"
    failing = [adapter for adapter in (None, *wanted) if adapter in stock and stock[adapter].error is not None]
    if not failing:
        batched = run_stock(case, built, None, batch_size=case.batch_size).error if case.batch_size > 1 else None
        return (f"hf raises, too: {type(batched).__name__}", None) if batched is not None else (None, None)
    if None in failing:
        return f"hf raises, too: {type(stock[None].error).__name__}", None
    blamed = next((adapter for adapter in named if adapter in failing), failing[0])
    return f"hf raises, too: {type(stock[blamed].error).__name__}", blamed


def _appends_an_end(run: StockRun) -> bool:
    """Whether what `hf` asked ended with the end token; an encoder-decoder is trained so, a decoder is not."""
    return run.lm is not None and run.lm.tok_encode("one two")[-1:] == [run.lm.tokenizer.eos_token_id]


def _answers_alike(base: StockRun | None, adapter: StockRun) -> bool:
    if base is None or base.error is not None or adapter.error is not None:
        return False
    return all(
        _alike([sample["resps"] for sample in samples], [sample["resps"] for sample in adapter.samples.get(name, ())])
        for name, samples in base.samples.items()
    )


def _alike(one: Any, other: Any) -> bool:
    """Nested answers with log-probabilities to 1e-4 nats."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    return math.isclose(one, other, abs_tol=1e-4) if isinstance(one, float) else bool(one == other)


def _described(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    where = ""
    if frames := traceback.extract_tb(error.__traceback__):
        own = [frame for frame in frames if "harness_ext" in frame.filename] or frames
        where = f" [{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}]"
    return f"{type(error).__name__}: {lines[0]:.300}{' …' if len(lines) > 1 else ''}{where}"


def _plain_reason(line: str) -> str:
    """A warning without the name of the folder it is about."""
    return re.sub(r"\S*differential-\S*", "MODEL", line)[:160]


@contextlib.contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collect what our package warns of."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("harness_ext"), Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No output, and none of what lm-eval does about the machine and its error bars."""
    import lm_eval.evaluator
    import lm_eval.evaluator_utils
    import transformers

    names = {
        (lm_eval.evaluator, "add_env_info"): lambda results: None,
        (lm_eval.evaluator, "get_git_commit_hash"): lambda: None,
        (lm_eval.evaluator_utils, "stderr_for_metric"): lambda **_: None,
    }
    before = {key: getattr(*key) for key in names}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lm_eval", "lm-eval", "datasets", "peft", "accelerate", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")
        try:
            for (module, name), replacement in names.items():
                setattr(module, name, replacement)
            yield
        finally:
            for (module, name), original in before.items():
                setattr(module, name, original)
