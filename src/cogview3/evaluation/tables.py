"""An evaluation's figures as tables, for the terminal and for Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from cogview3.evaluation.response import columns

MAX_VALUES = 12
"""Kinds of fact with more values than this, such as things, get a table of their own."""


@dataclass
class Table:
    """A table of words; None among its rows is a line between them."""

    heads: Sequence[str]
    title: str = ""
    rows: list[list[str] | None] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(list(cells))

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place, head in enumerate(self.heads):  # of 80 columns intervals have theirs, and names what is left
            cells = [row[place] for row in self.rows if row is not None]
            least = max((len(cell) for cell in cells if " to " in cell), default=None) if place else 12
            table.add_column(head, min_width=least, overflow="fold")
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a report; what stands in cells means nothing to Markdown."""
        lines = [self.heads, ["---"] * len(self.heads), *(row for row in self.rows if row is not None)]
        body = "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)
        return (f"**{_plain(self.title)}**\n\n" if self.title else "") + body + "\n"


def _plain(cell: str) -> str:
    for sign in "\\`*_<>[]|":
        cell = cell.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return cell


def show(results: Mapping[str, Any]) -> list[Table]:
    """The figures as tables: of each model's facts, distances, scores, comparisons, responses, and what failed."""
    entries: Mapping[str, Any] = results["models"]
    first = next(iter(entries))
    tables = [table for name, entry in entries.items() if "scene" in entry for table in _scene_tables(name, entry)]
    if "frechet" in entries[first]:
        tables.append(_frechet_table(first, {name: entry["frechet"] for name, entry in entries.items()}))
    if any(entry.get("scene", {}).get("compared") for entry in entries.values()):
        tables.append(Table(["model", f"facts right, over {first}", "95 % interval", "difference", "95 % interval"]))
        for name, entry in entries.items():
            if figures := entry["scene"].get("compared"):
                keys = ("ratio", "ratio_interval", "difference", "interval")
                tables[-1].add(name, *(cell(figures[key]) for key in keys))
    tables += _score_tables(entries)
    if any("guidance_response" in entry for entry in entries.values()):
        heads = columns(entries[first]["guidance_response"])
        title = f"Change with guidance, against {first}'s: correlation and pooled R², of pixels and of 8 x 8 means"
        tables.append(Table(["model", *heads], title))
        for name, entry in entries.items():
            tables[-1].add(name, *map(cell, columns(entry["guidance_response"]).values()))
    if any(entry.get("failed") for entry in entries.values()):
        tables.append(Table(["model", "failed pictures", "the first", "reason"]))
        for name, entry in entries.items():
            if entry.get("failed"):
                index, reason = next(iter(entry["failures"].items()))
                tables[-1].add(name, str(entry["failed"]), index, reason)
    return tables


def _frechet_table(first: str, entries: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(["Fréchet distance", "of all pictures", "extrapolated", "95 % interval"])
    for name, entry in entries.items():
        label = f"{name}, other noise" if name == first else name
        own = entry.get("floor") if name == first else entry
        rows = {f"{label} to {first}": own, f"{name} to renders": entry.get("renders")}
        for title, figures in rows.items():
            if figures:
                table.add(title, *(cell(figures[key], 4) for key in ("distance", "extrapolated", "interval")))
    return table


def _score_tables(entries: Mapping[str, Any]) -> Iterator[Table]:
    """One table of all scorers' means, and of each one's groups of prompts; FID's distances."""
    names = [key for key, value in next(iter(entries.values())).items() if isinstance(value, dict) and "mean" in value]
    if names:
        table = Table(["model", "score", "mean", "95 % interval", "pictures", "against the first", "95 % interval"])
        for model, entry in entries.items():
            for name in names:
                figures, other = entry[name], entry[name].get("compared") or {}
                cells = [cell(figures["mean"], 4), cell(figures["interval"], 4), str(figures["pictures"])]
                table.add(model, name, *cells, cell(other.get("difference"), 4), cell(other.get("interval"), 4))
                if "overall" in figures:
                    table.add(
                        model, f"{name}, mean of {figures['tasks']} tasks", cell(figures["overall"], 4), *["-"] * 4
                    )
        yield table
    for name in names:
        for tag in next(iter(entries.values()))[name]["tags"]:
            table = Table([tag, *(f"{head}" for model in entries for head in (model, "95 % interval"))], name)
            values = dict.fromkeys(value for entry in entries.values() for value in entry[name]["tags"].get(tag, {}))
            for value in values:
                found = [entry[name]["tags"].get(tag, {}).get(value, {}) for entry in entries.values()]
                table.add(value, *(cell(each.get(key), 4) for each in found for key in ("mean", "interval")))
            yield table
    if any("fid" in entry for entry in entries.values()):
        table = Table(["model", "FID", "95 % interval", "pictures", "floor: halves of the real ones"])
        for model, entry in entries.items():
            figures = entry["fid"]
            floor = (figures.get("floor") or {}).get("distance")
            cells = [cell(figures["distance"]), cell(figures.get("interval")), str(figures["pictures"]), cell(floor)]
            table.add(model, *cells)
        yield table


def _scene_tables(name: str, entry: Mapping[str, Any]) -> Iterator[Table]:
    rows = {title: entry["scene"][key] for key, title in _COLUMNS.items() if entry["scene"][key]}
    table = Table(["share right", *rows, "95 % interval"], f"{name}: {how(entry)}")
    own = rows["model"]
    for key, label in _LINES.items():
        values = [row[key] for row in rows.values()]
        if any(value is not None for value in values):
            bounds = own["interval"] if key == "share" else own["intervals"][key]
            table.add(label, *(cell(value) for value in values), cell(bounds))
    for group in ("objects", "kinds", "tags"):
        if own[group]:
            table.rows.append(None)
        for key in own[group]:
            bounds = own["intervals"][group].get(key)
            label = f"{key} object{'s' * (key != '1')}" if group == "objects" else key
            table.add(label, *(cell(row[group].get(key)) for row in rows.values()), cell(bounds))
    table.rows.append(None)
    energy = entry["scene"]["gradient_energy"]
    cells = [cell(energy.get(key)) for key, title in _COLUMNS.items() if title in rows]
    table.add("gradient energy", *cells, "-")
    yield table
    yield from _value_tables(name, rows)


def _value_tables(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """Shares by what is stated: fills by kind, things by name, colors and so on; one table of short kinds together."""
    own = rows["model"]
    short = Table(["stated", *rows, "95 % interval"], f"{name}: by what is stated")
    for kind, shares in own["values"].items():
        table = short if len(shares) <= MAX_VALUES else Table(["stated", *rows, "95 % interval"], f"{name}: by {kind}")
        for value in sorted(shares, key=lambda value: (shares[value], value)) if table is not short else shares:
            found = [row["values"].get(kind, {}).get(value) for row in rows.values()]
            label = f"{kind}: {value}" if table is short else value
            table.add(label, *map(cell, found), cell(own["intervals"]["values"][kind][value]))
        if table is not short:
            yield table
    if short.rows:
        yield short


def how(entry: Mapping[str, Any]) -> str:
    """How a system was run, in words."""
    size = f"{entry['size']} x {entry['size']}"
    if entry.get("kind") == "images":
        return f"pictures of {entry['folder']}, {size}"
    if entry.get("kind") == "pipeline":
        return ", ".join([f"{key} {value}" for key, value in entry["settings"].items()] + [size])
    return f"{entry['steps']}+{entry['relay_steps'] * entry['relays']} steps, guidance {entry['guidance']:g}, {size}"


_COLUMNS = {
    "model": "model",
    "base_enlarged": "base enlarged",
    "chance": "chance",
    "ceiling": "ceiling",
    "ceiling_enlarged": "ceiling enlarged",
}
_LINES = {
    "share": "all facts",
    "fine": "fill and outline",
    "whole": "pictures wholly",
    "one_object_whole": "one-object pictures wholly",
    "seen": "seen combinations",
    "held_out": "held-out combinations",
}


def cell(value: Any, digits: int = 3) -> str:
    """A number, an interval or nothing, in words."""
    if value is None:
        return "-"
    return " to ".join(f"{bound:.{digits}f}" for bound in (value if isinstance(value, list) else [value]))
