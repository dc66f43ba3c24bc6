"""The protocols of the other SDKs' services, as far as their clients need them to complete a job."""

from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from benchmarks.durations import Handler, Jobs


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _result(name: str) -> str:
    return f"https://cdn.example.com/{name}.png"


def fal_create(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return the addresses of a queued request."""
    name = jobs.new()
    here = f"{request.url.origin()}/fal/requests/{name}"
    urls = {"response_url": here, "status_url": f"{here}/status", "cancel_url": f"{here}/cancel"}
    return {"request_id": name, "status": "IN_QUEUE", "queue_position": 0} | urls


def fal_status(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return the status without the result."""
    ended = jobs.ended(request.match_info["name"])
    return {"status": "COMPLETED" if ended else "IN_PROGRESS", "logs": None, "metrics": {}}


def fal_result(request: web.Request, _jobs: Jobs) -> dict[str, Any]:
    """Return the result."""
    return {"request_id": request.match_info["name"], "images": [{"url": "https://cdn.example.com/0.png"}]}


def runway_create(_request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return the id alone."""
    return {"id": jobs.new()}


def runway_query(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return a task."""
    name = request.match_info["name"]
    task: dict[str, Any] = {"id": name, "createdAt": _now(), "cost": {"credits": 5}}
    if jobs.ended(name):
        return task | {"status": "SUCCEEDED", "output": [_result(name)]}
    return task | {"status": "RUNNING", "progress": 0.5}


def _prediction(request: web.Request, jobs: Jobs, name: str) -> dict[str, Any]:
    ended = jobs.ended(name)
    return {
        "id": name,
        "model": "owner/model",
        "version": "0" * 64,
        "status": "succeeded" if ended else "processing",
        "input": {},
        "output": [_result(name)] if ended else None,
        "logs": "",
        "error": None,
        "created_at": _now(),
        "urls": {"get": f"{request.url.origin()}/v1/predictions/{name}"},
    }


def replicate_create(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return a new prediction."""
    return _prediction(request, jobs, jobs.new())


def replicate_query(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return a prediction."""
    return _prediction(request, jobs, request.match_info["name"])


def _comfy_job(jobs: Jobs, name: str) -> dict[str, Any]:
    now, here = _now(), f"/api/v2/jobs/{name}"
    ended = jobs.ended(name)
    return {
        "id": name,
        "status": "succeeded" if ended else "running",
        "created_at": now,
        "started_at": now,
        "completed_at": now if ended else None,
        "expires_at": now,
        "queue_position": None,
        "progress": None,
        "outputs": [],
        "error": None,
        "urls": {"self": here, "events": f"{here}/events", "cancel": f"{here}/cancel"},
    }


def comfy_create(_request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return a new job."""
    return _comfy_job(jobs, jobs.new())


def comfy_query(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return a job."""
    return _comfy_job(jobs, request.match_info["name"])


def bria_create(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return the id and the address of the status."""
    name = jobs.new()
    return {"request_id": name, "status_url": f"{request.url.origin()}/v2/status/{name}"}


def bria_query(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return the status, with the result at the end."""
    name = request.match_info["name"]
    if jobs.ended(name):
        return {"request_id": name, "status": "COMPLETED", "result": {"image_url": _result(name)}}
    return {"request_id": name, "status": "IN_PROGRESS"}


PEER_ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/fal/owner/model"): fal_create,
    ("GET", "/fal/requests/{name}/status"): fal_status,
    ("GET", "/fal/requests/{name}"): fal_result,
    ("POST", "/v1/image_to_video"): runway_create,
    ("GET", "/v1/tasks/{name}"): runway_query,
    ("POST", "/v1/predictions"): replicate_create,
    ("GET", "/v1/predictions/{name}"): replicate_query,
    ("POST", "/api/v2/jobs"): comfy_create,
    ("GET", "/api/v2/jobs/{name}"): comfy_query,
    ("POST", "/v2/image/edit/expand"): bria_create,
    ("GET", "/v2/status/{name}"): bria_query,
}
