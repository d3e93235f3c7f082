"""A :class:`Service` in, its HTTP endpoints out: KServe v2 with Triton's extensions, as a Starlette application.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/README.html
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastervit_trt import __version__
from fastervit_trt.console import warn
from fastervit_trt.deploy.serving.bodies import choose_encoding
from fastervit_trt.deploy.serving.models import VERSION, ServedModel
from fastervit_trt.deploy.serving.refusal import RefusedError
from fastervit_trt.deploy.serving.service import Arriving, Service

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

__all__ = ["build_app"]

_Handler = Callable[["Request"], Awaitable["Response"]]

_EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
_HEADER_LENGTH = "Inference-Header-Content-Length"
_SMALL_BODY = 1 << 16  # of everything but an inference
_UNSUPPORTED = {
    "/v2/systemsharedmemory/{rest:path}": "shared memory",
    "/v2/cudasharedmemory/{rest:path}": "shared memory",
    "/v2/repository/models/{model}/{change:path}": "loading and unloading models",
    "/v2/trace/setting": "tracing",
    "/v2/models/{model}/trace/setting": "tracing",
    "/v2/logging": "changing what is logged",
}


def build_app(service: Service) -> Starlette:
    """The application that serves ``service``; starting and stopping it is the caller's.

    Raises:
        ImportError: Starlette is not installed.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException

    return Starlette(
        routes=_routes(service),
        exception_handlers={HTTPException: _http_error, RefusedError: _refused, Exception: _failed},
    )


def _routes(service: Service) -> list[Route]:
    from starlette.routing import Route

    of_model: dict[str, Callable[[ServedModel], Any]] = {
        "": ServedModel.metadata,
        "/config": ServedModel.config,
        "/stats": lambda model: {"model_stats": [service.statistics.json(model.name)]},
    }
    routes = [
        Route("/v2/health/live", _live(service)),
        Route("/v2/health/ready", _ready(service)),
        Route("/v2", _server(service)),
        Route("/v2/models/stats", _all_statistics(service)),
        Route("/v2/repository/index", _index(service), methods=["POST"]),
        Route("/metrics", _metrics(service)),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [Route(model + what, _about(service, answer)) for what, answer in of_model.items()]
        routes.append(Route(f"{model}/ready", _ready(service)))
        routes.append(Route(f"{model}/infer", _infer(service), methods=["POST"]))
    return routes + [Route(path, _unsupported(what), methods=["GET", "POST"]) for path, what in _UNSUPPORTED.items()]


def _live(service: Service) -> _Handler:
    async def live(request: Request) -> Response:
        return _empty(200)

    return live


def _ready(service: Service) -> _Handler:
    async def ready(request: Request) -> Response:
        if "model" in request.path_params:
            _model(service, request)
        return _empty(200) if service.ready else _json({"error": "the server is not ready"}, 503)

    return ready


def _server(service: Service) -> _Handler:
    async def server(request: Request) -> Response:
        return _json({"name": "fastervit-deploy", "version": __version__, "extensions": _EXTENSIONS})

    return server


def _about(service: Service, answer: Callable[[ServedModel], Any]) -> _Handler:
    async def about(request: Request) -> Response:
        return _json(answer(_model(service, request)))

    return about


def _all_statistics(service: Service) -> _Handler:
    async def statistics(request: Request) -> Response:
        return _json({"model_stats": [service.statistics.json(name) for name in service.models]})

    return statistics


def _index(service: Service) -> _Handler:
    async def index(request: Request) -> Response:
        only_ready = await _asks_for_ready(request)
        state = "READY" if service.ready else "UNAVAILABLE"
        listed = [] if only_ready and not service.ready else list(service.models)
        return _json([{"name": name, "version": VERSION, "state": state, "reason": ""} for name in listed])

    return index


def _metrics(service: Service) -> _Handler:
    async def metrics(request: Request) -> Response:
        from starlette.responses import Response

        text = service.statistics.prometheus(service.admission.waiting)
        return Response(text, media_type="text/plain; version=0.0.4")

    return metrics


def _infer(service: Service) -> _Handler:
    async def infer(request: Request) -> Response:
        from starlette.responses import Response

        model = _model(service, request)
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media.startswith("multipart/"):
            raise RefusedError(415, f"Content-Type '{media}' is not supported; send JSON, or JSON and binary data")
        arriving = _arriving(request)
        answer = await service.infer(model, arriving)
        headers = {} if arriving.answer_encoding is None else {"Content-Encoding": arriving.answer_encoding}
        if answer.header_length is None:
            return Response(answer.body, headers=headers, media_type="application/json")
        headers[_HEADER_LENGTH] = str(answer.header_length)
        return Response(answer.body, headers=headers, media_type="application/octet-stream")

    return infer


def _unsupported(what: str) -> _Handler:
    async def unsupported(request: Request) -> Response:
        return _json({"error": f"this server does not support {what}; Triton does"}, 501)

    return unsupported


def _model(service: Service, request: Request) -> ServedModel:
    name, version = request.path_params["model"], request.path_params.get("version", VERSION)
    model = service.models.get(name)
    if model is None:
        raise RefusedError(404, f"there is no model '{name[:80]}'; there are {', '.join(service.models)}")
    if version != VERSION:
        raise RefusedError(404, f"model '{name}' has no version '{version[:80]}'; it has {VERSION}")
    return model


def _arriving(request: Request) -> Arriving:
    headers = request.headers

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return Arriving(
        chunks=_chunks(request),
        gone=gone,
        content_length=headers.get("content-length"),
        content_encoding=headers.get("content-encoding"),
        header_length=headers.get(_HEADER_LENGTH),
        answer_encoding=choose_encoding(headers.get("accept-encoding")),
    )


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    from starlette.requests import ClientDisconnect

    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise RefusedError(499, "the client has gone away", "CANCELED") from error


async def _asks_for_ready(request: Request) -> bool:
    body = await _small_body(_chunks(request))
    try:
        content = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise RefusedError(400, "the body must be a JSON object")
    return content.get("ready") is True


async def _small_body(chunks: AsyncIterator[bytes]) -> bytes:
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) > _SMALL_BODY:
            raise RefusedError(413, f"the body is larger than {_SMALL_BODY} bytes")
    return body


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RefusedError)
    return _json({"error": refusal.message}, refusal.status, refusal.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    from starlette.exceptions import HTTPException

    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    return _json({"error": f"{where}: {error.detail}"}, error.status_code, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    warn(f"{request.method} {request.url.path[:200]} failed: {type(error).__name__}: {error}")
    return _json({"error": "the request failed inside the server; its output says why"}, 500)


def _empty(status: int) -> Response:
    from starlette.responses import Response

    return Response(status_code=status)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import Response

    # ASCII, since what a client sent may come back here, and not every text of JSON can be written as UTF-8.
    return Response(json.dumps(content), status, headers, media_type="application/json")
