"""Ctrl-C during imports is one message and exit code 130, whatever was half imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nas_prune.base.interrupts import INTERRUPTED, RESUMED, RESUMING, Interruptible, interrupted

ROOT = Path(__file__).resolve().parents[2]
STRIKES = "import os, signal, sys\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException as error:\n"
STRIKES += "    raise ImportError('half imported') from error\n"  # as C extensions do


@pytest.mark.parametrize("module", ["typer", "torch", "pydantic"])
def test_an_import_that_is_interrupted_ends_in_one_message(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(STRIKES)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "nas_prune", "run", "smoke/digits_w_gates", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stderr == f"error: {RESUMED}\n"
    assert done.returncode == 130
    assert not (tmp_path / "run").exists()


def test_elsewhere_it_is_the_interrupt_that_a_program_can_handle() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_is_interrupted_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nas_prune.cli import program as cli

    def strike(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "asked", strike)
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "quickstart"])
    assert left.value.code == 130
    assert capsys.readouterr().err == f"error: {RESUMED}\n"


@pytest.mark.parametrize("words", [["list", "gates"], ["list"], ["schema"]])
def test_a_command_without_checkpoints_promises_none(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nas_prune.cli import program as cli

    def strike(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "table", strike)
    monkeypatch.setattr(cli.typer, "secho", strike)
    monkeypatch.setattr(cli.json, "dumps", strike)
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err == f"error: {INTERRUPTED}\n"
    assert interrupted(words) == interrupted([]) == interrupted(["sweep", "best", "x"]) == INTERRUPTED


def test_commands_that_go_on_are_commands_and_say_so() -> None:
    from typer.main import get_command

    from nas_prune.cli.program import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    for words in map(str.split, RESUMING):
        assert words[-1] in (known[words[0]].commands if len(words) > 1 else known)
        assert interrupted([*words, "x", "--out", "y"]) == interrupted(["--debug", *words]) == RESUMED


def test_a_command_that_is_terminated_anywhere_says_so_and_dies_by_the_signal(tmp_path: Path) -> None:
    script = "import os, signal\nfrom nas_prune.cli import program\n"
    script += (
        "program.asked = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\nprogram.main(['run', 'quickstart'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, cwd=tmp_path, check=False
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == f"error: {RESUMED}\n"
    assert list(tmp_path.iterdir()) == []
