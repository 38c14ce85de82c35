"""Old captions to new ones: collect examples, fine-tune a model on them, re-caption whole sets."""
