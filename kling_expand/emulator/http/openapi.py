"""The OpenAPI 3.1 document of both dialects, with schemas that follow the settings."""

from typing import Any

from kling_expand.emulator.settings import Settings

from .codes import CODES
from .validation import DIRECTION_PATTERN, MAX_IMAGES, MAX_PROMPT_LENGTH, SIDES, URL_PATTERN

Schema = dict[str, Any]

PATHS = {"editing": "/v1/images/editing/expand", "direction": "/v1/images/expand"}
_STATUSES = sorted({status for status, _ in CODES.values()})
_DESCRIPTIONS = {
    400: "An invalid parameter, id or content",
    401: "Missing or invalid credentials",
    403: "No permission",
    404: "No such method or resource",
    429: "Too many requests or tasks, or a problem with the account",
    500: "Internal error",
    503: "Unavailable",
    504: "Internal timeout",
}
_TEXT: Schema = {"type": "string"}
_MILLISECONDS: Schema = {"type": "integer", "minimum": 0, "description": "Unix time in ms"}
_URL: Schema = {"type": "string", "format": "uri"}
_REQUEST_ID: Schema = {"type": "string", "format": "uuid"}
_OPTIONAL = ("prompt", "n", "callback_url", "external_task_id", "watermark_info", "expansion_ratio")


def document(settings: Settings, origin: str) -> dict[str, Any]:
    """Return the document of a server at *origin*."""
    paths: Schema = {}
    for dialect, path in PATHS.items():
        paths[path] = {"post": _create(dialect, settings), "get": _list(dialect, settings)}
        paths[path + "/{id}"] = {"get": _query(dialect, settings)}
    paths["/files/{task_id}/{name}"] = {"get": _file(settings)}
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
    schema = _object(_REQUESTS[dialect], optional=_OPTIONAL)
    responses = _responses(_created(settings))
    name = "id" if settings.task_format == "outputs" else "task_id"
    responses["200"]["links"] = {
        "task": {"operationId": f"query_{dialect}", "parameters": {"id": f"$response.body#/data/{name}"}}
    }
    return {
        "operationId": f"create_{dialect}",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": responses,
    }


def _query(dialect: str, settings: Settings) -> Schema:
    task = _task(settings)
    wrapped = {"type": "array", "items": task, "minItems": 1, "maxItems": 1}
    return {
        "operationId": f"query_{dialect}",
        "parameters": [_parameter("id", "path", {"type": "string", "minLength": 1}, required=True)],
        "responses": _responses(wrapped if settings.task_format == "array" else task),
    }


def _list(dialect: str, settings: Settings) -> Schema:
    return {
        "operationId": f"list_{dialect}",
        "parameters": [
            _parameter("pageNum", "query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}),
            _parameter("pageSize", "query", {"type": "integer", "minimum": 1, "maximum": 500, "default": 30}),
        ],
        "responses": _responses({"type": "array", "items": _task(settings), "maxItems": 500}),
    }


def _file(settings: Settings) -> Schema:
    picture = {"image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}}}
    none: Schema = {"text/plain": {"schema": {"type": "string"}}}
    name = {"type": "string", "pattern": r"^[0-8](-watermark)?\.png$"}
    return {
        "operationId": "picture",
        "security": [],
        "parameters": [
            _parameter("task_id", "path", _task_id(settings), required=True),
            _parameter("name", "path", name, required=True),
        ],
        "responses": {
            "200": {"description": "The picture", "content": picture},
            "206": {"description": "The part requested by the Range header", "content": picture},
            "404": {"description": "No such picture, or it has expired", "content": none},
            "416": {"description": "The Range is outside the picture"},
        },
    }


def _parameter(name: str, place: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _responses(data: Schema) -> Schema:
    success = {"code": {"const": 0}, "message": {"const": "SUCCEED"}, "request_id": _REQUEST_ID, "data": data}
    responses: Schema = {"200": _response("Success", _object(success))}
    for status in _STATUSES:
        responses[str(status)] = _response(_DESCRIPTIONS[status], _refusal(status))
    responses["429"]["headers"] = {
        "Retry-After": {"description": "Seconds or a date, with 1302 only", "schema": {"type": "string"}}
    }
    return responses


def _response(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _refusal(status: int) -> Schema:
    codes = [code for code, (http, _) in CODES.items() if http == status]
    return _object({"code": {"enum": codes}, "message": _TEXT, "request_id": _REQUEST_ID})


def _object(properties: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_COMMON: Schema = {
    "image": {
        "type": "string",
        "minLength": 1,
        "format": "kling-image",
        "description": "An http(s) URL, or raw Base64 without any prefix: PNG or JPEG, at most 10 MB, "
        "each side at least 300 px, aspect between 1:2.5 and 2.5:1",
    },
    "prompt": {"type": ["string", "null"], "maxLength": MAX_PROMPT_LENGTH},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_IMAGES, "default": 1},
    "callback_url": {"type": ["string", "null"], "pattern": f"^({URL_PATTERN})?$"},
    "external_task_id": {"type": ["string", "null"], "description": "Unique in the account; empty: none"},
}
_RATIO: Schema = {
    "type": "number",
    "minimum": 0,
    "maximum": 2,
    "description": "In heights (up, down) or widths (left, right) of the original; the result has at "
    "most 3 times the area of the original, and not all four are 0",
}
_REQUESTS: dict[str, Schema] = {
    "editing": {f"{side}_expansion_ratio": _RATIO for side in SIDES}
    | _COMMON
    | {
        "watermark_info": {
            "type": ["object", "null"],
            "properties": {"enabled": {"type": ["boolean", "null"]}},
        }
    },
    "direction": _COMMON
    | {
        "direction": {"type": "string", "pattern": f"^({DIRECTION_PATTERN})$"},
        "expansion_ratio": {
            "type": ["number", "null"],
            "minimum": 1,
            "maximum": 3,
            "default": 1.5,
            "description": "New length / old length on each named axis, split evenly over its named sides; "
            "the limits of the four ratios also apply",
        },
    },
}


def _task_id(settings: Settings) -> Schema:
    digits = settings.task_id_format == "digits"
    return {"type": "string", "pattern": "^[0-9]{18}$" if digits else "^[A-Za-z0-9_-]{22}$"}


def _created(settings: Settings) -> Schema:
    """Return the schema of a task in the response to its create."""
    if settings.task_format == "outputs":
        return _task(settings)
    return _object(
        {
            "task_id": _task_id(settings),
            "task_info": _object({"external_task_id": _TEXT}),
            "task_status": {"enum": ["submitted", "processing", settings.success_status, "failed"]},
            "created_at": _MILLISECONDS,
            "updated_at": _MILLISECONDS,
        }
    )


def _task(settings: Settings) -> Schema:
    """Return the schema of a task in a query or list."""
    if settings.task_format == "outputs":
        return _outputs_form(settings)
    image = _object(
        {"index": {"type": "integer", "minimum": 0, "maximum": 8}, "url": _URL, "watermark_url": _URL},
        optional=("watermark_url",),
    )
    images = {"type": "array", "items": image, "minItems": 1, "maxItems": MAX_IMAGES}
    properties: Schema = _created(settings)["properties"] | {
        "task_status_msg": _TEXT,
        "watermark_info": _object({"enabled": {"type": "boolean"}}),
        "task_result": _object({"images": images}),
        "final_unit_deduction": {"type": "string", "pattern": "^[0-9]+$"},
    }
    if settings.task_format == "object":
        properties["final_balance_deduction"] = _object({"quota": _TEXT, "list_price": _TEXT})
    return _object(properties, optional=("task_result", "final_unit_deduction", "final_balance_deduction"))


def _outputs_form(settings: Settings) -> Schema:
    output = _object(
        {"type": {"const": "image"}, "url": _URL, "watermark_url": _URL}, optional=("watermark_url",)
    )
    charge = dict.fromkeys(("charge_type", "package_type", "amount", "currency", "list_price"), _TEXT)
    return _object(
        {
            "id": _task_id(settings),
            "external_id": _TEXT,
            "status": {"enum": ["submitted", "processing", "succeeded", "failed"]},
            "message": _TEXT,
            "create_time": _MILLISECONDS,
            "update_time": _MILLISECONDS,
            "outputs": {"type": "array", "items": output, "maxItems": MAX_IMAGES},
            "billing": {"type": "array", "items": _object(charge), "maxItems": 1},
        }
    )
