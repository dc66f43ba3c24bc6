"""The entry point of ``kling-expand`` and ``python -m kling_expand``."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line, which exits; exit with code 2 if the extra `cli` is not installed."""
    if missing := [name for name in ("click", "rich", "jinja2") if find_spec(name) is None]:
        needs = " and ".join(missing)
        sys.stderr.write(f"the command line needs {needs}: pip install 'kling-expand[cli]'\n")
        sys.exit(2)
    from .cli import root

    root(prog_name="kling-expand")


if __name__ == "__main__":
    main()
