"""Many requests at once: each gets its own answer, together they cost fewer executions."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from fastervit_trt.deploy.bundle.manifest import Bundle
from tests.deploy.serving.running import Direct, Running, assert_close, running, some_images

client_library = pytest.importorskip("tritonclient.http")
asynchronous = pytest.importorskip("tritonclient.http.aio")

CONCURRENCY = 32
REQUESTS = 96


def given(library: Any, images: np.ndarray) -> list[Any]:
    tensor = library.InferInput("images", images.shape, "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


@pytest.fixture(scope="module")
def sizes_and_wanted(direct: Direct) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Requests of 1 to 3 images, all different."""
    pool = some_images(24, seed=1)
    wanted = direct(pool)
    picks = [np.random.default_rng(n).choice(len(pool), 1 + n % 3, replace=False) for n in range(REQUESTS)]
    return [pool[pick] for pick in picks], [wanted[pick] for pick in picks]


def test_every_one_of_many_concurrent_answers_is_right(
    served: Running, sizes_and_wanted: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    requests, wanted = sizes_and_wanted
    before = served.statistics()
    with client_library.InferenceServerClient(served.address, concurrency=CONCURRENCY) as client:
        under_way = [
            client.async_infer(served.model, given(client_library, images), request_id=str(n))
            for n, images in enumerate(requests)
        ]
        for n, (request, logits) in enumerate(zip(under_way, wanted, strict=True)):
            result = request.get_result()
            assert result.get_response()["id"] == str(n)
            assert_close(result.as_numpy("logits"), logits)
    after = served.statistics()
    assert after["inference_count"] - before["inference_count"] == sum(map(len, requests))
    assert 1 <= after["execution_count"] - before["execution_count"] <= REQUESTS  # how many meet is up to the clock


def test_the_asynchronous_client_too(
    served: Running, sizes_and_wanted: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    requests, wanted = sizes_and_wanted

    async def all_of_them() -> list[Any]:
        async with asynchronous.InferenceServerClient(served.address, conn_limit=CONCURRENCY) as client:
            calls = (client.infer(served.model, given(asynchronous, images)) for images in requests[:CONCURRENCY])
            return list(await asyncio.gather(*calls))

    for result, logits in zip(asyncio.run(all_of_them()), wanted, strict=False):
        assert_close(result.as_numpy("logits"), logits)


def test_company_in_a_batch_changes_no_answer(bundle: Bundle, direct: Direct) -> None:
    """Eight requests fill a batch exactly, so that none waits for the delay; one of them is all NaN."""
    images = some_images(8, seed=2)
    images[3] = np.nan
    with (
        running(bundle, delay_ms=60_000) as server,
        client_library.InferenceServerClient(server.address, concurrency=8) as client,
    ):
        under_way = [client.async_infer(server.model, given(client_library, image[None])) for image in images]
        logits = np.concatenate([request.get_result().as_numpy("logits") for request in under_way])
        assert server.statistics()["batch_stats"][0]["batch_size"] == 8
    assert np.isnan(logits[3]).any()
    others = np.arange(8) != 3
    assert_close(logits[others], direct(images[others]))
