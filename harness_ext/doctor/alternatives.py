"""Other readings of a generated text: what would be scored if the answer were taken out of it in another way.

Each reading changes only the text that is scored, so a gain proves that the answer was there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from harness_ext.results.outputs import Output

Reading = Callable[[Output], str]

# special tokens that end a turn, and lines with which a model goes on to another turn or question
_END_OF_TURN = re.compile(
    r"<\|?(?:im_end|im_start|endoftext|eot_id|end|end_of_turn|eos|assistant|user|system)\|?>|</?s>|\[/?INST\]"
    r"|\n\s*(?:#{2,}|-{3,}|(?:user|human|assistant|question|q|passage|context|review|instruction|input)\s*:)",
    re.IGNORECASE,
)
_REASONING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_ANSWER_PHRASE = re.compile(r"\A.*?\b(?:final )?answer\s*(?:is|:)\s*", re.DOTALL | re.IGNORECASE)
_ABSTENTION = re.compile(
    r"\W*(?:(?:the )?(?:question|answer|it|this)?\s*(?:is|are|can ?not|cannot|can't)?\s*(?:be )?"
    r"(?:unanswerable|not answerable|answered|no answer|none|n/?a|unknown|not (?:given|mentioned|stated|specified))"
    r")\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MARKUP = "`*_#>\"'“”‘’«»()[]{} \t\r\n"


def first_line(output: Output) -> str:
    """The first line that is not blank."""
    return (_text(output).strip().splitlines() or [""])[0]


def first_sentence(output: Output) -> str:
    """The first sentence of the first line, without its full stop."""
    return _SENTENCE_END.split(first_line(output))[0].rstrip(".!?")


def first_turn(output: Output) -> str:
    """What comes before the first end token or turn marker."""
    return _END_OF_TURN.split(_text(output), maxsplit=1)[0]


def without_markup(output: Output) -> str:
    """Without quotes, brackets and Markdown around the text, and without a full stop."""
    return _text(output).strip(_MARKUP).rstrip(".!").strip(_MARKUP)


def without_reasoning(output: Output) -> str:
    """Without a reasoning block, or what comes before "the answer is"."""
    return _ANSWER_PHRASE.sub("", _REASONING.sub("", _text(output)), count=1).strip()


def normalised(output: Output) -> str:
    """Lower case, white space collapsed."""
    return " ".join(_text(output).casefold().split())


def first_label(output: Output) -> str:
    """The first of the document's choices that stands in the text as a word."""
    return _label(output, first=True)


def last_label(output: Output) -> str:
    """The last of the document's choices that stands in the text as a word."""
    return _label(output, first=False)


def as_abstention(output: Output) -> str:
    """The empty answer where the text says that there is none."""
    return "" if abstains(_text(output)) else _text(output)


def abstains(text: str) -> bool:
    """Whether a text says that the question has no answer, and nothing more in further lines."""
    return _ABSTENTION.match(text) is not None and "\n" not in text.strip()


TEXT_AFTER_ANSWER: Mapping[str, Reading] = {
    "if only the first line is scored": first_line,
    "if only the first sentence is scored": first_sentence,
    "if the text is cut at the first end token or turn marker": first_turn,
}
OTHER_FORM: Mapping[str, Reading] = {
    "if quotes and markup are removed": without_markup,
    "if everything before the answer is removed": without_reasoning,
    "if case and white space are ignored": normalised,
    "if the first label in the text counts": first_label,
    "if the last label in the text counts": last_label,
}
AS_ABSTENTION: Mapping[str, Reading] = {"if abstentions count as the empty answer": as_abstention}
READINGS: Mapping[str, Reading] = {**TEXT_AFTER_ANSWER, **OTHER_FORM, **AS_ABSTENTION}


def _text(output: Output) -> str:
    return output.text or ""


def _label(output: Output, *, first: bool) -> str:
    choices = output.doc.get("choices")
    text = _text(output)
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        return text
    mentions = [
        (match.start(), str(choice))
        for choice in choices
        for match in re.finditer(rf"(?<!\w){re.escape(str(choice))}(?!\w)", text, re.IGNORECASE)
    ]
    return (min if first else max)(mentions)[1] if mentions else text
