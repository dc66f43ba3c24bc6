"""How does a machine read the service? From an OpenAPI 3.1 document of both dialects."""

from typing import Any

from kling_expand.emulator.settings import Settings

from . import schemas
from .codes import CODES
from .schemas import Schema

PATHS = {"editing": "/v1/images/editing/expand", "direction": "/v1/images/expand"}
_REQUESTS = {"editing": schemas.EDITING_REQUEST, "direction": schemas.DIRECTION_REQUEST}
_STATUSES = sorted({status for status, _ in CODES.values()})
_TEXTS = {
    400: "A parameter, an id or the content is refused",
    401: "Nobody we know",
    403: "Not for this account",
    404: "No such method or resource",
    429: "Too much at once, or an account in trouble",
    500: "Internal error",
    503: "Unavailable",
    504: "Internal time-out",
}


def document(settings: Settings, origin: str) -> dict[str, Any]:
    """The document of a server at `origin`."""
    paths: Schema = {}
    for dialect, path in PATHS.items():
        paths[path] = {"post": _create(dialect, settings), "get": _list(dialect, settings)}
        paths[path + "/{id}"] = {"get": _query(dialect, settings)}
    paths["/files/{task_id}/{name}"] = {"get": _file()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Image expansion, emulated", "version": "1"},
        "servers": [{"url": origin}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A static key, or a JWT (HS256) with iss, exp and nbf",
                }
            }
        },
    }


def _create(dialect: str, settings: Settings) -> Schema:
    body = {"required": True, "content": {"application/json": {"schema": _REQUESTS[dialect]}}}
    responses = _responses(schemas.created(succeeded=settings.succeeded))
    responses["200"]["links"] = {
        "task": {"operationId": f"query_{dialect}", "parameters": {"id": "$response.body#/data/task_id"}}
    }
    return {"operationId": f"create_{dialect}", "requestBody": body, "responses": responses}


def _query(dialect: str, settings: Settings) -> Schema:
    task = schemas.task(seed=settings.seed_shapes, succeeded=settings.succeeded)
    wrapped = {"type": "array", "items": task, "minItems": 1, "maxItems": 1}
    return {
        "operationId": f"query_{dialect}",
        "parameters": [_parameter("id", "path", {"type": "string", "minLength": 1}, required=True)],
        "responses": _responses(wrapped if settings.seed_shapes else task),
    }


def _list(dialect: str, settings: Settings) -> Schema:
    task = schemas.task(seed=settings.seed_shapes, succeeded=settings.succeeded)
    return {
        "operationId": f"list_{dialect}",
        "parameters": [
            _parameter("pageNum", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}),
            _parameter("pageSize", "query", {"type": "integer", "minimum": 1, "maximum": 500, "default": 30}),
        ],
        "responses": _responses({"type": "array", "items": task, "maxItems": 500}),
    }


def _file() -> Schema:
    picture = {"image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}}}
    none: Schema = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "picture",
        "security": [],
        "parameters": [
            _parameter("task_id", "path", schemas.TASK_ID, required=True),
            _parameter(
                "name", "path", {"type": "string", "pattern": r"^[0-8](-watermark)?\.png$"}, required=True
            ),
        ],
        "responses": {
            "200": {"description": "The picture", "content": picture},
            "206": {"description": "A part of it, as asked for by Range", "content": picture},
            "404": {"description": "No such picture, not yet, or no longer", "content": none},
            "416": {"description": "Nothing of it lies in the Range"},
        },
    }


def _parameter(name: str, place: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _responses(data: Schema) -> Schema:
    responses: Schema = {"200": _response("Done", schemas.answer(data))}
    for status in _STATUSES:
        responses[str(status)] = _response(_TEXTS[status], schemas.refusal(status))
    responses["429"]["headers"] = {
        "Retry-After": {"description": "Seconds or a date, with 1302 only", "schema": {"type": "string"}}
    }
    return responses


def _response(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
