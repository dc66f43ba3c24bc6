"""The same, from a shell? The commands of `kling-expand`; each parses, delegates and prints.

Exit codes: 0 all well; 1 a task failed or the service refused (what else was asked for is done);
2 nothing was begun, and one sentence says what to do; 130 interrupted.
"""

import click

from kling_expand import __version__

from .commands.bulk import bulk
from .commands.completion import completion
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
from .exit_codes import Commands

__all__ = ["root"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kling-expand")
def root() -> None:
    """Expand photos beyond their edges with Kling AI, and never pay twice.

    Credentials come from KLING_ACCESS_KEY and KLING_SECRET_KEY, or from KLING_API_KEY.
    Without an account, --local paints with an emulator on this machine:

    \b
      kling-expand expand dog.jpg --aspect 16:9 --local
    """


for command in (
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
    completion,
):
    root.add_command(command)
