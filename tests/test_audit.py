"""The audit log: whole after any stop, and no line changed, removed or put in unseen."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from test_cli import Result, sfic  # noqa: F401  # the fixture that runs the CLI

from sfic.audit import FIRST, AuditLog, Verdict, read_log, verify_lines


def fill(path: Path, count: int = 12) -> list[str]:
    """A log with lines; returns them."""
    log = AuditLog(path)
    for number in range(count):
        what = {"face_id": f"FACE{number}", "layers": ["basic"]}
        log.append("reconstruct", who="anna", why=f"case {number}: \u00fc\n", what=what)
    log.close()
    return path.read_text().splitlines()


def verify(path: Path, noted: str = "") -> Verdict:
    lines, head = read_log(path)
    return verify_lines(lines, head, noted)


def test_a_whole_log_has_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert verify_lines([], FIRST).problems == []
    lines = fill(path)
    verdict = verify(path)
    assert (verdict.problems, verdict.lines) == ([], 12)
    assert verdict.head == json.loads(lines[-1])["hash"]
    assert json.loads(lines[3])["why"] == "case 3: \u00fc\n"
    for name in ("audit.jsonl", "audit.jsonl.head"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    more = fill(path, 3)
    assert more[:12] == lines and verify(path).problems == []
    assert verify(path, noted=verdict.head).problems == [], "a head noted earlier is in it"
    assert verify(path, noted="a" * 64).problems != []


def test_every_removed_swapped_or_doubled_line_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = fill(path)
    for at in range(len(lines)):
        without = lines[:at] + lines[at + 1 :]
        path.write_text("".join(f"{line}\n" for line in without))
        assert verify(path).problems, f"line {at + 1} removed"
        path.write_text("".join(f"{line}\n" for line in [*lines[:at], lines[at], *lines[at:]]))
        assert verify(path).problems, f"line {at + 1} doubled"
    path.write_text("".join(f"{line}\n" for line in [lines[1], lines[0], *lines[2:]]))
    assert verify(path).problems
    path.write_text("")
    assert verify(path).problems == ["lines at the end are missing, or were added"]


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    fill(path)
    whole, chance = path.read_bytes(), random.Random(1)
    for _ in range(300):
        changed = bytearray(whole)
        at = chance.randrange(len(whole))
        changed[at] ^= 1 << chance.randrange(8)
        # A space for a space-like byte between fields would spell the same record.
        if json_same(whole, bytes(changed)):
            continue
        path.write_bytes(bytes(changed))
        assert verify(path).problems, at


def json_same(before: bytes, after: bytes) -> bool:
    try:
        return [json.loads(x) for x in before.splitlines()] == [
            json.loads(x) for x in after.splitlines()
        ]
    except ValueError:
        return False


def test_a_line_that_is_forged_with_its_own_hash_breaks_the_chain(tmp_path: Path) -> None:
    from sfic.audit import _hash

    path = tmp_path / "audit.jsonl"
    lines = fill(path)
    record = json.loads(lines[4])
    record.pop("hash")
    record["who"] = "nobody"
    record["hash"] = _hash(record)
    path.write_text("".join(f"{x}\n" for x in [*lines[:4], json.dumps(record), *lines[5:]]))
    assert verify(path).problems == ["line 6 does not follow the line before it"]


def test_a_log_cut_while_nobody_wrote_stays_broken_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = fill(path)
    path.write_text("".join(f"{line}\n" for line in lines[:-2]))
    fill(path, 2)
    assert verify(path).problems
    path.write_text("".join(f"{line}\n" for line in lines[:-2]))
    (tmp_path / "audit.jsonl.head").unlink()
    fill(path, 2)
    assert verify(path).problems, "taking the head along does not help"


def test_a_stop_at_any_byte_of_a_line_is_repaired(tmp_path: Path) -> None:
    path, head = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.head"
    fill(path, 3)
    before, old_head = path.read_bytes(), head.read_bytes()
    fill(path, 1)
    after = path.read_bytes()
    for kept in (len(before), len(before) + 1, (len(before) + len(after)) // 2, len(after)):
        path.write_bytes(after[:kept])
        head.write_bytes(old_head)
        fill(path, 1)
        verdict = verify(path)
        assert verdict.problems == []
        assert verdict.lines == (5 if kept == len(after) else 4)


def test_the_command_line_shows_and_verifies(tmp_path: Path, sfic: Any) -> None:  # noqa: F811
    path = tmp_path / "audit.jsonl"
    lines = fill(path)
    told = sfic("audit", "show", path)
    assert told.code == 0 and told.out.count("\n") == 12
    assert "reconstruct  by anna" in told.out and "face_id=FACE3" in told.out
    good = sfic("audit", "verify", path)
    assert good.code == 0 and "12 lines" in good.out
    head = good.out.split()[-1]
    assert sfic("audit", "verify", path, "--head", head).code == 0
    path.write_text("".join(f"{line}\n" for line in lines[1:]))
    broken: Result = sfic("audit", "verify", path)
    broken.fails(1, "line 1 does not follow")
    sfic("audit", "verify", tmp_path / "none").fails(4, "none")


@pytest.mark.parametrize("junk", ["[]", "1", "{}", "\x00", '{"hash": 1, "previous": 2}', "x" * 99])
def test_what_is_no_log_is_told(junk: str) -> None:
    assert verify_lines([junk], FIRST).problems[0] == "line 1 is not one of an audit log"
