"""Expansion of prompts: by endpoints and local models, checked, cached, and never a reason to fail."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner, Result

from cogview3 import CogView3Pipeline
from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.prompts import expand as module
from cogview3.prompts.budget import Usage
from cogview3.prompts.cache import PromptCache
from cogview3.prompts.endpoint import Answer, Endpoint, EndpointError, Retry
from cogview3.prompts.expand import EndpointWriter, Expander, LocalWriter, Request, tidy
from tests.endpoints import KEY, Reply, serving

GOOD = "Two large red stars glow side by side on a dark sky above a quiet hill."


class Writer:
    """Gives texts in turn, and notes what it was asked."""

    name, identity = "writer", "writer 1"

    def __init__(self, *texts: str | Exception) -> None:
        self.texts, self.asked = list(texts), []

    def write(self, prompt: str, number: int, earlier: str, lost: Sequence[str]) -> list[str]:
        self.asked.append((prompt, number, earlier, list(lost)))
        text = self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        return [text]


def test_a_good_expansion_is_used_and_kept(tmp_path: Path) -> None:
    expansion = Expander(Writer(GOOD), tmp_path / "cache").expand("two red stars")
    assert (expansion.prompt, expansion.text, expansion.model) == ("two red stars", GOOD, "writer")
    assert expansion.reason == ""
    again = Writer()
    assert Expander(again, tmp_path / "cache").expand("two red stars") == expansion
    assert again.asked == []
    other = Writer(GOOD)
    other.identity = "writer 2"
    Expander(other, tmp_path / "cache").expand("two red stars")
    assert len(other.asked) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_loses_the_intent_is_asked_for_again() -> None:
    writer = Writer("Three red stars.", "", GOOD)
    assert Expander(writer).expand("two red stars").text == GOOD
    assert writer.asked == [
        ("two red stars", 0, "", []),
        ("two red stars", 1, "Three red stars.", ["two red stars"]),
        ("two red stars", 2, "Three red stars.", ["two red stars"]),
    ]


def test_the_prompt_itself_is_used_where_the_intent_stays_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expander = Expander(Writer(*["Blue circles."] * 3), tmp_path / "cache")
    assert expander(["two red stars"]) == ["two red stars"]
    assert "'two red stars': the expansion lost: two red stars, red stars, stars" in caplog.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [("Zwei rote Sterne mit einer Wolke und dem Mond.", "English"), ("star " * 500, "brevity")],
)
def test_other_languages_and_endless_texts_are_faults(text: str, fault: str) -> None:
    assert fault in Expander(Writer(*[text] * 3)).expand("rote Sterne im Himmel").reason


@pytest.mark.parametrize(
    ("finish", "refusal"), [("length", ""), ("content_filter", ""), ("stop", "That is not allowed.")]
)
def test_texts_that_an_endpoint_cut_or_refused_are_none(finish: str, refusal: str, tmp_path: Path) -> None:
    """Of prompts that are not English the intent cannot be checked, so that such a text would pass."""
    answer = Answer("Two red stars glow and then the", finish, refusal, Usage())
    endpoint = SimpleNamespace(chat=lambda messages: answer, model="m", shown="there", extra={})
    found = Expander(EndpointWriter(endpoint), tmp_path / "cache").expand("zwei rote Sterne")
    assert (found.text, found.reason) == ("zwei rote Sterne", "the model gave no whole description")
    assert not (tmp_path / "cache").exists()


def test_what_is_expanded_may_be_another_text_or_nothing() -> None:
    told = {"two happy red stars": Request("two red stars"), "deux étoiles": Request("", reason="not in English")}
    writer = Writer(GOOD)
    expansions = Expander(writer, prepare=told.__getitem__).expand_all(list(told))
    assert [(each.prompt, each.text, each.reason) for each in expansions] == [
        ("two happy red stars", GOOD, ""),
        ("deux étoiles", "deux étoiles", "not in English"),
    ]
    assert [asked[0] for asked in writer.asked] == ["two red stars"]
    lost = Expander(Writer(*["Blue circles."] * 3), prepare=told.__getitem__).expand("two happy red stars")
    assert (lost.text, lost.reason[:18]) == ("two happy red stars", "the expansion lost")


def test_other_words_are_tried_and_what_comes_of_them_is_finished() -> None:
    """The first words three times, then the others; an expansion that `finish` objects to is none."""
    writer = Writer(*["Blue circles."] * 3, "Two red stars.", GOOD)
    asked = Request(
        "two red stars", ("red stars, two",), finish=lambda text: (text.upper(), ["sky"][: "sky" not in text])
    )
    found = Expander(writer, prepare=lambda prompt: asked).expand("two stars in red")
    assert (found.prompt, found.text, found.reason) == ("two stars in red", GOOD.upper(), "")
    assert [each[:2] for each in writer.asked] == [
        ("two red stars", 0),
        ("two red stars", 1),
        ("two red stars", 2),
        ("red stars, two", 0),
        ("red stars, two", 1),
    ]
    assert writer.asked[4][2:] == ("Two red stars.", ["sky"])


def test_failures_of_the_model_are_told_and_it_is_left_in_peace() -> None:
    writer = Writer(EndpointError("down"), EndpointError("still down"))
    expansions = Expander(writer).expand_all(["a", "a", "b", "c"])
    assert [each.text for each in expansions] == ["a", "a", "b", "c"]
    unasked = "not asked for, after 2 failures in a row: still down"
    assert [each.reason for each in expansions] == ["down", "down", "still down", unasked]
    assert len(writer.asked) == 2


def test_whatever_a_model_meets_no_picture_is_lost() -> None:
    writer = Writer(RuntimeError("CUDA out of memory"), ValueError())
    expansions = Expander(writer).expand_all(["a", "b"])
    assert [each.text for each in expansions] == ["a", "b"]
    assert [each.reason for each in expansions] == ["RuntimeError: CUDA out of memory", "ValueError"]


def test_a_damaged_or_read_only_cache_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Expander(Writer(GOOD), tmp_path / "cache").expand("two red stars")
    next((tmp_path / "cache").iterdir()).write_text("{")
    assert Expander(Writer(GOOD), tmp_path / "cache").expand("two red stars").text == GOOD
    assert "damaged" in caplog.text
    (tmp_path / "file").touch()
    assert Expander(Writer(GOOD), tmp_path / "file").expand("two red stars").text == GOOD
    assert "expansion could not be" in caplog.text


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("<think>two\nstars?</think>\n Two stars.", "Two stars."),
        ("hm, stars?</think>Two stars.", "Two stars."),
        ("<think>a</think>Two stars. <think>and", ""),
        ("```text\nTwo stars.\n```", "Two stars."),
        ('"Two stars."', "Two stars."),
        ('"OPEN" glows on "HERE"', '"OPEN" glows on "HERE"'),
        ("Here is the caption: Two\n\nstars.", "Two stars."),
        ("**Caption:** Two stars.", "Two stars."),
        ("Sure: two stars.", "two stars."),
        ("I'm sorry, but I can't assist with that request.", ""),
        ("I cannot draw that.", ""),
        ("Sorry, no.", ""),
        ("I, a sorry figure, stand under two stars.", "I, a sorry figure, stand under two stars."),
        ("", ""),
    ],
)
def test_texts_are_tidied(text: str, tidied: str) -> None:
    assert tidy(text) == tidied


def test_our_own_examples_keep_to_our_own_rules() -> None:
    for prompt, description in module.EXAMPLES:
        assert module.find_faults(prompt, description) == []
        assert 40 <= len(description.split()) <= 90


# Endpoints


def quick(url: str) -> Endpoint:
    return Endpoint(url, "m", retry=Retry(tries=2, first=0.0), timeout=5.0)


def test_an_endpoint_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    replies = ["Two blue stars.", GOOD]
    with serving(lambda body, number: Reply(text=replies[number])) as server:
        writer = EndpointWriter(quick(server.url))
        assert Expander(writer).expand("two red stars").text == GOOD
    assert KEY not in writer.identity
    first, second = (body["messages"] for body in server.bodies)
    assert first[0] == {"role": "system", "content": module.INSTRUCTION}
    assert first[-1] == {"role": "user", "content": "two red stars"}
    assert len(first) == 2 + 2 * len(module.EXAMPLES)
    assert second[:-2] == first
    assert second[-2] == {"role": "assistant", "content": "Two blue stars."}
    assert "red stars" in second[-1]["content"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("status", f"no {KEY}", 401), "HTTP 401"),
        (Reply("status", "", 500), "HTTP 500"),
        (Reply("close"), "no connection"),
        (Reply("raw", "{"), "no chat completion"),
        (Reply(text=""), "no whole description"),
        (Reply(text=GOOD, finish="length"), "no whole description"),
        (Reply(text="<think>Two red stars, then. I should write about"), "no whole description"),
    ],
)
def test_no_failure_of_an_endpoint_is_ours(reply: Reply, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body, number: reply) as server:
        expansion = Expander(EndpointWriter(quick(server.url))).expand("two red stars")
    assert expansion.text == "two red stars"
    assert reason in expansion.reason
    assert KEY not in expansion.reason


# Local models

WORDS = ["<pad>", "</s>", "<unk>", "two", "red", "stars", "on", "a", "white", "ground", "blue"]


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 that was trained on one pair, with a good second best."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0,
                      decoder_start_token_id=0)  # fmt: skip
    model, words = T5ForConditionalGeneration(config), tokenizer()
    inputs = words(["two red stars"] * 3, return_tensors="pt").input_ids
    good, bad = "two red stars on a white ground </s>", "two blue stars on a white ground </s>"
    targets = words([bad, bad, good], return_tensors="pt", add_special_tokens=False).input_ids
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        loss = model(input_ids=inputs, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("models") / "t5"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def seq2seq(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "t5"))


def test_a_t5_gives_beams_of_which_the_first_good_one_counts(seq2seq: Path) -> None:
    writer = LocalWriter(seq2seq)
    assert writer.name == "t5"
    beams = writer.write("two red stars", 0, "", [])
    assert beams[:2] == ["two blue stars on a white ground", "two red stars on a white ground"]
    state = torch.get_rng_state()
    samples = writer.write("two red stars", 1, beams[0], ["red stars"])
    assert len(set(samples)) > 1
    assert samples == writer.write("two red stars", 1, "", [])  # the same at each call
    assert torch.equal(torch.get_rng_state(), state)
    assert writer.write("two red stars", 2, beams[0], ["red stars"]) == []
    assert Expander(writer).expand("two red stars").text == "two red stars on a white ground"
    assert LocalWriter(seq2seq).identity == writer.identity
    (seq2seq / "generation_config.json").write_text((seq2seq / "generation_config.json").read_text() + " ")
    assert LocalWriter(seq2seq).identity != writer.identity


def test_descriptions_that_are_cut_off_are_none(seq2seq: Path) -> None:
    """Both have eight tokens and their end, so that nine hold them, and eight do not."""
    assert LocalWriter(seq2seq, max_tokens=9).write("two red stars", 0, "", [])[0] == "two blue stars on a white ground"
    writer = LocalWriter(seq2seq, max_tokens=4)
    assert writer.write("two red stars", 0, "", []) == []
    assert Expander(writer).expand("two red stars").reason == "the model gave no whole description"


def test_a_chat_model_gets_the_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=4096, pad_token_id=0,
                         bos_token_id=None, eos_token_id=1)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "chat")
    tokenizer("{% for m in messages %}{{ m.content }} {% endfor %}").save_pretrained(tmp_path / "chat")
    (tmp_path / "chat" / "generation_config.json").write_text('{"pad_token_id": 0}')  # it never ends by itself
    writer = LocalWriter(tmp_path / "chat", max_tokens=5)
    asked = []
    original = module.conversation
    monkeypatch.setattr(module, "conversation", lambda *given: asked.append(given) or original(*given))
    (text,) = writer.write("two red stars", 0, "", [])
    assert len(text.split()) <= 5
    assert set(text.split()) <= set(WORDS)
    assert len(writer.write("two red stars", 1, "a", ["b"])) == 4
    assert asked == [("two red stars", "", []), ("two red stars", "a", ["b"])]
    assert module.VERSION in writer.identity


def test_folders_that_hold_no_language_model(tmp_path: Path, make_unet: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        LocalWriter(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path / 'config.json'} is damaged"):
        LocalWriter(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": []}')
    with pytest.raises(UserError, match=f"{tmp_path}: no language model"):
        LocalWriter(tmp_path)
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "mute")
    tokenizer().save_pretrained(tmp_path / "mute")
    with pytest.raises(UserError, match="mute: a model without"):
        LocalWriter(tmp_path / "mute")


# In pipelines


def draw(
    components: dict[str, Any], expander: Any, cache: PromptCache | None = None, **changes: Any
) -> tuple[torch.Tensor, CogView3Pipeline]:
    pipe = CogView3Pipeline(**components)
    pipe.prompt_expander, pipe.prompt_cache = expander, cache
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a star", "num_inference_steps": 2, "relay_steps": 1, "num_relays": 0, "output_type": "pt"}
    return pipe(**{**call, "generator": torch.Generator().manual_seed(0), **changes}).images, pipe


def test_a_pipeline_draws_what_its_expander_gives(components: dict[str, Any]) -> None:
    given = []
    expanded, pipe = draw(components, lambda prompts: given.append(prompts) or ["a red star"], negative_prompt="blue")
    assert given == [["a star"]]
    assert pipe.expanded_prompts == ["a red star"]
    plain, other = draw(components, None, prompt="a red star", negative_prompt="blue")
    assert other.expanded_prompts is None
    assert torch.equal(expanded, plain)
    assert not torch.equal(plain, draw(components, None, negative_prompt="blue")[0])
    with pytest.raises(UserError, match="2 texts for 1 prompts"):
        draw(components, lambda prompts: ["a", "b"])


def test_expanded_prompts_that_are_known_need_no_text_encoder(components: dict[str, Any], tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "e", torch.float32)

    def expander(prompts: list[str]) -> list[str]:
        return ["a red star"] * len(prompts)

    first, _ = draw(components, expander, cache=cache)
    second, _ = draw(components | {"text_encoder": None}, expander, cache=cache)
    assert torch.equal(first, second)
    with pytest.raises(UserError, match="lacks a prompt"):
        draw(components | {"text_encoder": None}, lambda prompts: ["blue"], cache=cache)


# Commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_expands(run: Callable[..., Result], tmp_path: Path) -> None:
    with serving(lambda body, number: Reply(text=GOOD)) as server:
        options = ("--expander", server.url, "--expander-model", "m")
        result = run("expand", "two red stars", *options)
        assert (result.exit_code, result.stdout) == (0, GOOD + "\n")
        again = run("expand", "two red stars", "--json", *options)
        facts = json.loads(again.stdout)
        assert len(server.bodies) == 1
    assert facts == {
        "model": "m", "prompts": ["two red stars"], "expanded_prompts": [GOOD], "reasons": [None]
    }  # fmt: skip
    assert len(list((tmp_path / "home" / "cogview3" / "expansions").iterdir())) == 1


def test_the_command_uses_a_folder_or_the_models_own(run: Callable[..., Result], seq2seq: Path, tmp_path: Path) -> None:
    result = run("expand", "two red stars", "--expander", seq2seq, "--device", "cpu")
    assert result.stdout == "two red stars on a white ground\n"
    (tmp_path / "model").mkdir()
    seq2seq.rename(tmp_path / "model" / "expander")
    result = run("expand", "two red stars", "--model", "./model", "--json")
    assert json.loads(result.stdout)["expanded_prompts"] == ["two red stars on a white ground"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--expander", "http://127.0.0.1:9"], ["--expander-model"]),
        (["--expander-model", "m"], ["--expander URL"]),
        (["--expander", "nowhere"], ["nowhere"]),
        (["--model", "./bare"], ["./bare", "no "]),  # expander; and for pictures, no model
    ],
)
def test_bad_input(run: Callable[..., Result], tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "bare").mkdir()
    for command in (["expand", "a"], ["generate", "a", "--expand"]):
        result = run(*command, *arguments)
        assert result.exit_code == 2, result.output
        assert all(word in result.stderr for word in words), result.stderr
    assert run("generate", "a", "--expander", "x").exit_code == 2


def test_pictures_of_expanded_prompts_carry_both(
    run: Callable[..., Result], tmp_path: Path, components: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    CogView3Pipeline(**components).save_pretrained(tmp_path / "model")
    command = (
        "generate",
        "two red stars",
        "a",
        "--model",
        "./model",
        "--relays",
        0,
        "--steps",
        1,
        "--seed",
        1,
        "--json",
    )

    def answering(body: dict[str, Any], number: int) -> Reply:
        return Reply(text=GOOD) if "two" in body["messages"][-1]["content"] else Reply("status", f"no {KEY}", 400)

    with caplog.at_level(logging.DEBUG), serving(answering) as server:
        options = ("--expand", "--expander", server.url, "--expander-model", "m")
        result = run(*command, *options, "-o", "out")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["expanded_prompts"] == [GOOD, "a"]
    assert facts["expander"] == "m"
    assert list(facts["not_expanded"]) == ["a"]
    assert "HTTP 400" in facts["not_expanded"]["a"]
    assert "warning: " in result.stderr
    assert "'a': " in result.stderr
    with Image.open("out/two-red-stars-1.png") as image:
        assert image.text["prompt"] == "two red stars"
        assert image.text["expanded_prompt"] == GOOD
        assert image.text["expander"] == "m"
    with Image.open("out/a-2.png") as image:
        assert "expanded_prompt" not in image.text
    assert KEY not in result.output + result.stderr + caplog.text
