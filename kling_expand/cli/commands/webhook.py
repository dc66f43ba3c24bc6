"""Do callbacks arrive, and are they signed right? A small server that prints them, for trying out."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click
from aiohttp import web

from kling_expand.cli import options
from kling_expand.cli.exit_codes import Stop, run
from kling_expand.cli.formatting import clean, show, task_facts
from kling_expand.config import webhook_secret
from kling_expand.errors import WebhookError
from kling_expand.webhooks import MAX_BODY, WebhookEvent, Webhooks

READ_SECONDS = 30.0  # that a body may take


@click.group(short_help="Try callbacks out.")
def webhook() -> None:
    """Receive the calls that the service makes to a callback_url."""


@webhook.command(short_help="Print the calls that come in.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="WHSEC",
    help="The console's whsec_..., again for a second; KLING_WEBHOOK_SECRET says it too.",
)
@options.as_json
def listen(host: str, port: int, secrets: tuple[str, ...], *, as_json: bool) -> None:
    """Print every call that is signed with the secret, on any path, until Ctrl-C.

    Calls that cannot be trusted or read are answered 400, and told on stderr with
    the reason. Without a secret nothing can be verified, so every readable call is
    printed and marked so.

    The service must reach this machine: give it the public address of a tunnel or
    a proxy as callback_url.
    """
    secret = webhook_secret()
    hooks = Webhooks(*(secrets or ((secret,) if secret else ())))
    known = bool(secrets or secret)
    try:
        run(_listen(host, port, hooks, known=known, as_json=as_json))
    except OSError as error:
        raise Stop(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    except KeyboardInterrupt:  # the usual end
        return


async def _listen(host: str, port: int, hooks: Webhooks, *, known: bool, as_json: bool) -> None:
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/{path:.*}", partial(_receive, hooks, as_json=as_json))
    runner = web.AppRunner(app, access_log=None, lingering_time=1.0, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0][1]
        place = f"[{host}]" if ":" in host else host
        trust = "signed calls only" if known else "no secret, so nothing is verified"
        click.echo(f"listening on http://{place}:{bound}/ ({trust})", err=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _receive(hooks: Webhooks, request: web.Request, *, as_json: bool) -> web.Response:
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await request.read()
        call = hooks.parse(request.headers, body)
    except (WebhookError, TimeoutError) as error:
        reason = str(error) or "the body did not come"
        click.echo(clean(f"refused, from {request.remote}: {reason}"), err=True)
        return web.Response(status=400, text=reason)
    if as_json:
        show(_facts(call, request))
    else:
        click.echo(clean(_line(call, request)))
    return web.Response(status=204)


def _facts(call: WebhookEvent, request: web.Request) -> dict[str, Any]:
    about = {"verified": call.verified, "repeated": call.repeated, "webhook_id": call.webhook_id}
    return about | {"path": request.path, "task": task_facts(call.task)}


def _line(call: WebhookEvent, request: web.Request) -> str:
    task = call.task
    how = "verified" if call.verified else "NOT VERIFIED"
    again = ", repeated" if call.repeated else ""
    words = [
        f"{datetime.now(UTC):%H:%M:%S}",
        f"{how}{again}",
        request.path,
        task.task_id,
        task.task_status,
        task.task_status_msg or "",
        *(image.url for image in task.images),
    ]
    return "  ".join(word for word in words if word)
