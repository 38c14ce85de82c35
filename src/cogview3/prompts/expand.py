"""Short prompts to descriptions in the style of the training captions, by a language model.

    expander = Expander(EndpointWriter(Endpoint("http://localhost:8000/v1", "a-model")), cache="expansions")
    expander.expand("two cats").text

An expansion that loses what the prompt asks for is asked for again, and given up after `TRIES`; then, and where the
model fails, the prompt itself is used, and the `Expansion` says why.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from cogview3.checkpoints import read_json, write_text
from cogview3.config import UserError
from cogview3.errors import as_user_error, one_line
from cogview3.prompts.answers import ends_as_a_sentence, is_refusal, plain
from cogview3.prompts.endpoint import Endpoint, Unusable
from cogview3.prompts.intent import lost_intent
from cogview3.prompts.words import is_english

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

TRIES = 3
"""Times that a model is asked for one prompt."""

SAMPLES = 16
"""Descriptions that an encoder-decoder draws at random where its beams are not good."""

MOST_FAILURES = 2
"""Prompts in a row that a model may give nothing for."""

_CHECK = "4"
"""Version of what is accepted as an expansion; another one makes kept expansions void."""

MAX_CHARACTERS = 2000
"""Longer texts are no descriptions of a picture."""

INSTRUCTION = """\
You write the captions that a text-to-image model was trained on. You are given a short request for a picture, in any \
language. Answer with one English paragraph of 40 to 90 words that describes the finished picture.

- Whatever the request names stays: every noun, number and color, with what it belongs to, in the plain English words \
for it rather than synonyms. Nothing named may change, move or disappear, and no second subject may appear.
- What the request rules out stays ruled out, in words such as "without" or "no".
- Text in quotation marks is to be seen in the picture: repeat it letter by letter, in its own language and in quotes.
- What the request leaves open is yours: settle on one version of the setting, light, materials, textures, viewpoint, \
arrangement and mood, and state it as a fact.
- Begin with the subject. Do not speak of "the image" or "the picture", do not use words of doubt such as "perhaps" or \
"seems", and add no title, list, comment or quotation marks of your own."""

EXAMPLES = (
    (
        "two cats on a red sofa",
        "Two cats rest side by side on a red sofa, one a striped gray tabby with half-closed eyes, the other white "
        "with a black tail that hangs over the edge. The worn velvet of the red sofa catches warm afternoon light "
        "from a window on the left. Behind them a cream wall with a small framed map stays softly out of focus, "
        "and the mood is quiet and drowsy.",
    ),
    (
        'ein Bäckerladen mit einem Schild "Frisches Brot", keine Menschen',
        'A small bakery with a wooden sign that reads "Frisches Brot" in white painted letters above the door. Round '
        "loaves and golden rolls fill the shop window on slanted shelves, and flour dusts the stone step. There are no "
        "people in the street; early morning light lies on the wet cobbles, and the blue shutters of the house next "
        "door are still closed.",
    ),
    (
        "a snowy mountain at night without clouds",
        "A snowy mountain rises alone in the night, its steep white ridges lit from the right by a low moon. The sky, "
        "without clouds, is deep blue and dense with stars down to the horizon. A dark line of firs stands at the foot "
        "of the slope, and fresh snow in the foreground shows soft blue shadows. The air looks cold and still.",
    ),
)

VERSION = hashlib.sha256(json.dumps([INSTRUCTION, EXAMPLES]).encode()).hexdigest()[:12]
"""Of instruction and examples; another one makes kept expansions void."""


@dataclass(frozen=True)
class Expansion:
    """A prompt and what is drawn in its place."""

    prompt: str  # as it was given
    text: str  # the description; the prompt itself where there is none
    model: str  # what wrote it
    reason: str = ""  # why there is none; "" where there is


@dataclass(frozen=True)
class Request:
    """What is asked of a writer for a prompt.

    Attributes:
        text: what is to be expanded.
        others: other words for it, for a writer that makes nothing good of the first.
        reason: why it should not be expanded, "" where it should.
        finish: of an expansion, the text to draw and what speaks against it.
    """

    text: str
    others: tuple[str, ...] = ()
    reason: str = ""
    finish: Callable[[str], tuple[str, list[str]]] = lambda text: (text, [])


class Writer(Protocol):
    """A language model that writes descriptions."""

    name: str
    """What it is called in reports."""

    identity: str
    """What its texts depend on; part of the cache's key."""

    def write(self, prompt: str, number: int, earlier: str, lost: Sequence[str]) -> list[str]:
        """Whole texts for a prompt, the best first; none where all were cut off.

        Args:
            prompt: the request.
            number: of the try, from 0 on.
            earlier: what the try before gave, "" without one.
            lost: what that lacked.

        Raises OSError where the model gives none.
        """


class EndpointWriter(Writer):
    """A model behind a chat endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.name = endpoint.model
        self.identity = (
            f"{endpoint.shown} {endpoint.model} {VERSION} {json.dumps(dict(endpoint.extra), sort_keys=True)}"
        )

    def write(self, prompt: str, number: int, earlier: str, lost: Sequence[str]) -> list[str]:
        """As `Writer.write`; nothing where the answer was cut off, by any sign, or refused. Raises EndpointError."""
        answer = self.endpoint.chat(conversation(prompt, earlier, lost))
        whole = not (answer.refused or answer.cut) and ends_as_a_sentence(tidy(answer.text))
        return [answer.text] if whole else []


def conversation(prompt: str, earlier: str = "", lost: Sequence[str] = ()) -> list[dict[str, str]]:
    """The messages that ask for an expansion, after one that lost something perhaps."""
    messages = [{"role": "system", "content": INSTRUCTION}]
    for request, description in EXAMPLES:
        messages += [{"role": "user", "content": request}, {"role": "assistant", "content": description}]
    messages.append({"role": "user", "content": prompt})
    if earlier:
        again = f"Write it again. It must also say, in these words: {'; '.join(lost)}."
        messages += [{"role": "assistant", "content": earlier}, {"role": "user", "content": again}]
    return messages


class LocalWriter(Writer):
    """A model of transformers in a folder: an encoder-decoder that maps prompts to descriptions, or a chat model.

    A decoder-only model is given `conversation`, and answers with what is most probable word by word, a second time
    with beams. An encoder-decoder, such as a T5 trained for this, is given the bare prompt and gives its beams at once,
    of which the first good one counts, and where none is good, samples, the same at each call. `max_tokens` is of a
    description. Raises UserError for any other folder.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", max_tokens: int = 256) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        from cogview3.fingerprints import folder_fingerprint
        from cogview3.prompts.text_models import check_folder, check_vocabulary, load_auto, load_tokenizer

        path = Path(folder)
        if not (path / "config.json").is_file():
            raise UserError(f"{folder} holds no model of transformers (config.json is missing); give its folder")
        check_folder(path)
        with as_user_error(
            f"{folder}: no language model that can be loaded", "code of its own is never run; copy it again"
        ):
            self._paired = bool(load_auto(AutoConfig, path).is_encoder_decoder)
            self._tokenizer = load_tokenizer(path)
            kind = AutoModelForSeq2SeqLM if self._paired else AutoModelForCausalLM
            self._model = load_auto(kind, path, use_safetensors=True, dtype="auto")
        check_vocabulary(self._tokenizer, self._model, path)
        if not self._paired and not self._tokenizer.chat_template:
            raise UserError(f"{folder}: a model without a chat template; give one that was trained to chat, or a T5")
        if device == "cpu":  # where half precision is slow, and too coarse for some models
            self._model = self._model.float()
        self._model = self._model.to(device).eval()
        self._max_tokens = max_tokens
        self.name = path.resolve().name
        self.identity = f"{folder_fingerprint(path)} {'beams' if self._paired else VERSION} {max_tokens}"

    @override
    def write(self, prompt: str, number: int, earlier: str, lost: Sequence[str]) -> list[str]:
        import torch

        if self._paired and number > 1:
            return []
        inputs = self._inputs(prompt, earlier, lost).to(self._model.device)
        how: dict[str, Any] = {"num_beams": 1, "do_sample": False}
        if self._paired and number:  # beams would say the same again
            how = {"do_sample": True, "top_p": 0.95, "num_return_sequences": SAMPLES}
        elif self._paired or number:
            how |= {"num_beams": 4, "num_return_sequences": 4}
        device = self._model.device
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            made = self._model.generate(**inputs, **how, max_new_tokens=self._max_tokens, max_length=None)
        start = 1 if self._paired else inputs["input_ids"].shape[1]  # an encoder-decoder's first token only begins
        whole = self._whole(made[:, start:])
        return self._tokenizer.batch_decode(whole, skip_special_tokens=True) if len(whole) else []

    def _whole(self, made: "torch.Tensor") -> "torch.Tensor":
        """Those of generated texts, (B, tokens), that came to their end before the limit."""
        import torch

        ends = self._model.generation_config.eos_token_id
        if ends is None:
            return made
        return made[torch.isin(made, torch.tensor(ends, device=made.device)).any(1)]

    def _inputs(self, prompt: str, earlier: str, lost: Sequence[str]) -> Any:
        if self._paired:
            return self._tokenizer([prompt], return_tensors="pt")
        return self._tokenizer.apply_chat_template(
            conversation(prompt, earlier, lost), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )


class Expander:
    """Expands prompts, and never fails for it. Also a pipeline's `prompt_expander`.

    Args:
        writer: the model.
        cache: folder that keeps expansions, one file each; made at the first write. None keeps none.
        prepare: of a prompt, what is asked for.
    """

    def __init__(
        self, writer: Writer, cache: str | Path | None = None, prepare: Callable[[str], Request] = Request
    ) -> None:
        self._writer, self._cache = writer, None if cache is None else Path(cache)
        self._prepare = prepare

    @property
    def name(self) -> str:
        """What the writer is called in reports."""
        return self._writer.name

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """The texts to draw for prompts; a warning is logged of each that stays as it is."""
        expansions = self.expand_all(prompts)
        for each in dict.fromkeys(expansions):
            if each.reason:
                logger.warning("A prompt is not expanded: %r: %s", each.prompt, each.reason)
        return [each.text for each in expansions]

    def expand(self, prompt: str) -> Expansion:
        """The expansion of one prompt, or the prompt with the reason why there is none."""
        return self.expand_all([prompt])[0]

    def expand_all(self, prompts: Sequence[str]) -> list[Expansion]:
        """As `expand`, of each of several prompts; a model that gave nothing for `MOST_FAILURES` is left in peace."""
        known: dict[str, Expansion] = {}
        failures: list[Exception] = []
        unasked = f"not asked for, after {MOST_FAILURES} failures in a row: "
        for prompt in dict.fromkeys(prompts):
            request = self._prepare(prompt)
            if request.reason:
                known[prompt] = Expansion(prompt, prompt, self._writer.name, request.reason)
                continue
            found, reason = self._read(prompt), unasked
            if found is None and len(failures) < MOST_FAILURES:
                reason = ""
                try:
                    found = self._expand(prompt, request)
                    failures = []
                except KeyboardInterrupt as stop:
                    kept = ", and kept for the next time" if self._cache and known else ""
                    raise type(stop)(f"{len(known)} of {len(set(prompts))} prompts expanded{kept}") from None
                except Exception as error:  # whatever a model or its library meets, no picture is lost for it
                    failures += [error] * (MOST_FAILURES if isinstance(error, Unusable) else 1)
            if found is None:
                last = failures[-1]
                reason += one_line(last, typed=not isinstance(last, OSError))
            known[prompt] = found or Expansion(prompt, prompt, self._writer.name, reason)
        return [known[prompt] for prompt in prompts]

    def _expand(self, prompt: str, request: Request) -> Expansion:
        """Ask for an expansion until one is good. Raises what the writer does."""
        faults: list[str] = []
        for asked in (request.text, *request.others):
            earlier = ""
            lost: list[str] = []
            for number in range(TRIES):
                judged = []
                for text in filter(None, map(tidy, self._writer.write(asked, number, earlier, lost))):
                    finished, against = request.finish(text)
                    found = find_faults(asked, text) + against
                    if not found:
                        return self._keep(Expansion(prompt, finished, self._writer.name))
                    judged.append((found, text))
                if judged:
                    lost, earlier = judged[0]
            faults = faults or lost
        reason = f"the expansion lost: {', '.join(faults)}" if faults else "the model gave no whole description"
        return Expansion(prompt, prompt, self._writer.name, reason)

    def _path(self, prompt: str) -> Path | None:
        if self._cache is None:
            return None
        key = hashlib.sha256("\0".join((_CHECK, self._writer.identity, prompt)).encode()).hexdigest()
        return self._cache / f"{key[:40]}.json"

    def _read(self, prompt: str) -> Expansion | None:
        path = self._path(prompt)
        if path is None or not path.is_file():
            return None
        try:
            held = Expansion(**read_json(path, "it is written again"))
            if not all(isinstance(value, str) for value in astuple(held)):
                raise TypeError("its entries are no texts")
            return held
        except (ValueError, TypeError) as error:
            logger.warning("%s is damaged (%s) and is made again", path, error)
            return None

    def _keep(self, expansion: Expansion) -> Expansion:
        path = self._path(expansion.prompt)
        if path is not None:
            try:
                write_text(path, json.dumps(asdict(expansion), ensure_ascii=False) + "\n")
            except (OSError, ValueError) as error:
                logger.warning("The expansion could not be cached: %s", error)
        return expansion


def find_faults(prompt: str, text: str) -> list[str]:
    """What speaks against an expansion: intent that it lost, another language, length."""
    faults = lost_intent(prompt, text)
    if not is_english(re.sub(r"[\"“«「『].*?[\"”»」』]", " ", text)):
        faults.append("English")
    if len(text) > MAX_CHARACTERS:
        faults.append(f"brevity ({len(text)} characters)")
    return faults


def tidy(text: str) -> str:
    """A model's description as one bare paragraph, as of `answers.plain`.

    "" of a thought that has no end, and so no description after it; and of words against answering.
    """
    bare = plain(text) or ""
    return "" if is_refusal(bare) else bare
