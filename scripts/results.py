"""Makes docs/results.md and its plots of a report that `cogview3 reproduce` wrote; run by `make results`."""

import io
import json
import re
import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main(reported: Path) -> None:
    """Copy the report, and its plots in 64 colors, which is a third of their size."""

    def keep(match: re.Match[str]) -> str:
        name, file = match.groups()
        data = io.BytesIO()
        with Image.open(reported / file) as plot:
            plot.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(data, format="PNG", optimize=True)
        (DOCS / "images" / f"results_{file}").write_bytes(data.getvalue())
        return f"![{name}](images/results_{file})"

    text = re.sub(r"!\[([^\]]*)\]\(([\w.]+)\)", keep, (reported / "report.md").read_text("utf-8"))
    title, rest = text.split("\n", 1)
    result = json.loads((reported / "results.json").read_text("utf-8"))
    command = "Made by `make results` (half an hour of two cores), to be run again when the bundled model changes.\n"
    if any(row["way"]["unet"] for row in result["rows"]):
        command = "Made by `make results TRAIN=--train` (an hour and a half of trainings on two cores, half an hour\n"
        command += "of measurement), to be run again when the bundled model changes.\n"
    if result["quick"]:
        command = "A look, by `cogview3 reproduce --quick`: `make results` makes the whole of it in half an hour.\n"
    (DOCS / "results.md").write_text(f"{title}\n\n{command}{rest}", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
