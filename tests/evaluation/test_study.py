"""The study: equal shares, blind pictures, votes that are kept once, and a report that finds what was simulated."""

import csv
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from scipy.optimize import minimize
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cogview3.cli.app import app as commands
from cogview3.config import UserError
from cogview3.evaluation.study import database
from cogview3.evaluation.study.analysis import analyze
from cogview3.evaluation.study.build import Plan, from_evaluation, read_study
from cogview3.evaluation.study.server import make_app
from tests.evaluation.study_worlds import NAMES, Server, davidson_votes, make_study

PLAN = Plan(annotators=4, tasks=6, checks=2, seed=1)


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, list[str]]:
    return tmp_path / "study", make_study(tmp_path / "study", PLAN)


def answer(client: TestClient, link: str, alignment: str = "left", aesthetics: str = "tie") -> dict | None:
    task = client.get(f"{link}/task").json()["task"]
    if task is None:
        return None
    body = {"task": task["id"], "alignment": alignment, "aesthetics": aesthetics, "seconds": 3.5}
    return body | {"answer": client.post(f"{link}/vote", json=body)}


def rows(folder: Path, query: str) -> list[tuple]:
    with sqlite3.connect(folder / database.DATABASE) as db:
        found = db.execute(query).fetchall()
    db.close()
    return found


def test_shares_are_equal_and_sides_balanced(study: tuple[Path, list[str]]) -> None:
    folder, links = study
    assert len(set(links)) == PLAN.annotators
    tasks = rows(folder, "SELECT annotator, left_system, right_system, prompt FROM task WHERE expected = ''")
    for annotator in range(PLAN.annotators):
        own = [task for task in tasks if task[0] == annotator]
        assert set(Counter(frozenset(task[1:3]) for task in own).values()) == {PLAN.tasks // 3}
        assert set(Counter(task[1:3] for task in own).values()) == {1}  # each pair once each way
    seen = Counter((frozenset(task[1:3]), task[3]) for task in tasks)
    assert max(seen.values()) == 1  # 4 annotators, 2 prompts of each pair, of 8: none twice
    assert len(rows(folder, "SELECT 1 FROM task WHERE expected != ''")) == PLAN.annotators * PLAN.checks


def test_the_server_loads_no_networks() -> None:
    """It starts at once, and is small, whatever else is installed."""
    line = "import sys, cogview3.evaluation.study.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0


def test_pictures_tell_nothing_of_their_system(study: tuple[Path, list[str]]) -> None:
    folder, links = study
    client = TestClient(make_app(folder))
    page = client.get(links[0]).text + json.dumps(client.get(f"{links[0]}/task").json())
    assert not [name for name in NAMES if name in page]
    for file in (folder / "pictures").iterdir():
        with Image.open(file) as image:
            assert image.info == {}
    task = client.get(f"{links[0]}/task").json()["task"]["id"]
    left, right = (client.get(f"{links[0]}/{task}/{side}.png") for side in ("left", "right"))
    assert left.headers["content-type"] == "image/png"
    assert left.content != right.content
    assert "default-src 'none'" in left.headers["content-security-policy"]


def test_a_vote_is_kept_once(study: tuple[Path, list[str]]) -> None:
    folder, links = study
    client = TestClient(make_app(folder))
    first = answer(client, links[0])
    assert first["answer"].json() == {"kept": True, "new": True, "done": 1, "total": 8}
    body = {key: first[key] for key in ("task", "alignment", "aesthetics", "seconds")}
    assert client.post(f"{links[0]}/vote", json=body).json()["new"] is False
    assert client.post(f"{links[0]}/vote", json={**body, "alignment": "right"}).status_code == 409
    assert rows(folder, "SELECT alignment, COUNT(*) FROM vote") == [("left", 1)]


def test_forged_requests_are_refused(study: tuple[Path, list[str]]) -> None:
    folder, links = study
    client = TestClient(make_app(folder))
    task = client.get(f"{links[1]}/task").json()["task"]["id"]
    body = {"task": task, "alignment": "left", "aesthetics": "tie", "seconds": 1}
    assert client.post(f"{links[0]}/vote", json=body).status_code == 403  # another's pair
    assert client.get(f"{links[0]}/{task}/left.png").status_code == 403
    for path in ("/a/guessed", "/a/guessed/task", f"/a/guessed/{task}/left.png"):
        assert client.get(path).status_code == 403
    assert client.post("/a/guessed/vote", json=body).status_code == 403
    assert client.post(f"{links[1]}/vote", json={**body, "task": 10**6}).status_code == 403
    for wrong in ({"alignment": "best"}, {"task": "1"}, {"more": 1}, {"seconds": -1}):
        assert client.post(f"{links[1]}/vote", json={**body, **wrong}).status_code == 422
    assert client.get("/static/study.db").status_code == 422
    assert client.get("/a/x/../../study.db").status_code in (403, 404)
    assert rows(folder, "SELECT COUNT(*) FROM vote") == [(0,)]


def test_all_is_judged_and_reported(study: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, links = study
    client = TestClient(make_app(folder))
    for link in links:
        while answer(client, link):
            pass
    assert client.get(f"{links[0]}/task").json() == {"done": 8, "total": 8, "task": None}
    done = CliRunner().invoke(commands, ["study", "report", str(folder), "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    failed = {row["annotator"] for row in result["excluded"]}
    votes = database.votes(folder / database.DATABASE)
    kept = [vote for vote in votes if not vote["expected"] and vote["annotator"] not in failed]
    assert result["votes"] == len(kept)
    assert any("side bias" in sentence for sentence in result["audits"])
    pair = result["questions"]["aesthetics"]["pairs"][0]
    assert (pair["tie"]["share"], pair["win"]["share"]) == (1.0, 0.0)
    assert result["questions"]["aesthetics"]["agreement"]["alpha"] is None
    written = list(csv.DictReader((folder / "report" / "votes.csv").read_text().splitlines()))
    assert len(written) == len(votes)
    assert "Audits" in (folder / "report" / "report.md").read_text()


def test_killed_servers_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    hammer(tmp_path, Plan(annotators=4, tasks=6, checks=0), kills=1)


@pytest.mark.slow
def test_fifty_annotators_at_once_and_two_kills(tmp_path: Path) -> None:
    hammer(tmp_path, Plan(annotators=50, tasks=30, checks=2), kills=2)


def hammer(tmp_path: Path, plan: Plan, kills: int) -> None:
    """Annotators who answer at once and go on through kills; every vote that was acknowledged is there, once."""
    links = make_study(tmp_path / "study", plan)
    server = Server(tmp_path / "study")
    acknowledged: list[dict] = []
    lock = threading.Lock()

    def annotate(link: str, number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while True:
                told = persist(lambda: client.get(f"{link}/task")).json()
                if told["task"] is None:
                    return
                choices = rng.choice(database.CHOICES, 2)
                body = {"task": told["task"]["id"], "seconds": 2.0}
                body |= dict(zip(database.QUESTIONS, map(str, choices), strict=True))
                reply = persist(lambda body=body: client.post(f"{link}/vote", json=body))
                assert reply.status_code == 200, reply.text
                with lock:
                    acknowledged.append(body)

    threads = [threading.Thread(target=annotate, args=(link, n)) for n, link in enumerate(links)]
    try:
        for thread in threads:
            thread.start()
        total = plan.annotators * (plan.tasks + plan.checks)
        for kill in range(kills):
            while len(acknowledged) < total * (kill + 1) // (kills + 1):
                time.sleep(0.01)
            server.kill()
            server.start()
        for thread in threads:
            thread.join(300)
    finally:
        server.kill()
    stored = {vote["task"]: vote for vote in database.votes(tmp_path / "study" / database.DATABASE)}
    assert len(acknowledged) == len(stored) == total
    for body in acknowledged:
        assert all(stored[body["task"]][question] == body[question] for question in database.QUESTIONS)


def persist(send) -> httpx.Response:
    """As the page does: the same request until there is an answer."""
    while True:
        try:
            return send()
        except httpx.TransportError:
            time.sleep(0.05)


def test_strengths_are_the_maximum_of_davidsons_likelihood() -> None:
    votes = davidson_votes([2.0, 1.0, 0.5], 0.3, annotators=20, tasks=60, prompts=40, seed=0)
    names = ["m0", "m1", "m2"]
    found = analyze(votes, names)["questions"]["alignment"]

    def loss(parameters: np.ndarray) -> float:
        logs, log_nu = np.append(parameters[:2], 0.0), parameters[2]
        pi, nu, total = np.exp(logs), np.exp(log_nu), 0.0
        rows = [(v["left_system"], v["right_system"], v["alignment"], 1.0) for v in votes]
        halves = [(a, b, side, 0.5) for i, a in enumerate(names) for b in names[i + 1 :] for side in ("left", "right")]
        counts = Counter()
        for a, b, choice, weight in rows + halves:
            counts[a, b, choice] += weight
        for (a, b, choice), weight in counts.items():
            left, right = pi[names.index(a)], pi[names.index(b)]
            tie = 2 * nu * np.sqrt(left * right)
            chance = {"left": left, "right": right, "tie": tie}[choice] / (left + right + tie)
            total -= weight * np.log(chance)
        return total

    best = minimize(loss, np.zeros(3), method="BFGS").x
    expected = np.exp(np.append(best[:2], 0.0))
    expected /= np.exp(np.log(expected).mean())
    assert [found["strengths"][name]["strength"] for name in names] == pytest.approx(expected, rel=1e-3)
    assert found["tie"]["nu"] == pytest.approx(np.exp(best[2]), rel=1e-3)


def recovered(seed: int) -> tuple[int, int]:
    """How many of the strengths' ratios and nu a simulation's intervals hold, and of how many."""
    truth, nu = np.array([2.0, 1.0, 0.6]), 0.4
    truth /= np.exp(np.log(truth).mean())
    votes = davidson_votes(truth, nu, annotators=30, tasks=60, prompts=60, seed=seed)
    inside = 0
    for figures in analyze(votes, ["m0", "m1", "m2"], seed)["questions"].values():
        bounds = [figures["strengths"][f"m{n}"]["interval"] for n in range(3)] + [figures["tie"]["interval"]]
        inside += sum(low <= value <= high for (low, high), value in zip(bounds, [*truth, nu], strict=True))
    return inside, 8


def test_simulated_strengths_are_found() -> None:
    inside = sum(recovered(seed)[0] for seed in range(3))
    assert inside >= 20  # of 24, each held with 0.95 or more: fewer than 20 come once in 40,000


@pytest.mark.slow
def test_a_hundred_simulations() -> None:
    found = [recovered(seed) for seed in range(100)]
    share = sum(inside for inside, _ in found) / sum(total for _, total in found)
    assert share >= 0.95


def test_a_system_that_never_loses_has_a_finite_strength() -> None:
    votes = davidson_votes([3.0, 1.0, 1.0], 0.2, 10, 30, 20, seed=3)
    for vote in votes:
        if "m0" in (vote["left_system"], vote["right_system"]):
            vote["alignment"] = "left" if vote["left_system"] == "m0" else "right"
    strengths = analyze(votes, ["m0", "m1", "m2"])["questions"]["alignment"]["strengths"]
    assert strengths["m0"]["strength"] > 10 * strengths["m1"]["strength"]
    assert np.isfinite(strengths["m0"]["interval"]).all()
    assert strengths["m1"]["strength"] > 1e-3


def test_audits_name_what_is_odd() -> None:
    votes = davidson_votes([1.0, 1.0, 1.0], 0.2, 6, 30, 20, seed=4)
    beats = {("m0", "m1"), ("m1", "m2"), ("m2", "m0")}
    for vote in votes:
        vote["alignment"] = "left" if (vote["left_system"], vote["right_system"]) in beats else "right"
    votes += [{**vote, "annotator": 0, "seconds": 0.2} for vote in votes for _ in range(3)]
    audits = "\n".join(analyze(votes, ["m0", "m1", "m2"])["audits"])
    for words in ("intransitive, alignment", "annotator 0 gave", "in under a second"):
        assert words in audits
    few = analyze(davidson_votes([1.0, 1.0, 1.0], 0.2, 2, 3, 5, seed=5), ["m0", "m1", "m2"])
    assert any("few votes: 2" in sentence for sentence in few["audits"])


def test_who_fails_the_checks_is_left_out_and_named() -> None:
    votes = davidson_votes([1.0, 1.0, 1.0], 0.2, 3, 30, 20, seed=6)
    checks = [{**votes[0], "annotator": who, "expected": "left"} for who in (0, 0, 1, 1)]
    for number, vote in enumerate(checks):
        vote["alignment"] = "left" if number < 2 else "right"
    result = analyze(votes + checks, ["m0", "m1", "m2"])
    assert result["excluded"] == [{"annotator": 1, "checks": 2, "right": 0}]
    assert (result["votes"], result["annotators"]) == (60, 2)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(2, 7, 0), "7 tasks cannot be shared equally by 3 pairs of systems: give 6"),
        (Plan(0, 6, 0), "0 annotators"),
    ],
)
def test_uneven_plans_are_refused(tmp_path: Path, plan: Plan, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_study(tmp_path / "study", plan)
    assert not (tmp_path / "study").exists()


def test_a_folder_with_other_things_is_not_replaced_by_a_study(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="study is not empty: give a new folder"):
        make_study(tmp_path / "study", PLAN)
    assert (tmp_path / "study" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("damage", [b"", b"no database" * 500, None])
def test_a_damaged_database_is_named(study: tuple[Path, list[str]], damage: bytes | None) -> None:
    path = study[0] / database.DATABASE
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096) if damage is None else damage)
    with pytest.raises(UserError, match=r"study\.db is damaged"):
        database.votes(path)


def test_a_taken_port_and_the_end_of_the_server_are_told(
    study: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        sockets[0].close()
        raise KeyboardInterrupt  # as uvicorn does when all is closed

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    done = CliRunner().invoke(commands, ["study", "serve", str(study[0]), "--port", "0"])
    assert done.exit_code == 130
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(commands, ["study", "serve", str(study[0]), "--port", str(port)])
    assert (done.exit_code, "choose another port" in done.stderr) == (2, True)


def test_a_damaged_study_is_named(study: tuple[Path, list[str]]) -> None:
    for systems in (None, 5, [], ["a"], ["a", 5]):
        (study[0] / "study.json").write_text(json.dumps({"systems": systems}))
        with pytest.raises(UserError, match=r"study\.json is damaged"):
            read_study(study[0])


def test_on_a_full_disk_a_vote_is_asked_for_again_in_one_line(
    study: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, links = study
    path, client = folder / database.DATABASE, TestClient(make_app(folder))
    with monkeypatch.context() as patch:
        patch.setattr(database, "vote", lambda db, *rest: fill_up(db))
        refused = answer(client, links[0])["answer"]
    assert (refused.status_code, database.votes(path)) == (503, [])
    assert capsys.readouterr().err == f"error: {path}: No space left on device\n"
    assert answer(client, links[0])["answer"].json()["new"]
    with pytest.raises(OSError, match="unable to open"), database.connect(folder / "none" / "study.db"):
        pass


def fill_up(db: sqlite3.Connection) -> None:
    """Write more than the file may hold, as on a full disk."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    db.executemany("INSERT INTO prompt VALUES (?, ?)", ((number, "x" * 5000) for number in range(1000, 1010)))


def test_a_study_is_never_overwritten_and_no_study_is_named(study: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = study
    arguments = ["study", "build", str(folder), *(f"--images={n}={folder}-{n}" for n in NAMES), "--count", "8"]
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 2
    assert str(folder) in done.stderr
    with pytest.raises(UserError, match=f"{tmp_path} holds no study"):
        read_study(tmp_path)
    with pytest.raises(UserError, match="no votes"):
        analyze(database.votes(folder / database.DATABASE), NAMES)


def test_only_evaluations_give_systems(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path / 'none'}: .*--out"):
        from_evaluation(tmp_path / "none")
    for name in ("one", "one-other-noise"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{tmp_path} .* 1 systems"):
        from_evaluation(tmp_path)
    (tmp_path / "pictures" / "two").mkdir()
    assert from_evaluation(tmp_path) == {name: tmp_path / "pictures" / name for name in ("one", "two")}
