"""Triplets of image, old caption and new caption, collected from a strong vision-language model.

One request an image asks for questions, answers and the merged caption. What comes back is on the disk before anything
else happens (`journal`), so that the same command resumes where it stopped, however it was stopped.
"""

import json
import logging
import queue
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cogview3.captions import instruction
from cogview3.captions.journal import Journal, Name, in_order, read_triplets
from cogview3.captions.rows import admitted
from cogview3.captions.rules import violations
from cogview3.checkpoints import write_text
from cogview3.config import UserError
from cogview3.data.addresses import filesystem, is_local
from cogview3.data.entries import Entry
from cogview3.data.groups import Shard
from cogview3.data.report import Report, Skipped
from cogview3.data.sidecars import read_keep
from cogview3.prompts.budget import Usage
from cogview3.prompts.endpoint import Endpoint, EndpointError, GaveUp, Refused, Spent, Stopped, Unusable

logger = logging.getLogger(__name__)

TRIES = 3
"""Times that an image is asked about until there is an answer that can be used."""

MOST_IN_A_ROW = 10
"""Images in a row that the endpoint may give no answer for, before the run ends."""

Progress = Callable[[int, str], None]
"""Takes the images that are dealt with, and what was spent, in words."""


@dataclass
class _Run:
    """What threads share of one run.

    `refused` holds images that the endpoint refused before it answered anything: it may be the request that is wrong,
    not they. None once there was an answer.
    """

    journal: Journal
    endpoint: Endpoint
    side: int
    progress: Progress
    work: "queue.Queue[tuple[Name, Entry] | None]"
    lock: threading.Lock = field(default_factory=threading.Lock)
    report: Report = field(default_factory=Report)
    counts: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    refused: dict[Name, str] | None = field(default_factory=dict)
    in_a_row: int = 0
    stopped: str = ""
    error: BaseException | None = None

    def halt(self, error: BaseException | None = None, stopped: str = "") -> None:
        """Let nothing new begin; what is under way is waited for."""
        with self.lock:
            self.error = self.error or error
            self.stopped = self.stopped or stopped
        self.endpoint.stop.set()

    def tell(self, what: str) -> None:
        """Count an image that was dealt with."""
        with self.lock:
            self.counts[what] += 1
            done = sum(self.counts[each] for each in ("done", "aside", "skipped", "repeated", "unanswered"))
            self.progress(done, cost(self.endpoint.budget.spent))

    def put_aside(self, name: Name, reason: str, usage: Usage) -> None:
        """Give an image up."""
        self.journal.note("aside", name, usage, reason=reason)
        self.tell("aside")


def collect(
    shards: Sequence[Shard],
    endpoint: Endpoint,
    out: Path,
    *,
    count: int | None = None,
    every: int = 1,
    side: int = 768,
    concurrency: int = 8,
    again: bool = False,
    part_rows: int = 1000,
    progress: Progress = lambda done, note: None,
) -> dict[str, Any]:
    """Ask about the images of shards, in their order, and write the triplets.

    Images are told apart by their files' content, so that none is paid for twice. Left alone are those with a triplet
    in `out`, which is told where they lie now, and, unless `again`, those put aside or under way when a run was killed.
    Keep sidecars are obeyed. A budget of the endpoint counts for all runs into `out` together.

    `count` and `every` consider only the first so many images, and only every Nth; pictures are brought down to `side`
    pixels; a part has `part_rows` triplets. Returns the report, in plain types.

    Raises UserError for a value out of range, or where `out` belongs to other settings; EndpointError where the
    endpoint cannot be used: what was answered is kept.
    """
    limits = {"count": (count, 1), "every": (every, 1), "side": (side, 64), "concurrency": (concurrency, 1)}
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise UserError(f"{name} {value}: give {least} or more")
    settings = {"model": endpoint.model, "instruction": instruction.VERSION, "side": side}
    with Journal(out, settings, part_rows) as journal:
        before = len(journal.done)
        endpoint.budget.add(journal.spent)
        run = _Run(journal, endpoint, side, progress, queue.Queue(maxsize=concurrency))
        threads = [threading.Thread(target=_work, args=(run,), daemon=True) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        try:
            _feed(run, _candidates(shards, every, count, run), again)
            _finish(run, threads)
        except BaseException as error:
            logger.warning(
                "Waiting for answers to running requests, which are charged; interrupt again to stop without them."
            )
            run.halt()
            _finish(run, threads)
            if isinstance(error, KeyboardInterrupt):
                new = len(journal.done) - before
                message = f"{len(journal.done)} triplets in {out}, {new} of them new; the same command resumes"
                raise type(error)(message) from None
            raise
        finally:
            journal.write_part()
            _write_aside(out, journal)
        if run.error is not None:
            raise run.error
        if run.refused:
            reason, count = next(iter(run.refused.values())), len(run.refused)
            raise Unusable(f"{reason}; and so for all that was asked ({count} images), which a later run asks again")
        if run.unanswered and not run.counts["done"]:
            raise GaveUp(next(iter(run.unanswered)))
        return _report(run, out, before)


def cost(spent: Usage) -> str:
    """What was spent, in words."""
    money = f", {spent.money:.4f} in money" if spent.money else ""
    return f"{spent.requests} requests, {spent.tokens} tokens{money}"


def _candidates(shards: Sequence[Shard], every: int, count: int | None, run: _Run) -> Iterator[tuple[Name, Entry]]:
    """Images, in order."""
    given = 0
    for shard in shards:
        address, keep = whole_address(shard.address), read_keep(shard)
        for group in shard.groups(piece=0, pieces=every):
            if count is not None and given >= count:
                return
            try:
                entry = admitted(group, keep)
            except Skipped as reason:
                with run.lock:
                    run.report.skip(reason)
                continue
            given += 1
            yield Name.of(entry.picture, address, entry.key), entry


def whole_address(address: str) -> str:
    """A shard's address as triplets hold it: absolute where it is local, so that it means the same from anywhere."""
    fs, path = filesystem(address)
    return path if is_local(fs) else fs.unstrip_protocol(path)


def _is_there(address: str) -> bool:
    """Whether a shard still lies where a triplet says; what cannot be reached counts as there."""
    fs, path = filesystem(address)
    try:
        return bool(fs.exists(path))
    except OSError:
        return True


def _feed(run: _Run, candidates: Iterator[tuple[Name, Entry]], again: bool) -> None:
    """Give the threads what is still to be asked, until it ends or they halt."""
    journal = run.journal
    seen: set[Name] = set()
    there = lru_cache(None)(_is_there)
    for name, entry in candidates:
        if run.endpoint.stop.is_set():
            return
        if name in seen:
            run.tell("repeated")
            continue
        seen.add(name)
        known = journal.done.get(name)
        moved = known is not None and (known.shard, known.key) != (name.shard, name.key)
        if known is not None and moved and (known.shard == name.shard or not there(known.shard)):
            journal.note("moved", name)
            run.counts["moved"] += 1
        if known is not None or (not again and (name in journal.aside or name in journal.doubtful)):
            run.tell("skipped")
            continue
        while not run.endpoint.stop.is_set():
            try:
                run.work.put((name, entry), timeout=0.5)
                break
            except queue.Full:
                continue


def _finish(run: _Run, threads: Sequence[threading.Thread]) -> None:
    """Wait for the threads to end."""
    for thread in threads:
        while thread.is_alive():
            with suppress(queue.Full):
                run.work.put_nowait(None)
            thread.join(0.05)


def _work(run: _Run) -> None:
    while (item := run.work.get()) is not None:
        if run.endpoint.stop.is_set():
            continue
        try:
            _one(run, *item)
        except BaseException as error:  # the main thread raises it
            run.halt(error)


def _one(run: _Run, name: Name, entry: Entry) -> None:
    """Ask about one image, and note what comes of it."""
    try:
        picture = entry.decode()
    except Skipped as reason:
        with run.lock:
            run.report.skip(reason)
        run.tell("skipped")
        return
    messages = instruction.conversation(picture.image, entry.old, run.side)
    total, fault, usage = Usage(), "", Usage()
    for number in range(TRIES):
        if number:
            run.journal.note("paid", name, usage)
            with run.lock:
                run.counts["asked_again"] += 1
        run.journal.note("asked", name)
        try:
            answer = run.endpoint.chat(messages, instruction.SCHEMA)
        except EndpointError as error:
            _no_answer(run, name, error)
            return
        with run.lock:
            run.in_a_row = 0
        _settle_refused(run)
        usage, total = answer.usage, total + answer.usage
        if answer.refused:
            run.put_aside(name, "the model refused", usage)
            return
        try:
            parsed, repaired = instruction.read_answer(answer.text)
        except instruction.Invalid as error:
            fault = "cut off at the token limit" if answer.cut else str(error)
            messages = instruction.asked_again(messages, answer.text, fault)
            continue
        row = {
            **asdict(name),
            "old": entry.old,
            "queries": [query.model_dump() for query in parsed.queries],
            "new": parsed.result,
            "model": run.endpoint.model,
            "usage": total.to_dict(),
        }
        run.journal.finish(name, row, usage)
        with run.lock:
            run.counts["repaired"] += repaired
        run.tell("done")
        return
    run.put_aside(name, f"unusable answer: {fault}", usage)


def _no_answer(run: _Run, name: Name, error: EndpointError) -> None:
    """Put an image aside that the endpoint refuses; leave it to a later run where the endpoint itself fails."""
    if isinstance(error, Refused):
        _refused(run, name, error)
        return
    run.journal.note("left", name, error.usage)
    if isinstance(error, Stopped):
        return
    if isinstance(error, Spent):
        run.halt(stopped=str(error))
        return
    if not isinstance(error, GaveUp):
        raise error
    with run.lock:
        run.unanswered[str(error)] += 1
        run.in_a_row += 1
        hopeless = run.in_a_row >= MOST_IN_A_ROW
    run.tell("unanswered")
    if hopeless:
        raise error


def _refused(run: _Run, name: Name, error: Refused) -> None:
    """Put a refused image aside, once it is known that the endpoint answers others.

    Raises Unusable where it refused the first `MOST_IN_A_ROW`, which are then left to a later run.
    """
    with run.lock:
        waits = run.refused is not None
        if run.refused is not None:
            run.journal.note("left", name, error.usage)
            run.refused[name] = f"refused: {error}"
        refusals = len(run.refused or ())
    if not waits:
        run.put_aside(name, f"refused: {error}", error.usage)
    elif refusals >= MOST_IN_A_ROW:
        raise Unusable(f"{error}; and so for the first {refusals} images, so it may be the request that is wrong")


def _settle_refused(run: _Run) -> None:
    """Put the images aside that were refused so far."""
    with run.lock:
        refused, run.refused = run.refused, None
    for name, reason in (refused or {}).items():
        run.put_aside(name, reason, Usage())


def _write_aside(out: Path, journal: Journal) -> None:
    """`aside.jsonl`: what was set aside or is in doubt, with reasons."""
    reasons = journal.aside | dict.fromkeys(journal.doubtful, "in doubt: under way when the run was killed")
    rows = [{"shard": each.shard, "key": each.key, "reason": reasons[each]} for each in in_order(reasons)]
    write_text(out / "aside.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _report(run: _Run, out: Path, before: int) -> dict[str, Any]:
    journal, counts = run.journal, run.report.to_dict()
    triplets = read_triplets(out).select(["old", "new"]).to_pydict() if journal.done else {"old": [], "new": []}
    rules = Counter(rule for caption in triplets["new"] for rule in violations(caption))
    words = {
        name: statistics.median(len(text.split()) for text in triplets[name]) if triplets[name] else 0
        for name in triplets
    }
    return {
        "out": str(out),
        "model": run.endpoint.model,
        "triplets": len(journal.done),
        "new": len(journal.done) - before,
        "aside": dict(Counter(journal.aside.values()).most_common()),
        "in_doubt": len(journal.doubtful),
        "unanswered": dict(run.unanswered),
        **{name: counts[name] for name in ("broken", "filtered")},
        **{name: run.counts[name] for name in ("moved", "repeated", "repaired", "asked_again")},
        "schema": run.endpoint.takes_schema,
        "rules": dict(rules.most_common()),
        "words": words,
        "spent": run.endpoint.budget.spent.to_dict(),
        "stopped": run.stopped or None,
    }
