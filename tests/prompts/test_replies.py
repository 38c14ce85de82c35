"""What endpoints send back in place of what they should: each kind with its like, by other names."""

import json
from typing import Any

import pytest

from cogview3.prompts import replies
from cogview3.prompts.answers import is_cut, is_filtered, lacks_end, plain, without_thoughts
from cogview3.prompts.budget import Usage
from cogview3.prompts.replies import Answer

THOUGHT, SAID = "The user wants stars. Perhaps {two}.", "Two red stars."


@pytest.mark.parametrize(
    "form",
    [
        "<think>{0}</think>{1}",
        "{0}</think>{1}",
        "<think>a <think> b</think>{0}</think>{1}",
        '<think time="3">{0}</think>\n{1}',
        "<thinking>{0}</thinking>{1}",
        "<THOUGHT>{0}</THOUGHT>{1}",
        "<reasoning>{0}</reasoning>{1}",
        "<chain_of_thought>{0}</chain_of_thought>{1}",
        "<thinking_process>{0}</thinking_process>{1}",
        "<plan>{0}</plan>{1}",
        "<seed:think>{0}</seed:think>{1}",
        "[THINK]{0}[/THINK]{1}",
        "◁think▷{0}◁/think▷{1}",
        "<|begin_of_thought|>{0}<|end_of_thought|>{1}",
        "<|START_THINKING|>{0}<|END_THINKING|>{1}",
        "<|channel>thought\n{0}<channel|>{1}",
        "<unused94>thought\n{0}<unused95>{1}",
        '<details type="reasoning">{0}</details>{1}',
        "<|channel|>analysis<|message|>{0}<|end|><|start|>assistant<|channel|>final<|message|>{1}<|return|>",
        "<|channel|>analysis<|message|>{0}<|end|><|channel|>final <|constrain|>json<|message|>{1}",
        "analysisThe user. {0}assistantfinal{1}",
        "**Thinking:** {0}\n\n**Caption:** {1}",
        "**Thinking**: {0}\n**Answer**: {1}",
        "## Reasoning\n{0}\nPrompt: three\n## Final answer\n{1}",
        "Thought process: {0}\nDescription: {1}",
        "Here is my thought process:\n{0}\nHere is my response:\n{1}",
        "Here are my reasoning steps:\n{0}\n[BEGIN FINAL RESPONSE]\n{1}",
        "**Step 1: Analysis**\n{0}\n**Final caption:**\n{1}",
        "[think]{0}[/think]{1}",
        "[Thinking] {0} [/Thinking] {1}",
        "[BEGIN_THOUGHT]{0}[END_THOUGHT]{1}",
        "【思考】{0}【/思考】{1}",
        "<思考>{0}</思考>{1}",
        "＜think＞{0}＜/think＞{1}",
        "&lt;think&gt;{0}&lt;/think&gt;{1}",
        "<｜begin▁of▁thinking｜>{0}<｜end▁of▁thinking｜>{1}",
        "<|thought_start|>{0}<|thought_end|>{1}",
        "<rationale>{0}</rationale>\n<draft a='1'>{0}</draft>\n{1}",
        "<|tool_call|>{0}<|/tool_call|>{1}",
        "<!-- {0} -->{1}",
        "```thinking\n{0}\n```\n{1}",
        "(Thinking: {0})\n\n{1}",
        "> {0}\n> more\n\n{1}",
        "Thinking...\n{0}\n...done thinking.\n\n{1}",
    ],
)
def test_thoughts_go_whatever_marks_them(form: str) -> None:
    assert without_thoughts(form.format(THOUGHT, SAID)).strip() == SAID
    assert plain(form.format(THOUGHT, SAID)) == SAID


@pytest.mark.parametrize(
    "text",
    [
        "<think>Two stars",
        "Two stars. [THINK] and",
        "◁think▷Two",
        "<|channel|>analysis<|message|>Two stars.",
        "<|channel>thought\nTwo stars.",
        "**Thinking:** Two stars.",
        "# Thoughts\nTwo stars.",
        "Here is my thought process:\nTwo stars.",
        "<|thought_start|>Two stars.",
    ],
)
def test_thoughts_without_an_end_leave_nothing(text: str) -> None:
    assert without_thoughts(text) is None
    assert plain(text) is None


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("```\nTwo stars.\n```", "Two stars."),
        ("```markdown\nTwo stars.", "Two stars."),
        ('```json\n{"caption": "Two stars."}\n```', "Two stars."),
        ('["Two stars."]', "Two stars."),
        ('{"confidence": 0.9, "style": "flat", "description": "Two stars."}', "Two stars."),
        ("<｜begin▁of▁sentence｜>Two stars.<｜end▁of▁sentence｜>", "Two stars."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nTwo stars.<|eot_id|>", "Two stars."),
        ("Two stars. [/INST]", "Two stars."),
        ("<answer><|begin_of_box|>Two stars.<|end_of_box|></answer>", "Two stars."),
        ("<Output>Two stars.</Output>", "Two stars."),
        ("<SUMMARY>I look.</SUMMARY><CAPTION>x</CAPTION><CONCLUSION>Two stars.</CONCLUSION>", "Two stars."),
        ("ASSISTANT: Two stars.</s>", "Two stars."),
        ("assistant\nTwo stars.", "Two stars."),
        ("**Two stars.**", "Two stars."),
        ("\\boxed{Two stars.}", "Two stars."),
        ("«Two stars.»", "Two stars."),
        ("<b>Two</b> stars.", "<b>Two</b> stars."),
        ("[SALE] stands above two stars.", "[SALE] stands above two stars."),
        ("<rationale>Two stars.</rationale>", "<rationale>Two stars.</rationale>"),
        ('{"a": 1}', '{"a": 1}'),
        ("<answer>Two stars.</answer>", "Two stars."),
        ("**Thoughtful woman** beside two stars.", "**Thoughtful woman** beside two stars."),
        ("Thinking: a man under two stars.", "Thinking: a man under two stars."),
        ("Reasoning machines. Description: none.", "Reasoning machines. Description: none."),
        ("<|begin_of_box|>Two stars.<|end_of_box|>", "Two stars."),
        ("<|im_start|>assistant\nTwo stars.<|im_end|>\n<|im_start|>user\nMore", "Two stars."),
        ("Two stars.</s>", "Two stars."),
        ("A sign that reads [SALE] <here>.", "A sign that reads [SALE] <here>."),
        ("[" * 10_000, "[" * 10_000),
    ],
)
def test_what_wraps_an_answer_goes(text: str, bare: str) -> None:
    assert plain(text) == bare


CUT = "Two stars glow over a lake. Behind them a dark wo"


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length", "error"])
def test_reasons_of_a_cut(finish: str) -> None:
    assert is_cut(finish)
    assert lacks_end("Two stars.", finish)
    assert not is_filtered(finish)


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "RECITATION", "refusal"])
def test_reasons_of_a_refusal(finish: str) -> None:
    assert Answer("Two", finish, "", Usage()).refused
    assert not is_cut(finish)


@pytest.mark.parametrize("finish", ["", "stop", "STOP", "end_turn", "eos_token", "something new"])
def test_a_last_sentence_without_an_end_is_cut_whatever_is_told(finish: str) -> None:
    assert lacks_end(CUT, finish)
    assert not lacks_end(CUT + "od.", finish)
    assert not lacks_end('They glow over a lake. A sign says "Open."', finish)
    assert lacks_end("two stars", finish) == (finish == "something new")  # many models write no full stop


def test_an_answer_as_long_as_was_allowed_is_cut() -> None:
    assert Answer("Two stars.", "stop", "", Usage(1, 5, 90), 90).cut
    assert not Answer("Two stars.", "stop", "", Usage(1, 5, 89), 90).cut


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("a", "a"),
        ([None, "a", {"type": "text", "text": "b"}, {"text": "c"}, {"type": "text", "text": None}], "abc"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "reasoning", "text": "x"}, {"type": "output_text", "text": "a"}], "a"),
        ({"type": "text", "text": "a"}, "a"),
        ([["a"], []], "a"),
    ],
)
def test_contents_in_parts(content: Any, text: str) -> None:
    assert replies.first_choice({"choices": [{"message": {"content": content}}]}) == (text, "", "")


@pytest.mark.parametrize("value", [False, 7, {"type": "stop"}, None])
def test_other_fields_of_odd_types_cost_no_answer(value: Any) -> None:
    data = {"choices": [{"message": {"content": "a", "refusal": value}, "finish_reason": value}]}
    assert replies.first_choice(data) == ("a", "", "")


def test_numbers_of_thousands_of_digits_cost_no_answer() -> None:
    said = json.dumps(
        {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    )
    data = replies.parse(said.replace("5", "5" * 5000).encode())
    assert replies.first_choice(data) == ("a", "", "")
    assert replies.tokens(data) is None


@pytest.mark.parametrize(
    "data",
    [None, [], "a", {}, {"choices": None}, {"choices": [None]}, {"choices": [{"message": None}]},
     {"choices": [{"message": {"content": 5}}]}, {"choices": {"0": 1}}],
)  # fmt: skip
def test_what_is_no_completion(data: Any) -> None:
    with pytest.raises(replies.Malformed):
        replies.first_choice(data)


@pytest.mark.parametrize("count", [10**30, -1, 1e300, float("nan"), float("inf"), "9" * 5000, "many", [1], 2**63])
def test_counts_that_nobody_believes_are_unknown(count: Any) -> None:
    assert replies.tokens({"usage": {"prompt_tokens": count, "completion_tokens": 1}}) is None
    assert replies.tokens({"usage": {"prompt_tokens": 1, "completion_tokens": count}}) is None
    assert replies.tokens({"usage": {"prompt_tokens": 12.0, "completion_tokens": None}}) == (12, 0)


@pytest.mark.parametrize("code", ["²", "9" * 5000, "٤٢٩", 1e9, -429, "42", True, None, [429], {"a": 1}])
def test_codes_that_are_no_status(code: Any) -> None:
    assert replies.status_in({"code": code}) is None
    assert [replies.status_in({"code": each}) for each in (429, "503")] == [429, 503]


def test_events_are_put_together() -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]} for text in ("a ", "ring")]
    chunks += [{"choices": [{"index": 1, "delta": {"content": "other"}}]}, {"choices": [], "usage": {"x": 1}}]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    def stream(*events: Any) -> bytes:
        return b": hello\n\n" + b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\n" for each in events)

    whole = replies.parse(stream(*chunks, end) + b"data: [DONE]\n\n")
    assert replies.first_choice(whole) == ("a ring", "stop", "")
    assert whole["usage"] == {"x": 1}
    assert is_cut(replies.first_choice(replies.parse(stream(*chunks)))[1])  # it broke off
    assert replies.error_in(replies.parse(stream(*chunks, {"error": {"code": 500}}))) == {"code": 500}
    lines = b"\n".join(json.dumps(each).encode() for each in (*chunks, end))
    bare_returns = stream(*chunks, end).replace(b"\r\n", b"\r").replace(b"\n", b"\r")
    for content in (lines, b"\xef\xbb\xbf" + stream(*chunks, end), bare_returns):
        assert replies.parse(content) == whole
    assert replies.first_choice(replies.parse(json.dumps(chunks[0]).encode()))[0] == "a "  # the first and only one
    assert replies.parse(b"data: {") is replies.parse(b"\xff") is replies.parse(b"[" * 10**6) is None


def test_words_of_others_fit_a_terminal() -> None:
    assert replies.in_a_line("no\n\x1b[2J\x00 \ud83d way " + "x" * 500).startswith("no [2J ? way xxx")
    assert len(replies.in_a_line("x" * 500)) == 300
