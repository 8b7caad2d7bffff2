"""Warnings wait for the end of the block, and are then what the filters make of them."""

import warnings

import pytest

from edgeclip.cli.late_warnings import late_warnings

_DONE: list[str] = []


@late_warnings()
def warn(*messages: str, fails: bool = False) -> None:
    """Warn of each, and then do something or fail."""
    for message in messages:
        warnings.warn(message, stacklevel=1)
    if fails:
        raise KeyError
    _DONE[:] = messages


def test_a_warning_that_is_an_error_comes_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="first"):
            warn("first", "second")
    assert _DONE == ["first", "second"]


def test_others_are_shown_or_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        shown: list[str] = []
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "idle")
        warnings.filterwarnings("error", "grave")
        with pytest.raises(UserWarning, match="grave 1"):
            warn("plain", "idle", "grave 1", "grave 2")
        assert shown == ["plain", "grave 2"]
        with pytest.raises(KeyError):
            warn("grave 3", fails=True)
        assert shown[2:] == ["grave 3"]
