"""``fastervit-deploy triton`` and ``serve``: a bundle in; a model repository, or a running endpoint, out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from fastervit_trt.console import say, step
from fastervit_trt.deploy.bundle.opened import opened_bundle
from fastervit_trt.errors import FasterViTError

__all__ = ["Overwrite", "TheBundle", "Trust", "one_of", "serve_command", "triton_command"]

TheBundle = Annotated[Path, typer.Argument(help="A bundle: a .tar.zst or its folder; or an installed one.")]
Trust = Annotated[bool, typer.Option("--trust", help="Take a bundle of an unknown signer, or of none, this once.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")]
_Backend = Literal["auto", "tensorrt", "onnxruntime"]
_Device = Literal["auto", "gpu", "cpu"]


def triton_command(
    bundle: TheBundle,
    repository: Annotated[Path, typer.Option(help="Folder to write; the model repository is models/ in it.")],
    backend: Annotated[str, typer.Option(help="auto, tensorrt or onnxruntime.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, gpu or cpu.")] = "auto",
    instances: Annotated[int, typer.Option(help="Of the model on each GPU, or on the CPU.")] = 1,
    max_batch: Annotated[int | None, typer.Option(help="Fewer images at once than engine or graph allow.")] = None,
    queue_delay: Annotated[int, typer.Option(help="Microseconds a request may wait to share its batch.")] = 500,
    queue_size: Annotated[int | None, typer.Option(help="Requests that may wait; more are refused.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of each instance on a CPU.")] = None,
    versions_kept: Annotated[int, typer.Option(help="Newest versions that are served.")] = 1,
    engine: Annotated[str | None, typer.Option(help="File of the engine, if the bundle has several.")] = None,
    image: Annotated[str | None, typer.Option(help="Triton's image, if not the one that fits the engine.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; the export's by default.")] = None,
    trust: Trust = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model repository for the Triton Inference Server, with Dockerfile, compose file and client."""
    from fastervit_trt.deploy.triton.repository import write_repository

    with step("signature and hashes"), opened_bundle(bundle, trust=trust) as opened:
        written = write_repository(
            opened.bundle,
            repository,
            backend=one_of(backend, _Backend, "--backend"),
            device=one_of(device, _Device, "--device"),
            instances=instances,
            max_queue_delay_us=queue_delay,
            max_batch=max_batch,
            queue_size=queue_size,
            versions_kept=versions_kept,
            threads=threads,
            engine=engine,
            image=image,
            name=name,
            overwrite=overwrite,
        )
    say(f"{written.folder}: {written.names[0]} (tensors) and {written.names[1]} (pictures), {written.backend}")
    for notice in written.notices:
        say(f"  {notice}")
    say(f"  image: {written.image or 'none is known that has this TensorRT; --image names one'}")
    say(f"  in Docker: docker compose --project-directory {shlex.quote(str(written.folder))} up")
    say(f"  with Triton at hand: {shlex.join(written.command)}")


def serve_command(
    bundle: TheBundle,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    batch: Annotated[int | None, typer.Option(help="Images put together for one execution.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused.")] = 64,
    delay: Annotated[float, typer.Option(help="Milliseconds a request may wait to share an execution.")] = 2.0,
    max_body: Annotated[float, typer.Option(help="MiB of a request.")] = 64.0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 30.0,
    threads: Annotated[int | None, typer.Option(help="Of ONNX Runtime.")] = None,
    trust: Trust = False,
) -> None:
    """Serve a bundle over HTTP on this machine's CPU, in Triton's protocol (KServe v2), to try it without Triton."""
    from fastervit_trt.deploy.serving.server import serve

    with opened_bundle(bundle, trust=trust) as opened:
        model = opened.bundle.export.model
        serve(
            opened.bundle,
            host=host,
            port=port,
            batch=batch,
            queue=queue,
            max_body_mib=max_body,
            delay_ms=delay,
            threads=threads,
            timeout_s=timeout,
            on_ready=lambda url: say(f"{model} and {model}_pictures at {url}; ctrl-c ends it"),
        )


def one_of(text: str, choices: Any, option: str) -> Any:
    """``text``, which is one of the values of a ``Literal``.

    Raises:
        FasterViTError: it is none.
    """
    known = get_args(choices)
    if text not in known:
        raise FasterViTError(f"{option} '{text}' is none of {', '.join(known)}")
    return text
