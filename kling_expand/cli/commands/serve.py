"""`kling-expand serve`: run the emulator, with the options of its own command line."""

import click


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(context: click.Context, options: tuple[str, ...]) -> None:
    """Run an emulator of the service on this machine until Ctrl-C."""
    from kling_expand.emulator.__main__ import main

    context.exit(main(options, prog="kling-expand serve"))
