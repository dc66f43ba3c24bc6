"""The settings and their changes while the emulator runs."""

import pytest

from kling_expand.emulator.settings import Settings, change, options


def test_settings_change_all_or_none() -> None:
    """A refused change changes no setting, and an integer is accepted for a float."""
    settings = Settings()
    with pytest.raises(ValueError, match="queue_seconds must be a number of at least 0"):
        change(settings, {"slots": 5, "queue_seconds": "1"})
    assert settings.slots == 9
    change(settings, {"queue_seconds": 2, "allow_duplicates": True})
    assert (settings.queue_seconds, settings.allow_duplicates) == (2, True)


def test_every_setting_says_what_it_is_for() -> None:
    """Every setting has a help text for the command line."""
    assert all(option.metadata["help"] for option in options())
    assert {option.name for option in options()} == set(Settings.__annotations__) - {"clock"}


@pytest.mark.parametrize("text", ["1", "1,2", "a,b,c", "1,2,3", "nan,0,1", "101,0,1", "0,0,inf"])
def test_a_wrong_misregistration_is_refused(text: str) -> None:
    """A malformed misregistration is refused, at the start and while the emulator runs."""
    with pytest.raises(ValueError, match=r"misregister must be DX,DY,SCALE"):
        Settings(misregister=text)
    settings = Settings(misregister="0.5,-2,1.01")
    with pytest.raises(ValueError, match=r"misregister must be DX,DY,SCALE"):
        change(settings, {"slots": 5, "misregister": text})
    assert (settings.slots, settings.misregister) == (9, "0.5,-2,1.01")


@pytest.mark.parametrize("url", ["nonsense", "/path", "ftp://host", "http://", "http://host:99999"])
def test_a_public_url_needs_a_host(url: str) -> None:
    """A public address that is no http or https URL is refused, at the start and while the emulator runs."""
    settings = Settings(public_url="https://kling.test")
    for use in (lambda: Settings(public_url=url), lambda: change(settings, {"public_url": url})):
        with pytest.raises(ValueError, match="public_url must be an http or https URL"):
            use()
    change(settings, {"public_url": ""})


def test_a_bad_webhook_secret_is_refused_while_the_emulator_runs() -> None:
    """A secret that cannot sign callbacks is refused, and the message does not contain it."""
    settings = Settings()
    with pytest.raises(ValueError, match=r"followed by Base64$"):
        change(settings, {"webhook_secret": "whsec_***"})
    assert settings.webhook_secret == ""
