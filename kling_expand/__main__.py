"""How is the package run? `python -m kling_expand`, the same as `kling-expand`."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Hand over to the command line, which exits; code 2 with one sentence where its extra is missing."""
    if missing := [name for name in ("click", "rich") if find_spec(name) is None]:
        needs = " and ".join(missing)
        sys.stderr.write(f"the command line needs {needs}: pip install 'kling-expand[cli]'\n")
        sys.exit(2)
    from .cli import root

    root(prog_name="kling-expand")


if __name__ == "__main__":
    main()
