"""Checks of templates: columns, rendering, choices, and white space between prompt and answer."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta

from harness_ext.check.documents import Sampled, scores_whole_texts
from harness_ext.check.yaml_source import TaskSource
from harness_ext.errors import described, first_line, suggest
from harness_ext.protocol.lm_eval_api import (
    ConfigurableTask,
    choices_of,
    input_choice,
    is_plain,
    jinja_environment,
    makes_scores_binary,
    target_of,
)

TEMPLATES = ("description", "doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix")
SINGLE_BRACES = re.compile(r"(?<!\{)\{\s*(\w+)\s*\}(?!\})")

Doc = Mapping[str, Any]


def check_templates(source: TaskSource, task: ConfigurableTask, columns: Sequence[str], sampled: Sampled) -> bool:
    """Note what is wrong with a task's templates; returns whether documents can be rendered."""
    before = len(source.findings)
    for field in TEMPLATES:
        template = getattr(task.config, field)
        if isinstance(template, str) and template not in columns:
            _check_template(source, task, field, template, columns, sampled)
    if any(finding.id == "C04" for finding in source.findings):
        return False  # a missing setting may be the mistyped key
    for field in ("doc_to_text", "doc_to_target"):
        if getattr(task.config, field) is None and is_plain(task):
            remedy = "add an empty one, since lm-eval requires it" if _is_unused(task, field) else (
                "name a column, or write a template"
            )  # fmt: skip
            source.add("C18", "error", f"has no {field}; {remedy}", field)
    if any(finding.level == "error" for finding in source.findings[before:]):
        return False
    return _check_rendering(source, task, sampled)


def _is_unused(task: ConfigurableTask, field: str) -> bool:
    """Whether no model reads what the template renders: the prompt of a task that scores whole texts."""
    return field == "doc_to_text" and scores_whole_texts(task)


def _may_be_empty(task: ConfigurableTask, field: str) -> bool:
    """Whether an empty prompt is intended: it is unused, or choices are scored without one, as in BLiMP."""
    empty = field == "doc_to_text" and task.config.doc_to_text == "" and task.OUTPUT_TYPE != "generate_until"
    return _is_unused(task, field) or empty


def _check_template(
    source: TaskSource, task: ConfigurableTask, field: str, text: str, columns: Sequence[str], sampled: Sampled
) -> None:
    try:
        names = jinja2.meta.find_undeclared_variables(jinja_environment().parse(text))
    except (jinja2.TemplateSyntaxError, RecursionError) as error:  # of unknown filters, too
        source.add("C18", "error", f"{field} is not a valid template ({first_line(error)}); correct it", field)
        return
    names -= set(jinja_environment().globals)
    for name in sorted(names - set(columns)):
        hint = suggest(name, columns) or f"; use one of {', '.join(columns)}"
        source.add("C17", "error", f"{field} names {name!r}, which is not a column{hint}", field)
    if _may_be_empty(task, field):
        return
    for name in sorted(set(SINGLE_BRACES.findall(text)) & set(columns)):
        source.add("C19", "error", f"{field} has {{{name}}} in single braces, which is not replaced by the column; "
                   f"write {{{{{name}}}}}", field)  # fmt: skip
    if (
        field in ("doc_to_text", "doc_to_target")
        and "{" not in text
        and not (field == "doc_to_target" and _is_number(text))
    ):
        hint = suggest(text, columns) or f"; write {{{{…}}}} around a column ({', '.join(columns)})"
        source.add("C19", "error", f"{field} {text!r:.40} is neither a column nor a template, so it is the same for "
                   f"every document{hint}", field)  # fmt: skip
    for name in sorted(names & set(columns)):
        missing = [n for n, doc in zip(sampled.numbers, sampled.docs, strict=True) if doc[name] is None]
        if missing and field != "description":
            source.add("C19", "error", f"column {name!r} of {field} is empty in {_of(missing, sampled)}, and "
                       "renders as 'None'; fill it, or drop these documents", field)  # fmt: skip


def _is_number(text: str) -> bool:
    return text.strip().lstrip("-").isdigit()


def _check_rendering(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> bool:
    """Render each sampled document with lm-eval's own methods, and note the first failure of each field."""
    fields: dict[str, Callable[[Doc], Any]] = {
        "doc_to_text": task.doc_to_text,
        "doc_to_target": functools.partial(target_of, task),
    }
    if task.config.doc_to_choice is not None:
        fields["doc_to_choice"] = functools.partial(choices_of, task)
    valid = True
    for field, render in fields.items():
        empty = []
        for number, doc in zip(sampled.numbers, sampled.docs, strict=True):
            try:
                rendered = render(doc)
            except Exception as error:  # a template, or a function of the task
                source.add("C18", "error", f"{field} fails on document {number}: {described(error)}; correct the "
                           "template or the document", field)  # fmt: skip
                valid = False
                break
            if rendered is None or (isinstance(rendered, str) and not rendered.strip()) or rendered == []:
                empty.append(number)
        if empty and not _may_be_empty(task, field):
            source.add("C19", "error", f"{field} renders to nothing for {_of(empty, sampled)}; fill the column, or "
                       "drop these documents", field)  # fmt: skip
            valid = False
    return valid


# -- choices -----------------------------------------------------------------------------------------------------


def check_choices(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> bool:
    """Note invalid choices and gold answers outside the choices; returns whether all documents are valid."""
    if task.config.doc_to_choice is None:
        return True
    problems: dict[str, list[int]] = {}
    outside: dict[str, list[int]] = {}
    for number, doc in zip(sampled.numbers, sampled.docs, strict=True):
        choices = choices_of(task, doc)
        # a hook may score the log-probability of a single answer
        if problem := _choice_problem(choices, needs_two=task.config.process_results is None):
            problems.setdefault(problem, []).append(number)
        elif gold := _gold_outside(task, doc, choices):
            outside.setdefault(gold, []).append(number)
    for problem, numbers in problems.items():
        source.add("C22", "error", f"doc_to_choice {problem} ({_of(numbers, sampled)}); correct it", "doc_to_choice")
    for gold, numbers in outside.items():
        source.add("C21", "error", f"doc_to_target gives {gold} ({_of(numbers, sampled)}); correct the labels or "
                   "the choices", "doc_to_target")  # fmt: skip
    return not (problems or outside)


def _choice_problem(choices: Any, *, needs_two: bool) -> str | None:
    if not isinstance(choices, list):
        return f"gives {choices!r:.60}, not a list"
    if not all(isinstance(choice, str) for choice in choices):
        return f"gives {choices!r:.60}, not a list of texts"
    if len(choices) < (2 if needs_two else 1):
        return f"gives {len(choices)} choice{'s' * (len(choices) != 1)}, but at least two are needed"
    if any(not choice.strip() for choice in choices):
        return f"gives an empty choice in {choices!r:.60}"
    if repeated := [choice for choice, times in Counter(choices).items() if times > 1]:
        return f"gives {repeated[0]!r} twice"
    return None


def _gold_outside(task: ConfigurableTask, doc: Doc, choices: Sequence[str]) -> str | None:
    """The first gold answer that is not one of the choices, in words."""
    number = input_choice(task, doc)
    target = target_of(task, doc) if number is None else number
    for gold in target if isinstance(target, list) else [target]:
        if isinstance(gold, str) and gold not in choices:
            return f"{gold!r}, which is not one of the {len(choices)} choices {choices!r:.80}"
        if isinstance(gold, int) and not 0 <= gold < len(choices):
            return f"{gold}, outside the {len(choices)} choices"
        if not isinstance(gold, (int, str)):
            return f"{gold!r}, neither a number nor a choice"
    return None


def check_targets(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> None:
    """Note metrics that lm-eval turns into 0 or 1 because a document has several gold answers."""
    if task.OUTPUT_TYPE != "generate_until" or callable(task.config.process_results) or not is_plain(task):
        return
    if not makes_scores_binary():
        return
    graded = sorted({name for name in task.aggregation() if name != "exact_match"})
    if graded and any(isinstance(target_of(task, doc), list) for doc in sampled.docs):
        source.add("C37", "warning", f"doc_to_target gives several answers, so lm-eval turns any {', '.join(graded)} "
                   "above 0 into 1; score with a process_results hook", "metric_list")  # fmt: skip


def _of(numbers: Sequence[int], sampled: Sampled) -> str:
    return f"{len(numbers)} of {len(sampled.docs)} documents, first {numbers[0]}"


# -- white space -------------------------------------------------------------------------------------------------


def check_white_space(source: TaskSource, task: ConfigurableTask, sampled: Sampled) -> None:
    """Note white space that is doubled or missing where description, prompt, delimiter and answer meet."""
    delimiter = task.config.target_delimiter
    problems: Counter[str] = Counter()
    for doc in sampled.docs:
        text = task.doc_to_text(doc)
        if not isinstance(text, str) or not text or task.config.gen_prefix:
            continue
        problems.update(
            {problem for answer in continuations(task, doc) if (problem := _joint(text, delimiter, answer))}
        )
    for problem, times in problems.items():
        place = "doc_to_text" if problem.startswith("doc_to_text") else "target_delimiter"
        source.add("C20", "warning", f"{problem} ({times} of {len(sampled.docs)} documents)", place)
    description = task.config.description
    if isinstance(description, str) and description and not description.endswith((" ", "\n")):
        source.add("C20", "warning", "description does not end in a line break, so lm-eval appends the prompt to its "
                   r'last word; end it with "\n\n"', "description")  # fmt: skip


def _joint(text: str, delimiter: str, answer: str) -> str | None:
    """What is wrong with the white space between a prompt and its answer; None if nothing is."""
    continuation = f"{delimiter}{answer}"
    if text[-1].isspace() and continuation[:1].isspace():
        which = "the delimiter" if delimiter[:1].isspace() else "the answer"
        return (f"doc_to_text ends in white space and {which} begins with white space, so it is doubled; end the "
                "template with its last word")  # fmt: skip
    if text[-1] == " ":
        return (
            "doc_to_text ends in a space, but most tokenizers attach a space to the following word; move it to "
            "target_delimiter"
        )
    if delimiter[-1:].isspace() and answer[:1].isspace():
        return (
            f"answers begin with white space after target_delimiter {delimiter!r}, so it is doubled; strip the "
            "answers, or make the delimiter empty"
        )
    if (
        not delimiter
        and text[-1].isascii()
        and answer[:1].isascii()
        and not text[-1].isspace()
        and not answer[:1].isspace()
    ):
        return "nothing separates prompt and answer, so their words run together; set target_delimiter to a space"
    return None


def continuations(task: ConfigurableTask, doc: Doc) -> list[str]:
    """What may follow the prompt: the choices of a forced choice, else the gold answers."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return [str(choice) for choice in choices_of(task, doc)]
    return gold_answers(task, doc)


def gold_answers(task: ConfigurableTask, doc: Doc) -> list[str]:
    """The gold answers of a document as text."""
    target = target_of(task, doc)
    golds = list(target) if isinstance(target, (list, tuple)) else [target]
    if task.config.doc_to_choice is not None:
        choices = choices_of(task, doc)
        return [choices[gold] if isinstance(gold, int) else str(gold) for gold in golds]
    return [str(gold) for gold in golds]
