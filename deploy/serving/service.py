"""A request for an inference in, its response out: what the endpoint does between reading and writing HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastervit_trt.console import warn
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.serving.admission import Admission, Lease
from fastervit_trt.deploy.serving.batching import Batcher
from fastervit_trt.deploy.serving.bodies import compressed, read_body
from fastervit_trt.deploy.serving.limits import Limits
from fastervit_trt.deploy.serving.models import VERSION, ServedModel, models_of
from fastervit_trt.deploy.serving.refusal import RefusedError
from fastervit_trt.deploy.serving.request import InferRequest, parse_request
from fastervit_trt.deploy.serving.response import InferResponse, render_response
from fastervit_trt.deploy.serving.statistics import Spent, Statistics
from fastervit_trt.host import usable_cpus

if TYPE_CHECKING:
    from fastervit_trt.engines.runtime.engine import Engine

__all__ = ["Arriving", "Service"]

T = TypeVar("T")

_MOST_THREADS = 4  # that read tensors and decode pictures, beside the one that infers


@dataclass(frozen=True)
class Arriving:
    """A request whose body is still on its way, and what its headers say of it.

    Attributes:
        chunks: raises :class:`RefusedError` when the client goes away.
        gone: returns when the client has gone away; to be awaited after the body was read only.
        answer_encoding: "gzip", "deflate" or None.
    """

    chunks: AsyncIterator[bytes]
    gone: Callable[[], Coroutine[Any, Any, None]]
    content_length: str | None
    content_encoding: str | None
    header_length: str | None
    answer_encoding: str | None


class Service:
    """The models of a bundle, their engine and everything that is counted.

    Args:
        engine: of the bundle's export; closed by :meth:`close`.

    Attributes:
        ready: false before the start and as soon as the server is told to stop.
    """

    def __init__(self, bundle: Bundle, engine: Engine, limits: Limits) -> None:
        self.bundle, self.limits, self.ready = bundle, limits, False
        self.models = models_of(bundle, limits)
        self.statistics = Statistics(list(self.models), VERSION)
        self.admission = Admission(limits.queue, limits.memory)
        self._engine = engine
        runs = next(model.name for model in self.models.values() if model.executes)
        self._batcher = Batcher(
            engine,
            largest=limits.batch,
            delay_s=limits.delay_s,
            executed=lambda images, seconds: self.statistics.executed(runs, images, seconds),
        )
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, usable_cpus()), thread_name_prefix="prepare")

    def hurry(self) -> None:
        """Answer what is under way as soon as possible: there will be no more requests to share an execution with."""
        self._batcher.hurry()

    def close(self) -> None:
        """Finish what is under way, and give everything back."""
        self.ready = False
        self._batcher.close()
        self._threads.shutdown()
        self._engine.close()

    async def infer(self, model: ServedModel, arriving: Arriving) -> InferResponse:
        """The response to one request, its body encoded as the client accepts it.

        Raises:
            RefusedError: everything that can be wrong with the request or with its time; nothing else is raised.
        """
        begin = time.perf_counter()
        try:
            if not self.ready:
                raise RefusedError(503, "the server is stopping")
            with self.admission.lease() as lease:
                return await self._leased(model, arriving, lease)
        except RefusedError as refusal:
            self.statistics.failed(model.name, refusal.reason, time.perf_counter() - begin)
            raise
        except Exception as error:
            self.statistics.failed(model.name, "BACKEND", time.perf_counter() - begin)
            warn(f"a request for '{model.name}' failed: {type(error).__name__}: {error}")
            raise RefusedError(500, "the request failed inside the server; its output says why") from error

    async def _leased(self, model: ServedModel, arriving: Arriving, lease: Lease) -> InferResponse:
        body = await self._body(arriving, lease)
        lease.wait_in_queue()
        begin = time.perf_counter()
        work = asyncio.ensure_future(self._answer(model, body, arriving, lease, begin))
        gone = asyncio.ensure_future(arriving.gone())
        try:
            await asyncio.wait({work, gone}, timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise RefusedError(499, "the client has gone away", "CANCELED")
            raise _too_late(self.limits.timeout_s)
        finally:
            work.cancel()
            gone.cancel()

    async def _body(self, arriving: Arriving, lease: Lease) -> bytes:
        reading = read_body(
            arriving.chunks,
            encoding=arriving.content_encoding,
            announced=arriving.content_length,
            limit=self.limits.body,
            lease=lease,
        )
        try:
            return await asyncio.wait_for(reading, self.limits.timeout_s)
        except asyncio.TimeoutError as error:
            raise RefusedError(408, f"the body did not arrive within {self.limits.timeout_s:g} s") from error

    async def _answer(
        self, model: ServedModel, body: bytes, arriving: Arriving, lease: Lease, begin: float
    ) -> InferResponse:
        names = [output.name for output in model.outputs]
        start = time.perf_counter()
        request = await self._threaded(lambda: parse_request(body, arriving.header_length, names))
        images = await self._threaded(lambda: model.images(request, lease))
        read_s = time.perf_counter() - start
        future = asyncio.wrap_future(self._batcher.submit(images))
        try:
            answer = await asyncio.wait_for(future, request.timeout_s)
        except asyncio.TimeoutError as error:
            raise _too_late(request.timeout_s or 0.0) from error
        start = time.perf_counter()
        outputs = dict(zip(names, answer.outputs, strict=True))
        response = await self._threaded(lambda: self._rendered(model, request, outputs, arriving.answer_encoding))
        end = time.perf_counter()
        spent = Spent(read_s, answer.queue_s, answer.infer_s, end - start, end - begin)
        self.statistics.answered(model.name, len(images), spent)
        return response

    def _rendered(
        self, model: ServedModel, request: InferRequest, outputs: dict[str, Any], encoding: str | None
    ) -> InferResponse:
        response = render_response(request, model.name, VERSION, outputs, model.labels)
        if encoding is None:
            return response
        return InferResponse(compressed(response.body, encoding), response.header_length)

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _too_late(seconds: float) -> RefusedError:
    return RefusedError(503, f"there was no answer within {seconds:g} s; try again later, or send fewer images")
