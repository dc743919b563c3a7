"""The benchmark of draws: every setting is read, and what makes no sense is refused."""

import sys

import pytest

from benchmarks.measuring import drawing


@pytest.mark.slow
@pytest.mark.soak
def test_every_way_of_drawing_is_read(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["drawing", "--vocabulary", "300", "--readings", "2"])
    drawing.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "ms a pass, median and range"
    assert [line[:28].strip() for line in lines] == [*drawing.SETTINGS]
    for line in lines:
        median, least, _, most = line[28:].split()
        assert 0 < float(least) <= float(median) <= float(most)


@pytest.mark.parametrize("words", [["--vocabulary", "31"], ["--readings", "0"]])
def test_what_cannot_be_read_is_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["drawing", *words])
    with pytest.raises(SystemExit) as ending:
        drawing.main()
    assert ending.value.code == 2
    assert "--vocabulary must be at least 32, and --readings 1" in capsys.readouterr().err
