"""The command line: `kling-expand` and its commands. `kling_expand.cli.terminal` lists the exit codes."""

import click

from kling_expand import __version__

from .commands.bulk import bulk
from .commands.doctor import doctor
from .commands.expand import expand
from .commands.fleet import fleet
from .commands.preview import preview
from .commands.ratios import ratios
from .commands.report import report
from .commands.resume import resume
from .commands.serve import serve
from .commands.tasks import get, list_tasks, status
from .commands.wait import download, wait
from .commands.webhook import webhook
from .terminal import Commands

__all__ = ["root"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


COMMANDS: tuple[click.Command, ...] = (
    expand,
    bulk,
    resume,
    report,
    preview,
    ratios,
    wait,
    download,
    get,
    list_tasks,
    status,
    doctor,
    fleet,
    serve,
    webhook,
)
for _command in COMMANDS:
    root.add_command(_command)
