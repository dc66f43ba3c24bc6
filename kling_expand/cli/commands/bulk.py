"""How are many photos made wider? `kling-expand bulk`: a manifest, a journal, and a command to run again."""

from typing import Any

import click

from kling_expand.cli import options
from kling_expand.cli.batch.dry_run import check_output, looked_through, read_through, rehearse
from kling_expand.cli.batch.manifest import manifest
from kling_expand.cli.batch.plan import Errand
from kling_expand.cli.batch.rows import Defaults
from kling_expand.cli.batch.runner import carry_out
from kling_expand.cli.connection import Connection, local_options
from kling_expand.cli.exit_codes import leave, run
from kling_expand.cli.geometry import WAYS, default_geometry_options, geometry_of
from kling_expand.geometry import Towards
from kling_expand.models import ExpandRequest


@click.command(short_help="Expand all photos of a table or directory.")
@click.argument("words", metavar="MANIFEST...", nargs=-1, required=True, type=click.Path())
@default_geometry_options
@click.option("--prompt", metavar="TEXT", help="What the new area should show.")
@click.option("-n", "count", default=1, show_default=True, metavar="N", help="Pictures per photo, 1 to 9.")
@click.option("--watermark", is_flag=True, help="Also make copies with a watermark.")
@click.option(
    "--journal",
    type=click.Path(),
    metavar="FILE",
    help="Where the run is written down; MANIFEST.journal unless given (bulk.journal for photos).",
)
@options.jobs
@options.budget
@click.option(
    "--dry-run", is_flag=True, help="Look at every photo, tell the cost, list bad rows; send nothing."
)
@click.option("--strict", is_flag=True, help="Look at every photo first, and send nothing if a row is bad.")
@click.option(
    "--max-failures",
    type=click.IntRange(min=1),
    metavar="N",
    help="Send nothing more after N failures.",
)
@options.places
@options.deadline
@local_options
@options.as_json
def bulk(
    words: tuple[str, ...], defaults: dict[str, Any], connection: Connection, *, dry_run: bool, **given: Any
) -> None:
    """Expand every photo of MANIFEST; run it again to go on where it stopped.

    \b
      kling-expand bulk photos.csv --dry-run
      kling-expand bulk photos.csv --aspect 16:9 --budget 800
      kling-expand bulk "photos/**/*.jpg" --aspect 16:9 -o wide/

    MANIFEST is a table (.csv, .tsv), JSON lines (.jsonl), a directory, a pattern,
    or photos one by one. A file's paths begin at its own directory. Its columns:

    \b
      image     the photo, a path or a URL (needed)
      aspect area anchor size up down left right pad direction ratio
                how far, as the options say; a row that names a way beats them
      prompt n watermark     as the options
      name      what the results are called instead of the photo's name
      key       tells jobs apart that ask for the same; otherwise those are one
      _...      yours; ignored

    The same photo with the same parameters is paid for once, however often and
    wherever you run this with one journal: what is done is skipped, what runs is
    waited for, what failed is tried again. Results never replace a file.

    Exit code 0 if every row has its pictures, 1 if not, 2 if nothing was begun.
    """
    fields = {"prompt": given.pop("prompt"), "n": given.pop("count"), "watermark": given.pop("watermark")}
    strict = given.pop("strict")
    usual = Defaults(defaults, **fields)
    _check(usual)
    listed = manifest(words)
    local = ".local" if connection.local else ""
    journal = given.pop("journal") or f"{listed.journal.removesuffix('.journal')}{local}.journal"
    errand = Errand(manifest=listed, defaults=usual, connection=connection, journal=journal, **given)
    if dry_run:
        leave(run(rehearse(errand)))
    survey = run(looked_through(errand)) if strict else read_through(errand)
    check_output(errand, survey)
    connection.require()
    leave(run(carry_out(errand, survey)))


def _check(defaults: Defaults) -> None:
    """Options that contradict each other are wrong whatever the rows say."""
    if any(defaults.geometry[way] is not None for way in WAYS):
        geometry_of(**defaults.geometry)
    ExpandRequest("", Towards("all"), defaults.prompt, n=defaults.n)
