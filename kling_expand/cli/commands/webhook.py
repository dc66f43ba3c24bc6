"""`kling-expand webhook listen`: a small server that prints the callbacks of the service."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any

import click
from aiohttp import web
from attrs import frozen

from kling_expand.cli.options import JSONOption, OptionGroup, option, options
from kling_expand.cli.terminal import NothingDone, clean, show, task_facts
from kling_expand.config import webhook_secret
from kling_expand.errors import WebhookError
from kling_expand.webhooks import MAX_BODY, WebhookEvent, Webhooks

BODY_TIMEOUT = 30.0  # seconds to read the body of a request


@click.group()
def webhook() -> None:
    """Receive callbacks, the requests that the service sends to a callback_url."""


@frozen
class ListenOptions(OptionGroup):
    """The options for the address of the server and the secrets that sign callbacks."""

    host: str = option(
        "--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on."
    )
    port: int = option(
        "--port",
        default=8080,
        show_default=True,
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Port to listen on; 0 chooses a free one.",
    )
    secrets: tuple[IO[str], ...] = option(
        "--secret-file",
        multiple=True,
        type=click.File(),
        metavar="FILE",
        help="A file with the whsec_… secret from your Kling console. May be repeated. The default is the "
        "variable KLING_WEBHOOK_SECRET.",
    )


@webhook.command(short_help="Print the callbacks that arrive.")
@options(server=ListenOptions, output=JSONOption)
def listen(*, server: ListenOptions, output: JSONOption) -> None:
    """Print every callback that is signed with the secret, on any path, until Ctrl-C.

    Other callbacks are refused with status 400, and the reason is printed to stderr. Without a secret nothing
    can be verified: every readable callback is printed and marked as unverified.

    The service must be able to reach this machine, for example through a tunnel. Pass the tunnel's public
    address as callback_url.
    """
    secret = webhook_secret()  # not an option, because any user of the machine can see the command line
    secrets = [file.read().strip() for file in server.secrets] or ([secret] if secret else [])
    try:
        asyncio.run(_listen(server, Webhooks(*secrets), verify=bool(secrets), as_json=output.as_json))
    except OSError as error:
        place = f"{server.host}:{server.port}"
        raise NothingDone(f"cannot listen on {place}: {error.strerror or error}") from error
    except KeyboardInterrupt:  # the usual way to stop the command
        return


async def _listen(server: ListenOptions, hooks: Webhooks, *, verify: bool, as_json: bool) -> None:
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/{path:.*}", partial(_receive, hooks, as_json=as_json))
    # Decompression is off, because a body of invalid gzip would make the server print a traceback.
    runner = web.AppRunner(
        app, access_log=None, lingering_time=1.0, shutdown_timeout=1.0, auto_decompress=False
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, server.host, server.port).start()
        bound = runner.addresses[0][1]
        host = f"[{server.host}]" if ":" in server.host else server.host
        trust = "signed callbacks only" if verify else "no secret, so nothing is verified"
        click.echo(f"listening on http://{host}:{bound}/ ({trust})", err=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _receive(hooks: Webhooks, request: web.Request, *, as_json: bool) -> web.Response:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
        event = hooks.parse(request.headers, body)
    except (WebhookError, TimeoutError) as error:
        reason = str(error) or "the body did not arrive in time"
        click.echo(clean(f"refused a request from {request.remote}: {reason}"), err=True)
        return web.Response(status=400, text=reason)
    if as_json:
        show(_facts(event, request))
    else:
        click.echo(clean(_line(event, request)))
    return web.Response(status=204)


def _facts(event: WebhookEvent, request: web.Request) -> dict[str, Any]:
    details = {"verified": event.verified, "repeated": event.repeated, "webhook_id": event.webhook_id}
    return details | {"path": request.path, "task": task_facts(event.task)}


def _line(event: WebhookEvent, request: web.Request) -> str:
    task = event.task
    trust = "verified" if event.verified else "NOT VERIFIED"
    again = ", repeated" if event.repeated else ""
    words = [
        f"{datetime.now(UTC):%H:%M:%S}",
        f"{trust}{again}",
        request.path,
        task.task_id,
        task.task_status,
        task.task_status_msg or "",
        *(image.url for image in task.images),
    ]
    return "  ".join(word for word in words if word)
