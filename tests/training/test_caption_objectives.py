"""Training of the small recaptioner and the small expander of scenes."""

import copy
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor, T5EncoderModel

from cogview3.captions.model import ModelJob
from cogview3.captions.rows import Sample, request
from cogview3.cli.expand import ExpanderOptions, open_expander
from cogview3.config import UserError, parse_recipe
from cogview3.data.entries import Entry
from cogview3.data.scenes import captions
from cogview3.data.scenes.arranged import arranged
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import (
    COLORS,
    FILLS,
    GROUNDS,
    POSITIONS,
    SHAPES,
    Facts,
    ObjectFacts,
    Relation,
    Scene,
    SceneObject,
    sample_scene,
)
from cogview3.data.scenes.things import THINGS
from cogview3.prompts.expand import LocalWriter
from cogview3.training.export import export
from cogview3.training.loop import train
from cogview3.training.objectives import build
from cogview3.training.objectives.expander import ExpanderTraining, relation_labels, relation_loss, told_scene
from cogview3.training.objectives.recaptioner import (
    IGNORED,
    IMAGE,
    PATCH_WEIGHT,
    RecaptionerTraining,
    patch_labels,
)
from tests.data.conftest import encoded
from tests.training.conftest import COMMON, TABLES

MODELS: dict[str, dict[str, Any]] = {
    "recaptioner": {
        "model": {
            **{"image_size": 32, "vision_width": 8, "vision_depths": [1, 2], "vision_window": 3},
            **{"head_dim": 8, "text_width": 16, "text_layers": 1, "vocab_size": 512},
        },
        "data": {"tokenizer_captions": 64},
    },
    "expander": {
        "model": {**TABLES["text"]["model"], "num_decoder_layers": 1, "max_length": 96},
        "data": {"tokenizer_captions": 64},
    },
}


def recipe(kind: str, **changes: Any) -> Any:
    tables = copy.deepcopy({**COMMON, **MODELS[kind], "recipe": {"name": kind, "kind": kind}})
    for name, value in changes.items():
        table, _, key = name.partition("__")
        tables.setdefault(table, {})[key] = value
    return parse_recipe(tables, "tiny")


@pytest.fixture(scope="module")
def caption_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one run of each kind; for reading only."""
    folder = tmp_path_factory.mktemp("captions")
    for kind in MODELS:
        train(recipe(kind), folder / kind, device="cpu")
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_a_sample_is_the_same_in_every_batch(kind: str) -> None:
    one, other = build(recipe(kind)), build(recipe(kind))
    together = one.batch(0, [0, 1, 2])
    alone = [other.batch(0, [index]) for index in (2, 0, 1)]
    for name, values in together.items():
        assert torch.equal(values, torch.cat([alone[1][name], alone[2][name], alone[0][name]])), name


def squeezed(text: str) -> str:
    """As a tokenizer gives it back but for where it puts spaces."""
    return "".join(text.lower().split())


# Recaptioner

STAR = SceneObject("star", "blue", "striped", True, "large", 0.25, 0.25)
SCENE = Scene("green", "tiled", (STAR, SceneObject("ring", "red", "plain", False, "small", 0.75, 0.75)))


def test_patches_tell_what_covers_their_centers() -> None:
    """Of ten a side, the large star (0.47 wide, at 1/4) covers the first five, the small ring (0.30) the 7th to 9th."""
    labels = patch_labels(SCENE, 10).reshape(11, 10, 10)
    covered = np.zeros((10, 10), int)
    covered[:5, :5] = 1
    covered[6:9, 6:9] = 2
    assert labels[0].tolist() == covered.tolist()
    assert labels[1:5, 7, 7].tolist() == [SHAPES.index("ring"), COLORS.index("red"), FILLS.index("plain"), 0]
    assert (labels[7] == IGNORED).all()  # no thing is there
    facts = labels[1:7, 1, 0].tolist()
    assert facts[:4] == [SHAPES.index("star"), COLORS.index("blue"), FILLS.index("striped"), 1]
    assert POSITIONS[facts[5]] == STAR.position
    assert (labels[1:7, covered == 0] == IGNORED).all()
    assert labels[8:, 3, 0].tolist() == [GROUNDS.index("green"), 1, 1]  # tiled is the second texture; two objects


def test_patches_of_a_thing_tell_no_shape() -> None:
    fox = SceneObject(None, None, None, None, "large", 0.5, 0.5, "fox")
    labels = patch_labels(Scene("white", "plain", (fox,)), 3).reshape(11, 9)[:, 4]
    assert labels[:5].tolist() == [1] + [IGNORED] * 4
    assert POSITIONS[labels[6]] == "middle center"
    assert list(THINGS)[labels[7]] == "fox"


def test_logits_are_those_of_transformers() -> None:
    """Its own forward pass, which puts the picture into the text by itself."""
    objective = build(recipe("recaptioner"))
    assert isinstance(objective, RecaptionerTraining)
    batch = objective.batch(0, [0, 1, 2, 3])
    rows = (batch["tokens"] != objective.tokenizer.pad_token_id).any(1)
    assert rows.tolist() == [False, True, False, True]  # half of them are captioned
    llava = objective.trained.llava.eval()
    with torch.no_grad():
        _, told = objective.trained(batch["pictures"], batch["tokens"], rows)
        wanted = llava(input_ids=batch["tokens"][rows], pixel_values=batch["pictures"][rows]).logits
    torch.testing.assert_close(told, wanted, atol=1e-4, rtol=1e-4)


def test_a_part_without_captions_is_learned_from(tmp_path: Path) -> None:
    """As one of several processes may get; every weight then has a gradient, which DDP waits for."""
    objective = build(recipe("recaptioner"))
    batch = objective.batch(0, [0, 2])
    assert (batch["labels"] == IGNORED).all()
    losses = objective.train()(batch)
    assert losses["caption"] == 0
    losses["loss"].backward()
    trained = [p for p in objective.trained.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert not any(p.grad.any() for p in objective.trained.llava.model.language_model.parameters())


def test_the_loss_is_of_captions_alone_and_of_patches() -> None:
    objective = build(recipe("recaptioner", data__captioned_share=1.0))
    assert isinstance(objective, RecaptionerTraining)
    batch = objective.batch(0, [0, 1])
    losses = objective.eval()(batch)
    tokens, labels = batch["tokens"], batch["labels"]
    with torch.no_grad():
        logits = objective.trained.llava(input_ids=tokens, pixel_values=batch["pictures"]).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(losses["caption"].detach(), expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        levels, _ = objective.trained(batch["pictures"], tokens, torch.tensor([True, True]))
    assert [level.shape[1] for level in levels] == [16, 16]  # 4 x 4 patches of 8 pixels after both levels
    means = []
    for level in levels:
        object_classes = [len(SHAPES), len(COLORS), len(FILLS), 2, 3, len(POSITIONS), len(THINGS)]
        starts = np.cumsum([0, 5, *object_classes, len(GROUNDS), 2, 4])
        each = []
        for respect, (start, end) in enumerate(pairwise(starts)):
            known = batch["patches_4"][:, respect] != IGNORED
            chances = level[..., start:end].softmax(-1)[known]
            logs = -chances[torch.arange(len(chances)), batch["patches_4"][:, respect][known]].log()
            each.append(logs.sum() / max(1, len(logs)))  # a batch may show no thing, or things alone
        means.append(sum(each) / 11)
    torch.testing.assert_close(losses["patches"].detach(), means[-1])
    torch.testing.assert_close(losses["loss"].detach(), losses["caption"].detach() + PATCH_WEIGHT * sum(means))
    for row in range(2):
        text = objective.tokenizer.decode(labels[row][labels[row] != IGNORED], skip_special_tokens=True)
        asked = objective.tokenizer.decode(tokens[row][labels[row] == IGNORED], skip_special_tokens=True)
        scene, old = objective._sample(0, row)
        assert text == captions.plain(scene).text
        assert squeezed(asked) in (squeezed(request(old.text)), squeezed(request("")))


def test_the_saved_model_is_one_of_transformers_and_runs_as_others_do(caption_runs: Path) -> None:
    folder = caption_runs / "recaptioner" / "weights" / "recaptioner"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert model.config.image_seq_length == (32 // 8) ** 2
    asked = processor(text=IMAGE + request("a red star"), images=Image.new("RGB", (40, 30)), return_tensors="pt")
    assert int((asked["input_ids"] == model.config.image_token_id).sum()) == (32 // 8) ** 2
    job = ModelJob(str(caption_runs / "recaptioner"), max_new_tokens=8)
    writer = job.load(0)
    picture = Image.fromarray(render(SCENE, 64))
    given = [Sample(Entry(key, encoded(picture, "PNG"), "png", "a star", None, {})) for key in "ab"]
    rows = [row for part in writer.run(given) for row in part]
    assert [row.key for row in rows] == ["a", "b"]
    objective = build(recipe("recaptioner"))
    assert isinstance(objective, RecaptionerTraining)
    objective.trained.llava.load_state_dict(model.state_dict())
    pictures = objective._pictures([SCENE], [True])
    inputs = objective.processor(text=IMAGE + request("a star"), images=picture, return_tensors="pt")
    torch.testing.assert_close(pictures, inputs["pixel_values"])


def test_models_that_cannot_be_are_refused() -> None:
    for changes, words in (
        ({"model__image_size": 36}, "model.image_size: not a multiple of 8, the last level's patches; give one"),
        ({"model__vision_window": 4}, "model.vision_window: even; give an odd number of patches"),
        ({"model__text_width": 20}, "model.text_width: not a multiple of head_dim 8"),
        ({"model__vision_depths": []}, "model.vision_depths"),
        ({"data__captioned_share": 0}, "data.captioned_share"),
    ):
        with pytest.raises(UserError) as caught:
            recipe("recaptioner", **changes)
        assert words in str(caught.value)


# Expander


def test_prompts_and_captions_tell_objects_in_one_order() -> None:
    objective = build(recipe("expander"))
    assert isinstance(objective, ExpanderTraining)
    batch = objective.batch(0, [0, 1, 2, 3])
    for row in range(4):
        rng = np.random.default_rng([0, row])
        scene = sample_scene(rng, "seen")
        prompt = captions.brief(scene, rng)
        decode = objective.tokenizer.decode
        wanted = told_scene(scene, prompt.told)
        assert wanted.objects == tuple(scene.objects[index] for index in prompt.told)
        order = [sorted(prompt.told).index(index) for index in prompt.told]
        filled = captions.plain(arranged(wanted, prompt.facts, order))
        assert decode(batch["captions"][row], skip_special_tokens=True) == filled.text
        assert squeezed(decode(batch["prompts"][row], skip_special_tokens=True)) == squeezed(prompt.text)


def test_words_of_prompts_and_captions_are_told_their_object() -> None:
    """The labels of named and written words are the facts that the prompt states of just that object."""
    objective = build(recipe("expander"))
    assert isinstance(objective, ExpanderTraining)
    indices = list(range(12))
    batch = objective.batch(0, indices)
    seen = 0
    for row in indices:
        scene, prompt = objective._sample(0, row)
        about = batch["about"][row]
        for place, index in enumerate(prompt.told):
            number = sorted(prompt.told).index(index)
            item, stated = scene.objects[place], prompt.facts.objects[number]
            assert batch["order"][row, number] == place
            text = objective.tokenizer.decode(batch["captions"][row][about == number])
            if item.thing:
                assert text.endswith(f"a {item.size} {item.thing}")
            else:
                assert f"{item.size} {item.fill} {item.color} {item.shape} with" in text
                assert text.endswith("outline")
            assert text.count("outline") == (0 if item.thing else 1)
            labels = batch["labels"][row][5 + 7 * number :].tolist()
            assert stated.shape == (SHAPES[labels[0] - 1] if labels[0] else None)
            assert stated.thing == (list(THINGS)[labels[6] - 1] if labels[6] else None)
            seen += 1
        assert (batch["order"][row, len(prompt.told) :] == IGNORED).all()
        head = objective.tokenizer.decode(batch["captions"][row][:8])
        assert re.match("(one (shape|object)|(two|three|four) (shapes|objects)) on", head)
        assert (about[:5] == -1).all()  # number and ground are no object's
    assert seen > len(indices)


def test_the_expander_loss_is_of_captions_and_of_what_words_tell() -> None:
    """Against transformers' own loss, and against the definition, word by word."""
    objective = build(recipe("expander"))
    assert isinstance(objective, ExpanderTraining)
    objective.eval()
    batch = objective.batch(0, list(range(8)))
    pad = objective.tokenizer.pad_token_id
    mask, wanted = (batch["prompts"] != pad).long(), batch["captions"].masked_fill(batch["captions"] == pad, IGNORED)
    t5 = objective.trained.t5
    with torch.no_grad():
        losses = objective(batch)
        told = t5(input_ids=batch["prompts"], attention_mask=mask, labels=wanted, output_hidden_states=True)
    sizes = [len(SHAPES) + 1, len(COLORS) + 1, len(FILLS) + 1, 3, 4, len(POSITIONS) + 1, len(THINGS) + 1]
    for name, heads, hidden, objects in (
        ("naming", objective.trained.named, told.encoder_last_hidden_state, batch["named"]),
        ("writing", objective.trained.written, told.decoder_hidden_states[-1], batch["about"]),
    ):
        words = (objects >= 0).nonzero().tolist()
        cost = 0.0
        for row, place in words:
            number = objects[row, place]
            facts = batch["labels"][row, 5:].reshape(4, 7)[number]
            with torch.no_grad():
                values = heads.values(hidden[row, place]).split(sizes)
                order = heads.order(hidden[row, place]).softmax(-1)
                relations = heads.relations(hidden[row, place]).reshape(4, 3, 3).softmax(-1)
            cost += sum(-part.softmax(-1)[fact].log().item() for part, fact in zip(values, facts, strict=True)) / 7
            cost -= order[batch["order"][row, number]].log().item()
            for other, axis in np.ndindex(4, 3):
                label = int(batch["relations"][row, number, other, axis])
                cost -= relations[other, axis, label].log().item() if label != IGNORED else 0.0
        assert len(words) > 8
        assert losses[name].item() == pytest.approx(cost / len(words), rel=1e-4)
    assert losses["caption"].item() == pytest.approx(told.loss.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(sum(losses[name].item() for name in ("caption", "naming", "writing")))


def test_relations_are_told_both_ways_by_places_in_the_prompt() -> None:
    """Objects 0, 1 and 2 of the facts stand third, first and second in the prompt; 0 is left of and above 2."""
    relations = (Relation(0, "left of", 2), Relation(0, "above", 2), Relation(1, "below", 0))
    facts = Facts("blue", None, None, (ObjectFacts(), ObjectFacts(), ObjectFacts()), relations)
    labels = np.array(relation_labels(facts, [2, 0, 1]))
    nothing = [IGNORED] * 3
    assert labels[0].tolist() == [[0, 1, 0], [1, 1, 0], nothing, nothing]
    assert labels[1].tolist() == [nothing, [0, 0, 0], [0, 2, 0], nothing]
    assert labels[2].tolist() == [[0, 0, 0], nothing, [2, 2, 0], nothing]
    assert (labels[3] == IGNORED).all()
    between = replace(facts, relations=(Relation(1, "between", 0, 2),))
    labels = np.array(relation_labels(between, [2, 0, 1]))
    assert labels[1].tolist() == [nothing, [0, 0, 1], [0, 0, 1], nothing]
    assert labels[0, 0].tolist() == labels[2, 0].tolist() == [0, 0, 2]


def test_a_prompt_of_one_object_has_no_relations_to_learn() -> None:
    nothing = torch.full((1, 4, 4, 3), IGNORED)
    assert relation_loss(torch.randn(1, 5, 36), torch.tensor([[-1, 0, -1, 0, -1]]), nothing) == 0


def test_the_expander_may_begin_with_a_text_encoder(runs: Path) -> None:
    shared = {"recipe__start_from": str(runs / "text")}
    objective = build(recipe("expander", **shared))
    assert isinstance(objective, ExpanderTraining)
    encoder = T5EncoderModel.from_pretrained(runs / "text" / "weights" / "text_encoder")
    began = objective.trained.t5.encoder.state_dict()
    for name, values in encoder.encoder.state_dict().items():
        assert torch.equal(began[name], values), name
    assert torch.equal(objective.trained.t5.shared.weight, encoder.shared.weight)
    with pytest.raises(UserError, match=r"reads 96 tokens; set model\.max_length to that, not to 64"):
        build(recipe("expander", model__max_length=64, **shared))


def test_the_expander_may_go_on_from_another(caption_runs: Path) -> None:
    objective = build(recipe("expander", recipe__start_from=str(caption_runs / "expander")))
    assert isinstance(objective, ExpanderTraining)
    stored = load_file(caption_runs / "expander" / "weights" / "expander" / "model.safetensors")
    began = objective.trained.t5.state_dict()
    assert len(stored) > 20
    for name, values in stored.items():
        assert torch.equal(began[name], values), name
    writer = LocalWriter(caption_runs / "expander" / "weights" / "expander", max_tokens=96)
    assert objective.write(["a red star"]) == likeliest(writer, "a red star")


def likeliest(writer: LocalWriter, prompt: str) -> list[str]:
    """What a writer's model writes word by word, without beams."""
    made = writer._model.generate(**writer._inputs(prompt, "", ()), do_sample=False, num_beams=1, max_new_tokens=96)
    return writer._tokenizer.batch_decode(made, skip_special_tokens=True)


def test_the_saved_expander_writes_what_the_objective_writes(caption_runs: Path) -> None:
    folder = caption_runs / "expander" / "weights" / "expander"
    writer = LocalWriter(folder, max_tokens=96)
    assert writer.name == "expander"
    objective = build(recipe("expander"))
    assert isinstance(objective, ExpanderTraining)
    objective.trained.t5.load_state_dict(writer._model.state_dict())
    assert objective.write(["two red stars"]) == likeliest(writer, "two red stars")


@pytest.mark.parametrize("kind", MODELS)
def test_validation_scores_written_texts(kind: str) -> None:
    """A model of random weights writes nothing that can be read, and is scored zero."""
    objective = build(recipe(kind))
    figures = objective.validate()
    assert figures == objective.validate()
    assert (figures["read"], figures["facts_right" if kind == "recaptioner" else "facts_kept"]) == (0, 0)


def test_a_model_brings_its_expander_along(runs: Path, caption_runs: Path, tmp_path: Path) -> None:
    parts = {name: runs / name for name in ("vae", "text", "base")}
    made = export(**parts, relay=None, modes={}, out=tmp_path / "m", expander=caption_runs / "expander")
    assert made["out"] == str(tmp_path / "m")
    expander = open_expander(str(tmp_path / "m"), ExpanderOptions(expander_cache=tmp_path / "cache"), "cpu")
    rounded = LocalWriter(caption_runs / "expander" / "weights" / "expander")
    rounded._model = rounded._model.half().float()  # as it is stored
    wanted = rounded.write("two red stars", 0, "", ())
    assert expander._writer.write("two red stars", 0, "", ()) == wanted
    assert load_file(tmp_path / "m" / "expander" / "model.safetensors")["shared.weight"].dtype == torch.float16
    export(**parts, relay=None, modes={}, out=tmp_path / "bare")
    with pytest.raises(UserError, match="bare has no expander"):
        open_expander(str(tmp_path / "bare"), ExpanderOptions(), "cpu")
    with pytest.raises(UserError, match="expander"):
        export(**parts, relay=None, modes={}, out=tmp_path / "none", expander=runs / "text")
    assert not (tmp_path / "none").exists()
