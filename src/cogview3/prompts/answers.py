"""Cleaning of language models' answers: what they put around a text, and signs that they did not finish."""

import json
import re

_THOUGHT = (
    r"(?:\w+:)?(?:\w*(?:think|thought|reason|reflect|analy[sz]|scratch|monologue|ponder|delibera|contempla)\w*"
    r"|cot|plan(?:ning)?)"
)
_MARKS = re.compile(
    rf"(?P<close><[|｜]?/\s*{_THOUGHT}\s*[|｜]?>|<[|｜]?end[_▁](?:of[_▁])?{_THOUGHT}[|｜]?>"
    rf"|<[|｜]?{_THOUGHT}(?<=_end)[|｜]?>|(?-i:\[(?:/|END_)(?:THINK(?:ING)?|REASONING|THOUGHTS?)\])"
    r"|◁/think▷|<channel\|>|<unused95>|</details>|\.\.\.done thinking\.)"
    rf"|<[|｜]?(?:(?:begin|start)[_▁](?:of[_▁])?)?{_THOUGHT}(?:\s[^<>]*)?[|｜]?>"  # <think>, <|START_THINKING|>
    r"|(?-i:\[(?:BEGIN_|START_)?(?:THINK(?:ING)?|REASONING|THOUGHTS?)\])|◁think▷"  # Mistral, Kimi
    r"|\A\s*thinking\.\.\.\s*\n"  # Ollama
    r"|<\|channel>\s*(?:thought|analysis)\b|<unused94>(?:thought)?"  # Gemma
    r"|<details\b[^<>]*\breasoning\b[^<>]*>",  # Open WebUI
    re.IGNORECASE,
)
_HERE = r"here(?:['’]s| is| are) (?:my|the) "
_THOUGHT_HEADING = re.compile(  # "**Thinking:**", "## Reasoning", "Thought process:", "Here is my thought process:"
    rf"\s*(?P<mark>[#*_]{{1,4}}\s*|{_HERE})?(?:(?:my|model) )?(?:step \d+: )?"
    r"(?:thinking|thoughts?|reasoning|analysis|scratchpad|chain of thought)(?: process| steps)?"
    r"(?:\s*:[*_]{0,2}|[*_]{1,2}:?|\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_HEADING = re.compile(
    rf"^[ \t]*(?:[#*_]{{1,4}}[ \t]*)?(?:{_HERE}|(?:the|my) )?(?:final )?"
    r"(?:caption|description|prompt|answer|response|output)(?:\s*:[*_]{0,2}|[*_]{1,2}:?|[ \t]*$)"
    r"|\[BEGIN FINAL RESPONSE\]",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b.*?<\|message\|>(.*?)(?=<\|(?:channel|end|return|start|call)\|>|$)", re.DOTALL
)
_BARE_CHANNELS = re.compile(r"^\s*analysis(?=[A-Z\s]).*?assistant\s?final", re.DOTALL)  # special tokens left out
_WRAPPERS = "answer|final_answer|response|output|caption|description|conclusion|solution"
_WRAPPER = re.compile(rf"<({_WRAPPERS})>(?P<text>.*?)</\1>", re.DOTALL | re.IGNORECASE)
_BEFORE = re.compile(  # what stands whole before an answer: <rationale>...</rationale>, [think]...[/think], a quotation
    r"\s*(?:<!--.*?-->|(?:>[^\n]*\n\s*)+(?=[^>])"
    rf"|\(\s*{_THOUGHT}:[^()]*\)|```\s*{_THOUGHT}\s*\n.*?```"
    rf"|(?P<open><[|｜]?|＜|\[|【|&lt;)\s*(?!(?:{_WRAPPERS}|strong|span|div|mark|code|small|body|html|[a-z]\w?)\b)(?P<name>[\w:.-]+)"
    r"(?:\s[^<>]*)?(?:[|｜]?>|＞|\]|】|&gt;).*?(?P=open)\s*/\s*(?P=name)\s*(?:[|｜]?>|＞|\]|】|&gt;))\s*(?=\S)",
    re.DOTALL | re.IGNORECASE,
)
_SPECIAL = r"<[|｜][\w▁]+[|｜]>"  # <|im_end|>, <｜end▁of▁sentence｜>
_BOX = re.compile(r"<\|(?:begin|end)_of_box\|>")  # GLM's, around an answer
_TURN_START = re.compile(
    rf"^(?:\s*(?:{_SPECIAL}|<(?:s|bos|start_of_turn)>)\s*(?:(?:assistant|model)\b\s*)?)+|^\s*(?i:assistant)\s*[:\n]"
)
_TURN_END = re.compile(rf"{_SPECIAL}|</s>|<end_of_(?:turn|utterance)>|<eos>|\[/INST\]|\[END FINAL RESPONSE\]")
_HELD = ("caption", "description", "answer", "result", "prompt", "text", "output")
_OPENING = re.compile(r"^(?:sure|certainly|of course|here is|here's|here’s)\b[^.:]{0,80}:\s*", re.IGNORECASE)
_LABEL = re.compile(r"^[#*\s]*(?:caption|description|prompt|answer)\**:\**\s*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(i['’]m|i am)\s+(very\s+)?sorry\b|sorry\b|i (can['’]t|cannot|can not|won['’]t)\b|as an ai\b", re.IGNORECASE
)

_LIMIT = re.compile(r"length|max\w*token|limit|incomplete|trunc|abort|cancel|error|time_?out", re.IGNORECASE)
_FILTER = re.compile(r"filter|safety|refus|block|prohibited|recitation|guardrail", re.IGNORECASE)
_NATURAL = re.compile(r"|stop|stop_sequence|eos|eos_token|end|end_turn|complete|completed|finished|done", re.IGNORECASE)
_END = re.compile(r"[.!?…。！？][\s\"'”’»」』)\]*_]*$")
_SENTENCE = re.compile(r"[a-z]{3,}[\"'”’)]*[.!?]\s+[A-Z]")


def without_thoughts(text: str) -> str | None:
    """An answer without the thoughts of a model that reasons first; None where they do not end.

    Known are <think>...</think> and its like in other words and brackets, harmony's channels, and a heading at the
    beginning ("**Thinking:**") with the answer under the last heading of its own. The opening mark may be missing, as
    some chat templates hold it. Whatever else stands in marks of its own before the answer is no part of it either.
    """
    if "<|channel|>" in text and "<|message|>" in text:
        finals = _FINAL.findall(text)
        if not finals:
            return None
        text = finals[-1]
    text = _BARE_CHANNELS.sub("", text)
    start = 0
    while before := _BEFORE.match(text, start):
        start = before.end()
    text = text[start:]
    kept, thinking, at = "", False, 0
    for mark in _MARKS.finditer(text):
        if mark["close"]:
            kept = f"{kept} " if thinking else ""
        elif not thinking:
            kept += text[at : mark.start()]
        thinking, at = not mark["close"], mark.end()
    return None if thinking else _under_its_heading(kept + text[at:])


def _under_its_heading(text: str) -> str | None:
    """Of a text that begins with a heading of thoughts what is under the last heading of an answer."""
    heading = _THOUGHT_HEADING.match(text)
    if heading is None:
        return text
    answers = list(_ANSWER_HEADING.finditer(text, heading.end()))
    if answers:
        return text[answers[-1].end() :]
    return None if heading["mark"] else text


def plain(text: str) -> str | None:
    """An answer as one bare paragraph; None where it holds a thought without an end, and so no answer.

    Thoughts, marks of turns, code fences, wrappers such as <answer> or {"caption": ...}, labels ("Caption:"), words
    that only announce it and quotation marks around all of it are left out.
    """
    bare = without_thoughts(text)
    if bare is None:
        return None
    bare = _TURN_END.split(_TURN_START.sub("", _BOX.sub("", bare).strip()))[0]
    if found := list(_WRAPPER.finditer(bare)):
        bare = found[-1]["text"]
    bare = _from_json(re.sub(r"```\w*", " ", bare).strip())
    bare = " ".join(bare.split())
    bare = _LABEL.sub("", _OPENING.sub("", bare))
    if whole := re.fullmatch(r"\*\*([^*]+)\*\*|\\boxed\{(.*)\}", bare):
        bare = (whole[1] or whole[2]).strip()
    if len(bare) > 1 and bare[0] + bare[-1] in ('""', "“”", "«»") and not re.search('["“”«»]', bare[1:-1]):
        bare = bare[1:-1].strip()
    return bare


def _from_json(text: str) -> str:
    """The text of a JSON object or list that holds one, or one under a name for it; else the text as it is."""
    if text[:1] not in ("{", "["):
        return text
    try:
        held = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    named = {str(name).lower(): value for name, value in held.items()} if isinstance(held, dict) else {}
    texts = [value for value in (named.values() if named else held) if isinstance(value, str)]
    found = next((named[name] for name in _HELD if isinstance(named.get(name), str)), None)
    return found or (texts[0] if len(texts) == 1 else text)


def is_refusal(text: str) -> bool:
    """Whether a text is an apology, in English, rather than a description of a picture."""
    return bool(_REFUSAL.match(text.strip()))


def is_filtered(finish: str) -> bool:
    """Whether a `finish_reason` says that the answer was withheld."""
    return bool(_FILTER.search(finish))


def is_cut(finish: str) -> bool:
    """Whether a `finish_reason`, whose words differ by server, says that the answer has no end."""
    return bool(_LIMIT.search(finish)) and not is_filtered(finish)


def ends_as_a_sentence(text: str) -> bool:
    """Whether a text has a mark of a sentence's end at its own end."""
    return bool(_END.search(text))


def lacks_end(text: str, finish: str) -> bool:
    """Whether a bare paragraph is but the beginning of one.

    Servers tell it by `finish_reason`, wrongly at times: several sentences of which the last one has no end are no
    whole paragraph whatever is told, and after a reason that nobody knows the first one must have an end too.
    """
    if is_cut(finish):
        return True
    doubtful = not _NATURAL.fullmatch(finish) or bool(_SENTENCE.search(text))
    return doubtful and not ends_as_a_sentence(text)
