"""What a recaptioner is asked, in training and afterwards (CogView3, section 3.1)."""

_REQUEST = "Original caption: {old}. Can you provide a more comprehensive description of the image?"


def request(old: str) -> str:
    """The text beside the picture, with the old caption in it."""
    return _REQUEST.format(old=old.strip().rstrip("."))
