"""The settings and their changes while the emulator runs."""

import pytest

from kling_expand.emulator.settings import Settings, change, options


def test_settings_change_all_or_none() -> None:
    """A refused change changes nothing, and an int is accepted for a float."""
    settings = Settings()
    with pytest.raises(ValueError, match="queue_seconds must be a float of at least 0"):
        change(settings, {"slots": 5, "queue_seconds": "1"})
    assert settings.slots == 9
    change(settings, {"queue_seconds": 2, "allow_duplicates": True})
    assert (settings.queue_seconds, settings.allow_duplicates) == (2, True)


def test_every_setting_says_what_it_is_for() -> None:
    """Every setting has a help text for the command line."""
    assert all(option.metadata["help"] for option in options())
    assert {option.name for option in options()} == set(Settings.__annotations__) - {"clock"}
