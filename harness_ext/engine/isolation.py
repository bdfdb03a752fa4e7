"""What fails for one task does not cost the other tasks their results.

```
all tasks in one call ──raises──> each task alone, with the answers already given ──> the good ones in one call
```

The answers come from the response store (`asking`), so nothing is computed twice.

One call for all tasks shares the prefixes of their prompts, so it stays the way of every run that goes well. Only when
it raises is each task scored alone, to learn which one is at fault.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext.errors import HarnessExtError, TaskError, described
from harness_ext.protocol.lm_eval_api import LM, Group, Task

logger = logging.getLogger(__name__)

REQUEST_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")

Evaluate = Callable[[Sequence[Task | Group]], dict[str, Any] | None]


class Failures(dict[str, str]):
    """What went wrong, in one line for each name of a task or group; the first reason stays."""

    @contextlib.contextmanager
    def catching(self, name: str, what: str = "", *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Note whatever is raised in the block, and go on behind it.

        Args:
            name: of the task.
            what: what could not be done, where the task itself has not failed.
            but: errors that are passed on, since they are not this task's alone.
        """
        try:
            yield
        except but:
            raise
        except Exception as error:  # whatever a metric, a task's own code or lm-eval raises
            logger.debug("%s failed", name, exc_info=error)
            self.setdefault(name, f"{what}{one_line(error)}")


def one_line(error: BaseException) -> str:
    """An error in one line; one that is not ours with its type and the place that raised it."""
    if isinstance(error, HarnessExtError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{described(error):.280}{place}"


def leaves(tasks: Sequence[Task | Group]) -> list[Task]:
    """The tasks, and those in the groups; each once, whatever groups it is in."""
    every = [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]
    return list({leaf.task_name: leaf for leaf in every}.values())


def evaluate_isolated(
    evaluate: Evaluate, tasks: Sequence[Task | Group], lm: LM, *, explain: Callable[[Task], None]
) -> tuple[dict[str, Any] | None, Failures]:
    """Evaluate tasks in one call; where it raises, leave out those that fail alone, too.

    Where lm-eval itself runs in several processes, the first error is final: they wait for each other inside it.

    Args:
        evaluate: asks and scores tasks by `lm_eval.simple_evaluate`.
        tasks: loaded tasks and groups.
        lm: the model that is asked.
        explain: raises an error that says better why a task has failed, or returns.

    Returns:
        lm-eval's results of the tasks that went well, and why the others failed.

    Raises:
        HarnessExtError: no task went well.
    """
    everything = leaves(tasks)
    for leaf in everything:
        leaf._instances = None  # the answers to these would be another adapter's
    try:
        return evaluate(tasks), Failures()
    except Exception as error:  # whatever a metric, a task's own code or lm-eval raises
        if len(everything) == 1 or lm.world_size > 1:
            raise _explained(error, everything, explain) from error
        logger.debug("evaluating all tasks at once failed", exc_info=error)
        first = error
    failures = _failing(evaluate, everything, explain)
    if len(failures) == len(everything):
        raise _of_all(first, failures) from first
    try:
        return _evaluate_good(evaluate, tasks, failures), failures
    except Exception as error:
        raise TaskError(f"these tasks fail only together: {one_line(error)}") from error


def _failing(evaluate: Evaluate, tasks: Sequence[Task], explain: Callable[[Task], None]) -> Failures:
    failures = Failures()
    for task in tasks:
        with failures.catching(task.task_name):
            try:
                evaluate([task])
            except Exception:
                explain(task)
                raise
    return failures


def _evaluate_good(evaluate: Evaluate, tasks: Sequence[Task | Group], failures: Failures) -> dict[str, Any] | None:
    """The tasks that went well alone, in one call; a group without all of its members has no value of its own."""
    good = _without(tasks, failures)
    if groups := [task.name for task in good if isinstance(task, Group)]:
        with failures.catching(", ".join(groups), "no value for the group: "):
            return evaluate(good)
    return evaluate(leaves(good))


def _without(tasks: Sequence[Task | Group], failures: Failures) -> list[Task | Group]:
    """Tasks and groups without those that failed, each task once."""
    good: dict[str, Task | Group] = {}
    for task in tasks:
        if not isinstance(task, Group):
            if task.task_name not in failures:
                good[task.task_name] = task
        elif failed := [leaf.task_name for leaf in task.get_all_tasks() if leaf.task_name in failures]:
            failures[task.name] = f"no value for the group without {', '.join(failed)}"
            good |= {_name(member): member for member in _without(list(task), failures)}
        else:
            good[task.name] = task
    return list(good.values())


def _name(task: Task | Group) -> str:
    return str(task.name if isinstance(task, Group) else task.task_name)


def _explained(error: Exception, tasks: Sequence[Task], explain: Callable[[Task], None]) -> HarnessExtError:
    """The error of a run that cannot go on."""
    for task in tasks:
        try:
            explain(task)
        except HarnessExtError as clearer:
            return clearer
        except Exception as other:  # the explanation meets what the task met
            logger.debug("%s cannot be explained", task.task_name, exc_info=other)
    if isinstance(error, HarnessExtError):
        return error
    return TaskError(f"{', '.join(task.task_name for task in tasks)} failed: {one_line(error)}")


def _of_all(first: Exception, failures: Failures) -> HarnessExtError:
    """The error of a run in which every task failed: one reason, or each task's."""
    reasons = set(failures.values())
    if isinstance(first, HarnessExtError) and reasons == {str(first)}:
        return first
    if len(reasons) == 1:
        return TaskError(f"every task failed: {reasons.pop()}")
    return TaskError("every task failed: " + "; ".join(f"{name}: {reason}" for name, reason in failures.items()))


@contextlib.contextmanager
def answered_by(lm: LM, functions: Mapping[str, Any]) -> Iterator[None]:
    """Let functions answer a model's requests in the block, by the kind of request; afterwards it is as it was.

    Args:
        lm: the model.
        functions: by the names of its methods and other attributes.
    """
    before = {kind: vars(lm)[kind] for kind in functions if kind in vars(lm)}
    for kind, function in functions.items():
        setattr(lm, kind, function)
    try:
        yield
    finally:
        for kind in functions:
            if kind in before:
                setattr(lm, kind, before[kind])
            else:
                delattr(lm, kind)
