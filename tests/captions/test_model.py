"""Models of transformers that write captions: what they read, and that neighbors do not matter."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors

from cogview3.captions.inputs import IGNORED, Asker, find_model, load_model, load_processor
from cogview3.captions.model import MOST_FAILED, Draw, ModelJob
from cogview3.captions.rows import Row, Sample, request
from cogview3.config import UserError
from cogview3.data.entries import Entry
from tests.captions.tiny import IMAGE, save_llava
from tests.data.conftest import encoded, picture

OLDS = ["", "a cat", "a very long old caption of a cat and a dog", "two", "x" * 40, "a cat", "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template; some letters end its captions."""
    return save_llava(tmp_path_factory.mktemp("llava"), endings="aeiou.,")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("templated"), template=True)


def samples() -> list[Sample]:
    sizes = [(16, 16), (40, 20), (20, 40)]
    pictures = [encoded(picture(number, *sizes[number % 3]), "PNG") for number in range(len(OLDS))]
    return [Sample(Entry(f"k{i}", content, "png", OLDS[i], None, {})) for i, content in enumerate(pictures)]


def captions(job: ModelJob, given: list[Sample] | None = None) -> list[Row]:
    return [row for rows in job.load(0).run(samples() if given is None else given) for row in rows]


def test_prompts_without_a_template_are_the_training_text(folder: Path) -> None:
    asker = load_processor(folder)
    assert asker.prompt("A cat. ") == (
        "<image> Original caption: A cat. Can you provide a more comprehensive description of the image?"
    )
    assert asker.answer("A cat.", "A black cat.") == " A black cat.</s>"
    assert asker.prompt("one <image> two </s>") == f"{IMAGE} {request('one two')}"  # marks would add pictures
    assert len(asker.prompt("y" * 5000)) < 1200


def test_prompts_and_answers_follow_the_template(templated: Path) -> None:
    asker = load_processor(templated)
    assert asker.prompt("A cat") == f"user: {IMAGE}{request('A cat')}assistant: "
    assert asker.answer("A cat", "A black cat.") == "A black cat.</s>"
    asker.processor.chat_template = (
        "{% for m in messages if m.role == 'user' %}<image>{{ m.content[1].text }}{% endfor %}"
    )
    assert asker.prompt("A cat") == IMAGE + request("A cat")
    assert asker.answer("A cat", "A black cat.") == "A black cat.</s>"  # a template that knows no answers


def test_what_begins_a_text_is_not_put_there_twice(templated: Path) -> None:
    """By the chat template and by the tokenizer."""
    asker = load_processor(templated)
    asker.tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = asker.tokenizer.bos_token_id
    whole = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    asker.tokenizer.backend_tokenizer.post_processor = whole
    image = Image.new("RGB", (16, 16))
    assert (asker.inputs([image], ["a"])["input_ids"] == begin).sum() == 1  # by the tokenizer alone
    asker.processor.chat_template = "{{ bos_token }}" + asker.processor.chat_template
    assert asker.prompt("a").startswith("<s>")
    assert (asker.inputs([image], ["a"])["input_ids"] == begin).sum() == 1


def test_lessons_are_prompts_as_asked_and_labels_of_answers_alone(folder: Path) -> None:
    asker = load_processor(folder)
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    olds, news = ["a", "a longer one"], ["Red all over.", "Blue."]
    asked, lesson = asker.inputs(images, olds), asker.lesson(images, olds, news)
    width = asked["input_ids"].shape[1]
    assert torch.equal(lesson["input_ids"][:, :width], asked["input_ids"])
    assert torch.equal(lesson["pixel_values"], asked["pixel_values"])
    for number, new in enumerate(news):
        labels = lesson["labels"][number]
        assert (labels[:width] == IGNORED).all()
        learned = labels[labels != IGNORED]
        assert asker.tokenizer.decode(learned) == f" {new}</s>"
        assert int(lesson["attention_mask"][number, width:].sum()) == len(learned) == len(new) + 2
        told = lesson["input_ids"][number][lesson["attention_mask"][number].bool()]
        assert asker.tokenizer.decode(told).replace(IMAGE, "") == f" {request(olds[number])} {new}</s>"


def test_texts_do_not_depend_on_the_batch(folder: Path) -> None:
    alone = captions(ModelJob(str(folder), batch=1))
    assert [row.key for row in alone] == [f"k{i}" for i in range(len(OLDS))]
    assert len({row.new for row in alone}) > 3
    assert {row.status for row in alone} >= {"ok"}
    for batch in (2, 3, 8):  # other paddings and sums in other orders
        assert captions(ModelJob(str(folder), batch=batch)) == alone


def test_draws_depend_on_seed_and_key_alone(folder: Path) -> None:
    def drawn(seed: int, batch: int) -> list[Row]:
        return captions(ModelJob(str(folder), batch=batch, seed=seed, temperature=1.5))

    first = drawn(1, 1)
    assert drawn(1, 3) == drawn(1, 8) == first
    assert drawn(2, 3) != first
    assert [row.new for row in first] != [row.new for row in captions(ModelJob(str(folder)))]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -1.0])
    count, temperature = 4000, 0.7
    drawing = Draw([str(number) for number in range(count)], 3, temperature, 5)
    tokens = drawing(torch.zeros(count, 9, dtype=torch.long), logits.expand(count, -1)).argmax(-1)
    expected = (logits.double() / temperature).softmax(-1)
    found = torch.bincount(tokens, minlength=5) / count
    assert found[2] == 0
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()  # four deviations
    again = drawing(torch.zeros(count, 10, dtype=torch.long), logits.expand(count, -1)).argmax(-1)
    assert Counter((tokens == again).tolist())[False] > count / 4  # the next place draws anew


def test_done_samples_stay_in_their_batch_and_cost_nothing_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ModelJob(str(folder), batch=2).load(0)
    asked: list[int] = []
    generate = writer.generate
    monkeypatch.setattr(
        writer, "generate", lambda inputs, keys, olds: asked.append(list(keys)) or generate(inputs, keys, olds)
    )
    done = [Sample(sample.entry, number in (0, 1, 2)) for number, sample in enumerate(samples())]
    rows = [row for some in writer.run(done) for row in some]
    assert asked == [["k2", "k3"], ["k4", "k5"], ["k6"]]
    assert rows == captions(ModelJob(str(folder), batch=2))[2:]


def test_captions_without_an_end_are_marked(folder: Path) -> None:
    rows = captions(ModelJob(str(folder), max_new_tokens=2))
    assert {row.status for row in rows} == {"ok", "cut"} or {row.status for row in rows} == {"cut"}
    cut = next(row for row in rows if row.status == "cut")
    assert (cut.error, cut.tokens) == ("no end after 2 tokens", 2)
    assert len(cut.new) <= 2


def test_pictures_that_cannot_be_read_fail_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ModelJob(str(folder), batch=8).load(0)
    alone = {row.key: row for row in captions(ModelJob(str(folder)))}
    ask = Asker.inputs

    def inputs(self: Asker, images: list, olds: list[str]) -> object:
        if "two" in olds:
            raise ValueError("too thin\nfor patches")
        return ask(self, images, olds)

    monkeypatch.setattr(Asker, "inputs", inputs)
    broken = Sample(Entry("broken", b"nothing", "png", "old", None, {}))
    rows = {row.key: row for some in writer.run([*samples(), broken]) for row in some}
    assert rows["k3"] == Row("k3", "two", None, "failed", "ValueError: too thin for patches")
    assert rows["broken"] == Row("broken", "old", None, "failed", "not an image")
    monkeypatch.undo()
    assert {key: row for key, row in rows.items() if row != alone.get(key)}.keys() == {"k3", "broken"}


def test_out_of_memory_halves_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ModelJob(str(folder), batch=7).load(0)
    generate, sizes = writer.generate, []

    def limited(inputs: object, keys: list[str], olds: list[str]) -> list[Row]:
        sizes.append(len(keys))
        if len(keys) > 2:
            raise torch.OutOfMemoryError
        return generate(inputs, keys, olds)

    monkeypatch.setattr(writer, "generate", limited)
    rows = [row for some in writer.run(samples()) for row in some]
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert rows == captions(ModelJob(str(folder), batch=1))


def test_a_model_that_writes_nothing_is_to_blame(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ModelJob(str(folder), batch=8).load(0)
    monkeypatch.setattr(writer, "generate", lambda *given: 1 / 0)
    with pytest.raises(UserError, match=rf"none of the first {MOST_FAILED} pictures.*ZeroDivisionError"):
        list(writer.run([sample for sample in samples() for _ in range(8)]))
    writer = ModelJob(str(folder), batch=8).load(0)  # one that has captioned others before is not
    monkeypatch.setattr(writer, "generate", lambda *given: 1 / 0)
    known, *rest = samples()
    rows = [row for rows in writer.run([replace(known, done=True), *(rest * 8)]) for row in rows]
    assert len(rows) > MOST_FAILED
    assert {row.status for row in rows} == {"failed"}


def test_models_are_found_and_checked(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "recaptioner").symlink_to(folder)
    assert find_model(str(run)) == run / "weights" / "recaptioner"
    assert ModelJob(str(run)).settings == ModelJob(str(folder)).settings
    with pytest.raises(UserError, match=f"--model {tmp_path}"):
        find_model(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match=f"--model {other}"):
        load_model(other, "float32")
    with pytest.raises(UserError, match="processor"):
        load_processor(other)
    bare = tmp_path / "bare"
    load_processor(folder).tokenizer.save_pretrained(bare)
    (bare / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match="processor"):
        load_processor(bare)


def test_weights_tell_models_apart(folder: Path, tmp_path: Path) -> None:
    first = ModelJob(str(folder)).settings
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert ModelJob(str(copy)).settings == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert ModelJob(str(copy)).settings != first
    assert ModelJob("someone/model").name == "someone/model"
    assert ModelJob(str(folder)).name == folder.name


@pytest.mark.parametrize("value", [{"batch": 0}, {"temperature": float("nan")}, {"max_new_tokens": 0}])
def test_values_out_of_range(value: dict) -> None:
    with pytest.raises(UserError, match=next(iter(value))):
        ModelJob("m", **value)


def test_pictures_reach_the_model(folder: Path) -> None:
    """The same old caption, another picture: another text, for some of a few pictures."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(6)]
    writer = ModelJob(str(folder)).load(0)
    rows = writer.generate(writer.asker.inputs(images, ["same"] * 6), list("abcdef"), ["same"] * 6)
    assert len({(row.new, row.tokens) for row in rows}) > 1
