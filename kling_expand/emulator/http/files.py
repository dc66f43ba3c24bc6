"""How are results downloaded? Without credentials, whole or in ranges, like from any file server."""

import re
import zlib

from aiohttp import web

from kling_expand.emulator.service import Service

from .bodies import Body

_NAME = re.compile(r"([0-8])(-watermark)?\.png")


async def picture(service: Service, request: web.Request, _: Body) -> web.Response:
    """Answer `/files/{task_id}/{index}[-watermark].png`: 200, 206, 416 or 404."""
    name = _NAME.fullmatch(request.match_info["name"])
    task_id = request.match_info["task_id"]
    found = await service.picture(task_id, int(name[1]), watermark=bool(name[2])) if name else None
    if found is None:
        return web.Response(status=404, text="no such picture, or no longer\n")
    data, engine = found
    response = _range(request, data)
    response.headers["X-Engine"] = engine
    return response


def _range(request: web.Request, data: bytes) -> web.Response:
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{zlib.crc32(data):08x}-{len(data)}"'}
    if request.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
        return web.Response(body=data, content_type="image/png", headers=headers)
    try:
        wanted = request.http_range
    except ValueError:  # not a range in bytes, or several: the standard lets a server ignore it
        return web.Response(body=data, content_type="image/png", headers=headers)
    start, stop, _ = wanted.indices(len(data))
    if wanted.start is None and wanted.stop is None:
        return web.Response(body=data, content_type="image/png", headers=headers)
    if start >= stop:
        headers["Content-Range"] = f"bytes */{len(data)}"
        return web.Response(status=416, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:stop], content_type="image/png", headers=headers)
