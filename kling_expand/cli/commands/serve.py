"""How is the emulator started from here? All of its settings as options, until Ctrl-C."""

import asyncio
from typing import Any

import click

from kling_expand.cli.exit_codes import Stop
from kling_expand.emulator.faults.prompt_triggers import HELP
from kling_expand.emulator.settings import options


@click.command(short_help="Run the local emulator of the service.")
def serve(**settings: Any) -> None:
    """Run an emulator of the service on this machine until Ctrl-C.

    It really expands pictures, by itself, and never bills. One line tells its address
    and credentials as soon as it is ready.
    """
    from kling_expand.emulator.__main__ import serve as run

    try:
        asyncio.run(run(settings))
    except (RuntimeError, OSError, ValueError) as error:
        raise Stop(str(error)) from error


def _option(setting: Any) -> click.Option:
    name = "--" + setting.name.replace("_", "-")
    text = f"{setting.metadata['help'][0].upper()}{setting.metadata['help'][1:]}."
    if isinstance(setting.default, bool):
        return click.Option([name], is_flag=True, help=text)
    among = setting.metadata["among"]
    kind: Any = click.Choice([str(value) for value in among]) if among else type(setting.default)
    if among and not isinstance(setting.default, str):
        kind = click.Choice(among)
    return click.Option([name], type=kind, default=setting.default, show_default=True, help=text)


serve.epilog = HELP
serve.params.extend(_option(setting) for setting in options())
