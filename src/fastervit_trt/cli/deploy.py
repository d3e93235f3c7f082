"""``fastervit-deploy``: from an export to a machine that serves it – packed, signed, installed, verified, served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.table import Table

from fastervit_trt.artifacts import Manifest
from fastervit_trt.cli.deploy_serving import Overwrite, TheBundle, Trust, one_of, serve_command, triton_command
from fastervit_trt.cli.keys import key_command, trust_command
from fastervit_trt.console import command_app, console, run_command, say, step
from fastervit_trt.deploy.targets.detect import detect_target
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.table import TARGETS, get_target
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engines.keys import PublicKey, public_key_line
from fastervit_trt.errors import FasterViTError

if TYPE_CHECKING:
    from fastervit_trt.deploy.install.arrival import Arrival

__all__ = ["main"]

app = command_app()

_LOCAL = "local"
_COLUMNS = ("target", "machine", "SM", "runtime", "precisions", "plugins", "batch", "workspace")
_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "problem"}


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="Everything about this one, with sources; or 'local'.")] = None,
) -> None:
    """List the machines that bundles are packed for."""
    if name is not None:
        _print_target(_target(name))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column != "machine")
    for target in TARGETS.values():
        table.add_row(*_row(target))
    console.print(table)
    say("fastervit-deploy targets NAME says where each fact comes from")


@app.command()
def pack(
    export: Annotated[Path, typer.Argument(help="Folder written by fastervit-export.")],
    target: Annotated[str, typer.Option(help="One of `fastervit-deploy targets`, or 'local'.")],
    output: Annotated[
        Path | None, typer.Option(help="A .tar.zst, or a folder; MODEL-PRECISION-TARGET.tar.zst by default.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with one class name a line.")] = None,
    plugins: Annotated[str, typer.Option(help="auto, library, sources (built on the target) or none.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write one signed bundle with everything a target needs."""
    from fastervit_trt.deploy.bundle.pack import ARCHIVE_SUFFIX, PackRequest, PluginsChoice, bundle_name
    from fastervit_trt.deploy.bundle.pack import pack as write_bundle

    choice = one_of(plugins, PluginsChoice, "--plugins")
    chosen = _target(target)
    if output is None:
        output = Path(f"{bundle_name(Manifest.read(export), chosen)}{ARCHIVE_SUFFIX}")
    request = PackRequest(export, chosen, output, labels, choice, overwrite)
    packed = write_bundle(request, step)
    manifest, size = packed.manifest, sum(int(entry["bytes"]) for entry in packed.manifest.files.values())
    packed_in = f" in {packed.path.stat().st_size / 1e6:.1f} MB" if packed.path.is_file() else ""
    say(
        f"{packed.path}: {manifest.name}, {len(manifest.files)} files, {size / 1e6:.1f} MB{packed_in}, "
        f"for {chosen.title}"
    )
    engines = [path for path, entry in manifest.files.items() if entry["role"] == "engine"]
    say(f"  engines: {', '.join(engines) or 'none, it is built on the target'}")
    for file, reason in packed.left_out.items():
        say(f"  left out: {file}: {reason}")
    say(f"  plugins: {manifest.plugin['kind'] if manifest.plugin else 'none'}")
    if packed.golden is not None:
        say(f"  golden set: {packed.golden}")
    signer = PublicKey.parse(public_key_line(), "the own key")
    say(f"  signed by {signer.comment} {signer.fingerprint}; the key for targets to trust: fastervit-deploy key")
    for notice in manifest.notices:
        say(f"  notice: {notice}")


@app.command()
def install(
    bundle: TheBundle,
    output: Annotated[Path | None, typer.Option(help="Folder to install to; the bundle's name by default.")] = None,
    trust: Trust = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Go through what can be done without the target, on this machine.")
    ] = False,
    batch: Annotated[str | None, typer.Option(help="Profiles, MIN:OPT:MAX; the target's default otherwise.")] = None,
    workspace: Annotated[int | None, typer.Option(help="MiB a kernel may use besides its tensors.")] = None,
    plugins: Annotated[str, typer.Option(help="auto (the faster on this GPU), on or off.")] = "auto",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build though an engine that runs came along.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the throughput smoke test.")] = 2.0,
    min_throughput: Annotated[
        float | None, typer.Option(help="Images per second below which the installation fails.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Check a bundle, build its engine on this machine, verify it on arrival, write a receipt."""
    from fastervit_trt.deploy.install.install import InstallRequest
    from fastervit_trt.deploy.install.install import install as install_bundle
    from fastervit_trt.deploy.install.memory import FreeMemory
    from fastervit_trt.deploy.install.provision import BuildWish
    from fastervit_trt.engine_choice import parse_plugin_choice
    from fastervit_trt.engines.options import parse_profiles

    profiles = () if batch is None else parse_profiles(batch)
    wish = BuildWish(profiles, workspace, parse_plugin_choice(plugins), rebuild)
    if output is None:
        output = Path(_bare_name(bundle))
    request = InstallRequest(bundle, output, trust, rehearse, wish, seconds, min_throughput, overwrite)
    here = Here.detect()
    installed = install_bundle(request, here, FreeMemory.detect(), step)
    receipt = installed.receipt
    say(f"{installed.folder}: {receipt.bundle['name']}, installed on {here}")
    signer = receipt.bundle["signer"]
    say(f"  signed: {' '.join(str(part) for part in (signer['signed'], signer['name'], signer['key']) if part)}")
    if receipt.engine is not None:
        took = "" if receipt.engine["origin"] == "bundle" else f", {receipt.engine['build_seconds']:.1f} s"
        say(f"  engine: {receipt.engine['file']}, {receipt.engine['origin']}{took}")
    say(f"  plugins: {receipt.plugin}")
    _print_arrival(installed.arrival)
    for reason in receipt.rehearsal:
        say(f"  rehearsed only: {reason}")


@app.command()
def verify(
    bundle: TheBundle,
    trust: Trust = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the throughput smoke test.")] = 2.0,
) -> None:
    """Check signature and every hash; of an installed bundle also golden outputs, precision and throughput."""
    from fastervit_trt.deploy.bundle.opened import opened_bundle
    from fastervit_trt.deploy.install.install import verify_installed
    from fastervit_trt.deploy.install.receipt import RECEIPT_FILE

    with step("signature and hashes"), opened_bundle(bundle, trust=trust) as opened:
        manifest, installed = opened.bundle.manifest, RECEIPT_FILE in opened.bundle.manifest.files
        say(f"{bundle}: {manifest.name}, {len(manifest.files)} files as they were signed, {opened.verdict}")
    for notice in manifest.notices:
        say(f"  notice: {notice}")
    if installed and bundle.is_dir():
        _print_arrival(verify_installed(bundle, trust=trust, seconds=seconds, step=step))


@app.command()
def doctor(
    target: Annotated[
        str | None, typer.Option(help="What this machine is to be; what keeps it from that is a problem.")
    ] = None,
) -> None:
    """Explain this machine: driver, CUDA, TensorRT, plugins, power and clocks; exit code 2 if something is wrong."""
    from fastervit_trt.deploy.doctor.examine import examine
    from fastervit_trt.deploy.doctor.findings import for_target, problems_for

    here = Here.detect()
    wanted = None if target is None else _target(target)
    say(f"{here}")
    with step("looking at everything"):
        findings = examine(here, wanted)
    area = ""
    for found in for_target(wanted, findings):
        say(f"{found.area if found.area != area else '':<14}{_MARKS[found.state]} {found.text}")
        if found.advice:
            say(f"{'':<16}→ {found.advice}")
        area = found.area
    if problems := problems_for(wanted, findings):
        areas = ", ".join(dict.fromkeys(found.area for found in problems))
        whom = f" for {wanted.name}" if wanted is not None else ""
        raise FasterViTError(f"{len(problems)} problems{whom}, see above: {areas}")


app.command("triton")(triton_command)
app.command("serve")(serve_command)


app.command("key")(key_command)
app.command("trust")(trust_command)


def _target(name: str) -> Target:
    return detect_target(Here.detect()) if name == _LOCAL else get_target(name)


def _row(target: Target) -> tuple[str, ...]:
    workspace = "" if target.workspace_mib is None else f"{target.workspace_mib} MiB"
    runtime = f"{target.runtime} {target.versions.requirement}"
    return (
        target.name,
        target.title,
        target.capability or "",
        runtime,
        " ".join(target.precisions),
        "yes" if target.plugins else "no",
        target.batch,
        workspace,
    )


def _print_target(target: Target) -> None:
    say(f"{target.name}: {target.title}")
    for name, value in zip(_COLUMNS[2:], _row(target)[2:], strict=True):
        say(f"  {name}: {value or '-'}")
    flat = "yes" if target.flat else "no"
    say(f"  platform: {', '.join(target.platforms)}; memory: {target.memory}; flat graph: {flat}")
    for release in target.jetpack:
        say(f"  {release}")
    for fact in target.facts:
        say(f"  - {fact.text} ({fact.source})")


def _print_arrival(arrival: Arrival) -> None:
    golden, smoke = arrival.golden, arrival.smoke
    say(f"  runs: {arrival.description}")
    say(f"  golden outputs: within the budget on {golden.images} images; {golden}")
    say(f"  precision: {arrival.precision.state}; {arrival.precision.text}")
    settled = "" if smoke.settled else ", the clock had not settled"
    say(
        f"  smoke test: {smoke.throughput_img_per_s:.1f} images/s, p50 {smoke.latency_p50_ms:.2f} ms at batch "
        f"{smoke.batch}{settled}; fastervit-bench measures"
    )


def _bare_name(bundle: Path) -> str:
    from fastervit_trt.deploy.bundle.pack import ARCHIVE_SUFFIX

    name = bundle.resolve().name.removesuffix(ARCHIVE_SUFFIX)
    return f"{name}-installed" if bundle.is_dir() else name


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fastervit-deploy``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
