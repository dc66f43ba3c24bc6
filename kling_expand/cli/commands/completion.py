"""How does a shell learn to complete these commands? By a script it reads once."""

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(short_help="Print a script for completion in a shell.")
@click.argument("shell", type=click.Choice([*SHELLS]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and files.

    \b
      bash:  kling-expand completion bash > ~/.kling-expand.sh
             and in ~/.bashrc:  source ~/.kling-expand.sh
      zsh:   kling-expand completion zsh > ~/.zfunc/_kling-expand
      fish:  kling-expand completion fish \\
               > ~/.config/fish/completions/kling-expand.fish
    """
    script = SHELLS[shell](context.find_root().command, {}, "kling-expand", "_KLING_EXPAND_COMPLETE")
    click.echo(script.source())
