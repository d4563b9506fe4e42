"""`sfic certs`, `token`, `grant`, `forget` and `audit`, against an edge over mutual TLS."""

from __future__ import annotations

import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from service_rig import start_process
from test_cli import Result, sfic  # noqa: F401  # the fixture that runs the CLI

from sfic.healthcheck import serves
from sfic.locations import demo_photograph
from sfic.processes import free_address
from sfic.service.identity import Identity
from sfic.service.tokens import TokenVerifier


@pytest.mark.parametrize("command", ["certs", "token", "grant", "forget", "audit"])
def test_help(command: str, sfic: Any) -> None:  # noqa: F811
    page = sfic(command, "--help")
    assert page.code == 0 and f"Usage: sfic {command}" in page.out


def test_certs_are_made_once_and_issued_anew(tmp_path: Path, sfic: Any) -> None:  # noqa: F811
    folder = tmp_path / "certs"
    made = sfic("certs", "init", "--folder", folder, "--host", "edge.lan")
    assert made.code == 0
    names = {"ca", "edge", "console", "camera", "analytics", "decoder", "nats", "operator", "admin"}
    assert {p.stem for p in folder.glob("*.pem") if not p.stem.endswith("-key")} - {
        "token-public"
    } == names
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for path in folder.glob("*-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "all there" in sfic("certs", "init", "--folder", folder).out
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    again = sfic("certs", "issue", "camera", "--role", "camera", "--folder", folder)
    assert again.code == 0 and (folder / "camera.pem").read_bytes() != before[folder / "camera.pem"]
    sfic("certs", "issue", "x", "--role", "robot", "--folder", folder).fails(2, "robot", "camera")
    sfic("certs", "issue", "x", "--folder", tmp_path).fails(2, "certs init")

    told = sfic("token", "anna", "--role", "operator", "--key", folder / "token-key.pem")
    verifier = TokenVerifier(folder / "token-public.pem")
    assert verifier.read(f"Bearer {told.out.strip()}") == ("anna", frozenset({"operator"}))
    public = folder / "token-public.pem"
    sfic("token", "anna", "--role", "operator", "--key", public).fails(2, "public key")


def test_an_edge_over_tls_from_a_camera_to_forgetting(
    tmp_path: Path,
    sfic: Any,  # noqa: F811
) -> None:
    certs, address = tmp_path / "certs", free_address()
    assert sfic("certs", "init", "--folder", certs).code == 0
    tls = [f"--tls-certificate={certs}/edge.pem", f"--tls-key={certs}/edge-key.pem"]
    edge = start_process(
        "edge_encoder",
        f"--listen={address}",
        "--metrics-listen=",
        f"--data-dir={tmp_path / 'edge'}",
        "--workers=1",
        f"--tls-client-ca={certs}/ca.pem",
        *tls,
        log=tmp_path / "edge.log",
    )
    own = Identity.of_server(certs / "edge.pem", certs / "edge-key.pem", certs / "ca.pem")

    def call(role: str, *arguments: object) -> Result:
        result: Result = sfic(*arguments, "--edge", address, "--identity", certs / role)
        return result

    try:
        deadline = time.monotonic() + 90
        while not serves(address, 0.5, own):
            assert edge.poll() is None and time.monotonic() < deadline
        call("operator", "camera", demo_photograph()).fails(4, "operator", "may not call")
        sent = call("camera", "camera", demo_photograph())
        (face_id,) = re.findall(r"\b[0-9A-Z]{26}\b", sent.out)

        call("operator", "grant", face_id).fails(2, "purpose")
        call("operator", "grant", "--purpose", "x").fails(2, "scope")
        call("camera", "grant", face_id, "--purpose", "x").fails(4, "may not call")
        made = call("operator", "grant", face_id, "--purpose", "a visitor asks", "--hours", 2)
        assert made.code == 0 and f"up to enhanced of face {face_id}" in made.out
        listed = call("operator", "grant", "--list").out
        assert listed.strip() == made.out.removeprefix("granted: ").strip()
        grant_id = listed.split()[0]
        assert call("operator", "grant", "--revoke", grant_id).out.startswith(f"ended: {grant_id}")
        assert call("operator", "grant", "--list").out == ""
        call("operator", "grant", "--revoke", "none").fails(2, "none")

        call("operator", "forget", face_id, "--reason", "asked").fails(4, "may not call")
        call("admin", "forget", face_id).fails(2, "reason")
        assert "1 face kept" in call("admin", "forget", face_id, "--reason", "asked").out
        again = call("admin", "forget", "--before", "2000-01-01", "--reason", "old")
        assert again.code == 0 and "0 faces" in again.out

        call("operator", "audit", "show").fails(4, "may not call")
        shown = call("admin", "audit", "show").out
        assert [line.split("  ")[1] for line in shown.splitlines()] == [
            "grant",
            "revoke",
            "forget ordered",
            "forgotten",
            "forget ordered",
            "forgotten",
        ]
        assert "by operator" in shown and "by admin" in shown and "'a visitor asks'" in shown
        assert "6 lines, none changed or missing" in call("admin", "audit", "verify").out
    finally:
        edge.terminate()
        assert edge.wait(30) == 0
    assert "audit_head" in (tmp_path / "edge.log").read_text()
