"""The prompt of a recaptioner, in training and afterwards (CogView3, section 3.1)."""

MAX_OLD = 1000
"""Characters of an old caption that are read; more is no caption, and would make a whole batch long."""

_REQUEST = "Original caption: {old}. Can you provide a more comprehensive description of the image?"


def request(old: str) -> str:
    """The text beside the picture, with the old caption in it: on one line, its first `MAX_OLD` characters."""
    return _REQUEST.format(old=" ".join(old.split())[:MAX_OLD].rstrip(". "))
