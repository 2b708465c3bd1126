from __future__ import annotations

import pytest

from compress.progress import Progress


def test_off_a_terminal_a_finished_stage_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with progress.stage("quantize", "x86-vnni"):
        progress.step(1, 2, "half")
        with progress.stage("inside"):
            progress.step(2, 2)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("done quantize (x86-vnni) 0.")
    assert line.endswith(" s")


def test_a_sentence_is_one_line_however_long_and_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "rtx was not built: [red] " + "word " * 60 + "end"
    Progress().say(sentence)
    assert capsys.readouterr().err == sentence + "\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    with progress.stage("prune"):
        progress.step(1, 1)
        progress.say("said")
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_fails_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with pytest.raises(ValueError, match="inside"), progress.stage("prune"):
        raise ValueError("inside")
    assert capsys.readouterr() == ("", "")
    with progress.stage("distill"):  # and the next one is framed again
        pass
    assert capsys.readouterr().err.startswith("done distill 0.")


def test_step_outside_a_stage_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().step(1, 2)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    with progress.stage("bench"):
        progress.step(3, 4, "round 2")
        assert progress._bar.live.refresh_per_second <= 2  # a bench beside it must have the machine
        progress._bar.refresh()
    err = capsys.readouterr().err
    assert "75%" in err
    assert "round 2" in err
    assert "left" in err
