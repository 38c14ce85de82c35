"""Type check by mypy, with a ratchet: no part of the package may have more errors than `mypy_errors.json` allows.

Parts that the file does not name must have none. `--update` lowers the numbers to those of now; it raises none.

    python scripts/check_types.py [--update]
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMITS = Path(__file__).with_name("mypy_errors.json")
ERROR = re.compile(r"(?:src/cogview3|tests)/(\w+)(?:\.py)?[/:].*: error: ")


def errors() -> list[str]:
    """Lines of errors that mypy prints. Raises SystemExit where it fails otherwise."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"mypy failed:\n{done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if ERROR.match(line.replace("\\", "/"))]


def count(lines: list[str]) -> Counter[str]:
    """Errors by part: a folder or a module of the package, or the test of what users see of it."""
    return Counter(match[1] for line in lines if (match := ERROR.match(line.replace("\\", "/"))))


def exceeded(found: Counter[str], limits: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Parts with more errors than allowed: (errors, limit)."""
    return {part: (number, limits.get(part, 0)) for part, number in found.items() if number > limits.get(part, 0)}


def main(arguments: list[str]) -> int:
    """Exit code: 1 where a part has more errors than before."""
    lines, limits = errors(), json.loads(LIMITS.read_text("utf-8"))
    found = count(lines)
    if worse := exceeded(found, limits):
        print("\n".join(line for line in lines if count([line]).keys() & worse.keys()))
        for part, (number, limit) in sorted(worse.items()):
            print(f"{part}: {number} errors of types, at most {limit} are allowed", file=sys.stderr)
        return 1
    lower = {part: found[part] for part in sorted(limits) if found[part]}
    if "--update" in arguments:
        LIMITS.write_text(json.dumps(lower, indent=2) + "\n", encoding="utf-8")
    elif lower != limits:
        print("fewer errors of types than allowed: run python scripts/check_types.py --update", file=sys.stderr)
    print(f"types: {found.total()} errors, {sum(limits.values())} allowed; every part that is not listed has none")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
