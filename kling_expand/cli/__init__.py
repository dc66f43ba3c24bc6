"""The command line: `kling-expand` and its commands. `kling_expand.cli.terminal` lists the exit codes."""

from importlib import import_module

from kling_expand.errors import require

require("cli", "click", "rich", "jinja2")

import click

from kling_expand import __version__

from .terminal import Commands

__all__ = ["root"]


class LazyCommand(click.Command):
    """The name and short help of a command. Its module is imported when the command runs."""

    def __init__(self, name: str, place: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._place = place

    def load(self) -> click.Command:
        """Return the command itself."""
        module, _, attribute = self._place.partition(":")
        command: click.Command = getattr(import_module(f".commands.{module}", __package__), attribute)
        return command


class LazyCommands(Commands):
    """A group of lazy commands.

    After the import of a command it calls ``ctx.obj``, which restores the original handler of Ctrl-C.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that the first of *args* names, and return it."""
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, LazyCommand):
            command = command.load()
        if ctx.obj is not None:
            ctx.obj()
        return name, command, rest


@click.group(
    cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="kling-expand")
def root() -> None:
    """Expand photos beyond their edges with Kling AI, without paying twice.

    Credentials come from KLING_ACCESS_KEY and KLING_SECRET_KEY, or from KLING_API_KEY.
    Without an account, --emulator runs a local emulator of the service:

    \b
      kling-expand expand dog.jpg --aspect 16:9 --emulator

    To complete commands and options with the Tab key, add the line for your shell
    to its start-up file:

    \b
      bash  eval "$(_KLING_EXPAND_COMPLETE=bash_source kling-expand)"
      zsh   eval "$(_KLING_EXPAND_COMPLETE=zsh_source kling-expand)"
      fish  _KLING_EXPAND_COMPLETE=fish_source kling-expand | source
    """


COMMANDS = (
    ("expand", "expand:expand", "Expand a few photos; send nothing if one is bad."),
    ("bulk", "bulk:bulk", "Expand many photos, from directories or a table; skip bad ones."),
    ("resume", "resume:resume", "Continue the unfinished jobs of an earlier run."),
    ("report", "report:report", "Write an HTML page with a run's photos before and after."),
    ("preview", "preview:preview", "Draw how a photo would be expanded; send nothing."),
    ("ratios", "ratios:ratios", "Print the API's four ratios for a photo or a size."),
    ("wait", "wait:wait", "Wait for tasks by their ids and save the results."),
    ("download", "wait:download", "Save the results of tasks that have ended."),
    ("get", "tasks:get", "Print the details of a task."),
    ("list", "tasks:list_tasks", "List the tasks of the account."),
    ("status", "status:status", "Print the status of tasks, or the progress of a run."),
    ("doctor", "doctor:doctor", "Check credentials, the service, the clock and the extras."),
    ("fleet", "fleet:fleet", "Run jobs on many machines that share one account."),
    ("serve", "serve:serve", "Run the local emulator of the service."),
    ("webhook", "webhook:webhook", "Receive callbacks from the service."),
)
for _command in COMMANDS:
    root.add_command(LazyCommand(*_command))
