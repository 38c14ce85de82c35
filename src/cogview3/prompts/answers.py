"""What language models put around what they were asked for."""

import re


def without_thoughts(text: str) -> str | None:
    """An answer without the thoughts, <think>...</think>, of a model that reasons first; None where they do not end.

    The opening may be missing, as some chat templates hold it.
    """
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL)
    text = re.sub(r"^.*</think>", " ", text, flags=re.DOTALL)
    return None if "<think>" in text else text


def is_refusal(text: str) -> bool:
    """Whether a text is an apology, in English, rather than a description of a picture."""
    return bool(
        re.match(
            r"(i['’]m|i am)\s+(very\s+)?sorry\b|sorry\b|i (can['’]t|cannot|can not|won['’]t)\b|as an ai\b",
            text.strip().lower(),
        )
    )
