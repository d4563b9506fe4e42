"""The command line: what it prints, the codes it exits with, and the commands of the README."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfic.analysis import EXPRESSIONS
from sfic.cli import main
from sfic.container import read_container
from sfic.healthcheck import serves, serves_page
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.processes import free_address

ROOT = Path(__file__).parent.parent
COMMANDS = (
    *("encode", "decode", "info", "analyze", "serve", "camera", "reconstruct", "demo", "eval"),
    "results",
)
PROVIDER = r"OpenVINO|(CPU|CUDA)(ExecutionProvider)?"
README_PORTS = (50051, 50052, 50053, 50080, 9101, 9102, 9103, 9105)


class Result:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def fails(self, code: int, *words: str) -> None:
        """One clear line on stderr, nothing on stdout, and this exit code."""
        assert (self.code, self.out) == (code, ""), self.err
        assert self.err.startswith("sfic: ") and self.err.count("\n") == 1, self.err
        for word in words:
            assert word in self.err, self.err


@pytest.fixture
def sfic(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the CLI in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="module")
def face_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .sfic file made by the CLI from the demo's photograph."""
    target = tmp_path_factory.mktemp("faces") / "astronaut.sfic"
    run_process("encode", demo_photograph(), "-o", target)
    return target


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .sfic file of a picture with the same person twice, the smaller one on the right."""
    folder = tmp_path_factory.mktemp("two")
    photograph = Image.open(demo_photograph()).convert("RGB")
    picture = Image.new("RGB", (512 + 384, 512), "grey")
    picture.paste(photograph, (0, 0))
    picture.paste(photograph.resize((384, 384)), (512, 64))
    picture.save(folder / "two.png")
    run_process("encode", folder / "two.png")
    return folder / "two.sfic"


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sfic", *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


def test_help_of_every_command(sfic: Any) -> None:
    overview = sfic("--help")
    assert overview.code == 0
    for command in COMMANDS:
        assert command in overview.out
        page = sfic(command, "--help")
        assert page.code == 0 and "Usage: sfic " + command in page.out
    assert sfic().out == overview.out


def test_help_starts_quickly_and_loads_nothing_heavy() -> None:
    """Under 0.5 s of CPU time, best of three."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_process("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times
    code = (
        "import sys, sfic.cli; print([m for m in ('numpy', 'torch', 'cv2', 'grpc', 'onnxruntime', "
        "'av', 'PIL') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_wrong_input_is_one_line_and_code_2(sfic: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture, no faces")
    sfic("encode").fails(2, "IN")
    sfic("encode", tmp_path / "missing.png").fails(2, "missing.png", "not exist")
    sfic("encode", tmp_path).fails(2)
    sfic("encode", text).fails(2)
    sfic("encode", demo_photograph(), "--rate", 10).fails(2, "--rate")
    sfic("encode", demo_photograph(), "--rate", 3, "--target-bytes", 500).fails(2, "exclude")
    sfic("encode", demo_photograph(), "--effort", "most").fails(2, "--effort")
    sfic("encode", demo_photograph(), "--provider", "tpu").fails(2, "--provider")
    sfic("info", text).fails(2)
    sfic("analyze", text).fails(2)
    sfic("decode", text, "-o", tmp_path / "x.png").fails(2)
    sfic("decode", text).fails(2, "--output")
    sfic("decode", text, "-o", tmp_path / "x.png", "--size", 0).fails(2, "--size")
    sfic("decode", text, "-o", tmp_path / "x.docx").fails(2, "x.docx")
    sfic("decode", text, "-o", tmp_path / "x.png", "--layers", "top").fails(2, "--layers")
    sfic("reconstruct", "X", "-o", "x.docx").fails(2, "x.docx")
    sfic("serve", "everything").fails(2)
    sfic("serve", "edge", "--rate", 11).fails(2, "edge.rate")
    sfic("serve", "edge", "--no-such", 1).fails(2, "--no-such")
    sfic("serve", "all", "--rate", 5).fails(2, "serve all")
    sfic("camera", tmp_path / "nothing.mp4", "--edge", free_address()).fails(2, "nothing.mp4")
    sfic("demo", tmp_path / "nothing.jpg").fails(2, "nothing.jpg")
    sfic("paint").fails(2, "paint")
    assert sorted(tmp_path.iterdir()) == [text]


def test_a_bad_settings_file_names_the_field(sfic: Any, tmp_path: Path) -> None:
    file = tmp_path / "sfic.toml"
    file.write_text("[edge]\nrat = 5\n")
    sfic("serve", "edge", "--config", file).fails(2, "edge.rat")
    sfic("serve", "all", "--config", file).fails(2, "edge.rat")


def test_settings_of_a_service_are_listed(sfic: Any) -> None:
    page = sfic("serve", "edge", "--", "--help")
    assert page.code == 0 and "--retention-hours" in page.out


def test_no_face_is_code_3(sfic: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((300, 400, 3), 120, np.uint8)).save(tmp_path / "wall.png")
    sfic("encode", tmp_path / "wall.png").fails(3, "wall.png", "no face")
    assert not (tmp_path / "wall.sfic").exists()


def test_what_is_not_there_is_code_4(
    sfic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = free_address()
    sfic("reconstruct", "X", "-o", tmp_path / "x.png", "--decoder", nobody).fails(4, nobody)
    monkeypatch.setenv("SFIC_MODELS", str(tmp_path / "none"))
    sfic("encode", demo_photograph()).fails(4, "SFIC_MODELS")


def test_effort_2_without_torch_names_the_extra(tmp_path: Path) -> None:
    """With torch hidden where it is installed: an import finder that knows no torch."""
    code = (
        "import importlib.util as u, sys; real = u.find_spec; "
        "u.find_spec = lambda n, *a: None if n == 'torch' else real(n, *a); "
        "from sfic.cli import main; main(sys.argv[1:])"
    )
    arguments = ["encode", str(demo_photograph()), "--effort", "2", "-o", str(tmp_path / "x.sfic")]
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    Result(ended.returncode, ended.stdout, ended.stderr).fails(4, "sfic[train]")


def test_a_missing_onnxruntime_names_both_extras() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None; "
        "from sfic.cli import main; main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "encode", str(demo_photograph())],
        capture_output=True,
        text=True,
        timeout=60,
    )
    Result(ended.returncode, ended.stdout, ended.stderr).fails(4, "sfic[cpu]", "sfic[gpu]")


def test_info_counts_what_the_file_holds(sfic: Any, face_file: Path) -> None:
    (face,) = read_container(face_file)
    facts = json.loads(sfic("info", face_file, "--json").out)
    assert facts["model_bundle"] == face.model_bundle_id
    (told,) = facts["faces"]
    assert told["layers"] == [
        {"name": name, "bytes": len(packet)} for name, packet in face.layers.items()
    ]
    assert [layer["name"] for layer in told["layers"]] == ["basic", "middle", "enhanced"]
    assert told["total_bytes"] == sum(layer["bytes"] for layer in told["layers"])
    assert told["bpp_1024"] == pytest.approx(8 * told["total_bytes"] / 1024**2)
    assert face.source_size is not None
    assert told["bpp_source"] == pytest.approx(8 * told["total_bytes"] / face.source_size**2)
    assert str(face.total_bytes) in sfic("info", face_file).out


def test_decode_writes_the_layer_and_size_asked_for(
    sfic: Any, face_file: Path, tmp_path: Path
) -> None:
    pictures = {}
    for layers in ("basic", "middle", "enhanced"):
        target = tmp_path / f"{layers}.png"
        assert sfic("decode", face_file, "--layers", layers, "--size", 128, "-o", target).code == 0
        pictures[layers] = np.asarray(Image.open(target))
        assert pictures[layers].shape == (128, 128, 3)
    assert (pictures["basic"] != pictures["middle"]).any()
    assert (pictures["middle"] != pictures["enhanced"]).any()
    sfic("decode", face_file, "--size", 100, "-o", tmp_path / "x.png").fails(2, "100", "1024")
    assert sfic("decode", face_file, "-o", tmp_path / "full.jpg").code == 0
    assert Image.open(tmp_path / "full.jpg").size == (1024, 1024)


def test_several_faces_are_numbered(sfic: Any, two_faces: Path, tmp_path: Path) -> None:
    assert len(read_container(two_faces)) == 2
    target = tmp_path / "face.png"
    assert sfic("decode", two_faces, "--size", 128, "-o", target).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face-1.png", "face-2.png"]
    assert sfic("decode", two_faces, "--size", 128, "--face", 2, "-o", target).code == 0
    assert target.read_bytes() == (tmp_path / "face-2.png").read_bytes()
    sfic("decode", two_faces, "--face", 3, "-o", target).fails(2, "--face 3", "holds 2")


def test_rate_target_and_aligned_do_what_they_say(sfic: Any, tmp_path: Path) -> None:
    def total(*options: object) -> int:
        target = tmp_path / "x.sfic"
        assert sfic("encode", demo_photograph(), "-o", target, *options).code == 0
        return int(json.loads(sfic("info", target, "--json").out)["faces"][0]["total_bytes"])

    assert total("--rate", 1) < total("--rate", 5) < total("--rate", 9)
    wanted = total("--rate", 4)
    assert abs(total("--target-bytes", wanted) - wanted) <= 0.06 * wanted
    assert total("--aligned") != total()


def test_a_face_in_dim_light_is_coded_brighter_and_says_so(sfic: Any, tmp_path: Path) -> None:
    dark = (read_picture(demo_photograph()) * 0.4).astype(np.uint8)
    picture, target = tmp_path / "dark.png", tmp_path / "dark.sfic"
    Image.fromarray(dark).save(picture)
    for option, least, words in (("--brighten", 1.5, True), ("--no-brighten", 1.0, False)):
        told = sfic("encode", picture, "-o", target, option).out
        assert ("times brighter" in told) == words
        assert ("times brighter" in sfic("info", target).out) == words
        (face,) = json.loads(sfic("info", target, "--json").out)["faces"]
        assert face["brightened"] >= least and (face["brightened"] > 1.0) == words


def test_analyze_reads_the_basic_layer_alone(sfic: Any, face_file: Path, tmp_path: Path) -> None:
    from sfic.container import write_container

    told = json.loads(sfic("analyze", face_file, "--json").out)
    (face,) = told["faces"]
    assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-3)
    assert np.shape(face["landmarks"]) == (68, 2)
    for name in ("age", "gender", "smile", "face_score"):
        assert 0 <= face[name]["confidence"] <= 1
    assert set(face["pose"]) == {"yaw", "pitch", "roll", "confidence"}
    alone = tmp_path / "basic.sfic"
    write_container([read_container(face_file)[0].up_to("basic")], alone)
    assert json.loads(sfic("analyze", alone, "--json").out) == told
    assert "basic layer alone" in sfic("analyze", face_file).out


def test_thresholds_say_their_error_rates(sfic: Any, tmp_path: Path) -> None:
    told = json.loads(sfic("results", "thresholds", "--json").out)
    rates = [row["false_match_rate"] for row in told["thresholds"]]
    assert rates == sorted(rates, reverse=True) and told["pairs"] > 100
    assert "two people match" in sfic("results", "thresholds").out
    sfic("results", "thresholds", "--bundle", tmp_path).fails(4, "no model bundle")


def test_damaged_packet_is_told_not_decoded(sfic: Any, face_file: Path, tmp_path: Path) -> None:
    data = bytearray(face_file.read_bytes())
    data[len(data) // 2] ^= 0x10
    damaged = tmp_path / "damaged.sfic"
    damaged.write_bytes(data)
    sfic("decode", damaged, "-o", tmp_path / "x.png").fails(2)
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Services on free ports, their data in a folder of this test."""
    edge, analytics, decoder, console = (free_address() for _ in range(4))
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "SFIC_EDGE__LISTEN": edge,
        "SFIC_EDGE__METRICS_LISTEN": "",
        "SFIC_EDGE__DATA_DIR": str(tmp_path / "edge"),
        "SFIC_ANALYTICS__LISTEN": analytics,
        "SFIC_ANALYTICS__METRICS_LISTEN": "",
        "SFIC_ANALYTICS__EDGES": json.dumps([edge]),
        "SFIC_ANALYTICS__DATABASE": str(tmp_path / "analytics.sqlite"),
        "SFIC_DECODER__LISTEN": decoder,
        "SFIC_DECODER__METRICS_LISTEN": "",
        "SFIC_DECODER__EDGE": edge,
        "SFIC_CONSOLE__LISTEN": console,
        "SFIC_CONSOLE__METRICS_LISTEN": "",
        "SFIC_CONSOLE__EDGES": json.dumps([edge]),
        "SFIC_CONSOLE__ANALYTICS": analytics,
        "SFIC_CONSOLE__DECODER": decoder,
    }


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in path.read_text().split()]


@pytest.fixture
def services(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`sfic serve all`, once all take calls."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sfic", "serve", "all"], env=environment, start_new_session=True
    )
    names = ("EDGE", "ANALYTICS", "DECODER")
    try:
        deadline = time.monotonic() + 120
        waiting = {environment[f"SFIC_{name}__LISTEN"] for name in names}
        while waiting:
            assert process.poll() is None and time.monotonic() < deadline, waiting
            waiting = {address for address in waiting if not serves(address, 0.5)}
        while not serves_page(environment["SFIC_CONSOLE__LISTEN"], 0.5):
            assert process.poll() is None and time.monotonic() < deadline
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_serve_all_camera_reconstruct_and_a_graceful_end(
    services: subprocess.Popen[bytes], environment: dict[str, str], sfic: Any, tmp_path: Path
) -> None:
    edge, decoder = environment["SFIC_EDGE__LISTEN"], environment["SFIC_DECODER__LISTEN"]
    sent = sfic("camera", demo_photograph(), "--edge", edge)
    assert sent.code == 0, sent.err
    face_id = re.search(r"^  (\w{26})  ", sent.out, re.M)
    assert face_id, sent.out
    target = tmp_path / "face.png"
    rebuilt = sfic("reconstruct", face_id[1], "-o", target, "--decoder", decoder)
    assert rebuilt.code == 0 and re.search(PROVIDER, rebuilt.out), rebuilt.err
    assert Image.open(target).size == (1024, 1024)
    unknown = "0" * 26
    sfic("reconstruct", unknown, "-o", target, "--decoder", decoder).fails(3, unknown)

    members = children(services.pid)
    assert len(members) == 4
    services.send_signal(signal.SIGTERM)
    assert services.wait(40) == 0
    assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]


def test_serve_all_ends_when_one_service_does(services: subprocess.Popen[bytes]) -> None:
    members = children(services.pid)
    os.kill(members[1], signal.SIGKILL)
    assert services.wait(40) == 4
    assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]


def test_demo_on_a_folder_writes_each_face(two_faces: Path, tmp_path: Path) -> None:
    ended = run_process("demo", two_faces.parent, "-o", tmp_path / "out")
    for word in ("basic", "middle", "enhanced", "from the basic layer alone", PROVIDER):
        assert re.search(word, ended.stdout), word
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    views = ("original", "basic", "middle", "enhanced")
    assert written == {
        "comparison.png",
        "frame.png",
        *(f"two-{number}/{view}.png" for number in (1, 2) for view in views),
    }
    assert Image.open(tmp_path / "out" / "frame.png").size == (896, 512)
    assert Image.open(tmp_path / "out" / "two-1" / "enhanced.png").size == (1024, 1024)


def test_demo_with_the_console_stays_until_it_is_interrupted(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "sfic", "demo", "--console", "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert demo.stdout is not None
        page = next(line for line in demo.stdout if line.startswith("look at the faces: http://"))
        assert serves_page(page.split()[4].removeprefix("http://"))
        members = children(demo.pid)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(40) == 0
        assert len(members) == 4
        assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]
    finally:
        demo.kill()


def test_demo_without_a_face_is_code_3(sfic: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((300, 400, 3), 120, np.uint8)).save(tmp_path / "wall.png")
    result = sfic("demo", tmp_path / "wall.png", "-o", tmp_path / "out")
    assert result.code == 3 and "no face" in result.err
    assert not (tmp_path / "out").exists()


def readme_commands() -> list[tuple[str, str]]:
    """Each `$ command` of the README's console blocks with the output shown under it."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.M)
    return [(command, shown.rstrip()) for command, shown in commands]


def skeleton(text: str) -> str:
    """Output without what differs between machines and model bundles: numbers, ids, spacing."""
    text = re.sub(r"\b[0-9A-Z]{26}\b", "ID", text)
    text = re.sub(r"\b(fe)?male\b", "GENDER", text)
    text = re.sub(r"\b(yes|no|open|shut) \(", "SAID (", text)
    text = re.sub(rf"\b({'|'.join(EXPRESSIONS)}) \(", "LOOKS (", text)
    text = re.sub(PROVIDER, "PROVIDER", text)
    text = re.sub(r'"model_bundle": "\w+"|model bundle \w+', "BUNDLE", text)
    text = re.sub(r"[-+]?\d+(\.\d+)?(e-?\d+)?", "N", text)
    return re.sub(r"[\s─━]+", " ", text).strip()


def test_readme_shows_every_command() -> None:
    shown = [command for command, _ in readme_commands()]
    for command in COMMANDS:
        assert any(line.startswith(f"sfic {command} ") for line in shown), command


def test_readme_commands_print_what_it_shows(tmp_path: Path, rewrite_golden: bool) -> None:
    """Runs them one after the other, as a reader would, in a folder with a photograph.

    `--rewrite-golden` puts what they print into the README.
    """
    readme = (ROOT / "README.md").read_text()
    for port in README_PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which the README uses, is taken on this machine")
    shutil.copy(demo_photograph(), tmp_path / "photo.png")
    shell = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "100", "NO_COLOR": "1"}
    (tmp_path / "bin").mkdir()
    starter = tmp_path / "bin" / "sfic"
    starter.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sfic "$@"\n')
    starter.chmod(0o755)
    shell["PATH"] = f"{starter.parent}{os.pathsep}{shell['PATH']}"
    shell["PYTHONPATH"] = str(ROOT)

    face_id, background = "", None
    try:
        for command, shown in readme_commands():
            if not command.startswith("sfic "):
                continue
            if command.endswith("&"):
                arguments = command.removesuffix("&").split()
                background = subprocess.Popen(
                    arguments, cwd=tmp_path, env=shell, stderr=subprocess.DEVNULL
                )
                deadline = time.monotonic() + 120
                while not all(serves(f"127.0.0.1:{p}", 0.5) for p in README_PORTS[:3]):
                    assert time.monotonic() < deadline and background.poll() is None
                continue
            old = f"$ {command}\n{shown}\n" if shown else f"$ {command}\n"
            command = re.sub(r"\b[0-9A-Z]{26}\b", face_id, command)
            ended = subprocess.run(
                ["sh", "-c", command],
                cwd=tmp_path,
                env=shell,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert ended.returncode == 0, (command, ended.stderr)
            face_id = (re.findall(r"\b[0-9A-Z]{26}\b", ended.stdout) or [face_id])[0]
            if rewrite_golden:
                output = "".join(f"{line.rstrip()}\n" for line in ended.stdout.splitlines())
                assert old in readme, command
                readme = readme.replace(old, f"$ {command}\n{output}", 1)
            else:
                assert skeleton(ended.stdout) == skeleton(shown), command
    finally:
        if background is not None:
            background.terminate()
            background.wait(40)
    if rewrite_golden:
        (ROOT / "README.md").write_text(readme)
