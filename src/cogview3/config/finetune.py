"""Settings of `cogview3 captions finetune`."""

from typing import Annotated

from pydantic import Field

from cogview3.config.tables import Positive, Table


class FinetuneSettings(Table):
    """How to fine-tune a model to write captions; lengths in images. The defaults are the paper's, where it has any.

    The learning rate of AdamW falls as a cosine after a warm-up over 3 % of the steps. LoRA adapts every linear layer
    of the language model and of the projector, with a scale of 2.
    """

    images: Positive = Field(default=384_000, description="Length of the training in images.")
    batch: Positive = Field(default=256, description="Images per optimizer step.")
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Learning rate; 1e-4 for LoRA, 1e-5 with --full by default."
    )
    full: bool = Field(default=False, description="Train all weights instead of LoRA adapters.")
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Rank of the LoRA adapters.")
    held_out: Positive = Field(default=500, description="Pairs held out for validation; at most a tenth.")
    check_images: Positive = Field(default=12_800, description="Images between validations, each with a checkpoint.")
    patience: Positive = Field(default=3, description="Validations without improvement before early stopping.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Random seed of order and initialization."
    )

    @property
    def steps(self) -> int:
        """Optimizer steps, 1 or more."""
        return max(1, self.images // self.batch)

    @property
    def rate(self) -> float:
        """The learning rate in effect."""
        return self.learning_rate or (1e-5 if self.full else 1e-4)
