"""A random LLaVA at toy width, saved as real ones are; and sets of shards for it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PAD, END, UNKNOWN, IMAGE = "<pad>", "</s>", "<unk>", "<image>"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% if message.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each printable character of ASCII; a space is a character like others."""
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate([PAD, END, UNKNOWN, *letters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    fast.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return fast


def save_llava(folder: Path, *, template: bool = False, endings: str = "", width: int = 32, layers: int = 2) -> Path:
    """A model of random weights with its processor; `endings` are further characters that end a caption."""
    torch.manual_seed(0)
    tokens = tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        ),
        image_token_index=tokens.convert_tokens_to_ids(IMAGE),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 24
    model.generation_config.eos_token_id = [1, *tokens.convert_tokens_to_ids(list(endings))]
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokens,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE if template else None,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
