"""``fastervit-engine``: engines of an export – built on this machine, audited, compared, verified, trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fastervit_trt.artifacts import new_file
from fastervit_trt.building import add_engines
from fastervit_trt.cli.keys import key_command, trust_command
from fastervit_trt.cli.printing import print_audit, print_engine
from fastervit_trt.console import command_app, run_command, say
from fastervit_trt.engine_choice import choose_engines, parse_capabilities, parse_plugin_choice
from fastervit_trt.engines.admission import check_engines
from fastervit_trt.engines.audit import Audit
from fastervit_trt.engines.audit_difference import differences
from fastervit_trt.engines.audit_files import read_audits
from fastervit_trt.engines.cache import CacheEntry, EngineCache
from fastervit_trt.engines.options import BuildOptions, HardwareCompatibility, parse_profiles
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange

__all__ = ["main"]

app = command_app()

Folder = Annotated[Path, typer.Argument(help="Folder written by fastervit-export.")]


@app.command()
def build(
    folder: Folder,
    runtime: Annotated[
        str, typer.Option(help="tensorrt, for this machine's GPU; rtx (TensorRT-RTX), ahead of time; or auto.")
    ] = "auto",
    compute_capability: Annotated[str, typer.Option(help="GPUs for TensorRT-RTX, comma-separated (8.6,8.9).")] = "8.9",
    batch: Annotated[
        str | None, typer.Option(help="Profiles, MIN:OPT:MAX, several by commas; the export's own batch by default.")
    ] = None,
    plugins: Annotated[str, typer.Option(help="auto (the faster on this GPU), on or off.")] = "auto",
    workspace: Annotated[int | None, typer.Option(help="MiB a kernel may use besides its tensors.")] = None,
    shared_memory: Annotated[int | None, typer.Option(help="KiB of shared memory a kernel may use.")] = None,
    level: Annotated[int | None, typer.Option(help="Optimisation level, 0 (fast build) to 5 (fast engine).")] = None,
    max_tactics: Annotated[int | None, typer.Option(help="Kernels timed per layer at most.")] = None,
    tiling: Annotated[str | None, typer.Option(help="Tiling across layers: none, fast, moderate or full.")] = None,
    hardware_compatibility: Annotated[str, typer.Option(help="none (this GPU), ampere+ or same-capability.")] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Loadable by later TensorRT of the same major version.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; they come from model.onnx at load.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build even what was built before.")] = False,
) -> None:
    """Build engines of an export and add them to it; one of the same runtime and GPU is replaced."""
    compatibility: HardwareCompatibility = hardware_compatibility  # type: ignore[assignment]  # checked by BuildOptions
    options = BuildOptions(
        workspace_mib=workspace,
        shared_memory_kib=shared_memory,
        level=level,
        max_tactics=max_tactics,
        tiling=tiling,
        hardware_compatibility=compatibility,
        version_compatible=version_compatible,
        strip_weights=strip_weights,
    )
    choice = choose_engines(
        runtime,
        parse_capabilities(compute_capability),
        parse_plugin_choice(plugins),
        options=options,
        profiles=() if batch is None else parse_profiles(batch),
        use_cache=not no_cache,
    )
    if not choice.requests:
        raise FasterViTError(f"there is nothing to build with: {choice.skipped}")
    manifest, names = add_engines(folder, choice)
    for record in manifest.engines:
        if record["file"] in names:
            print_engine(record, manifest.files[record["file"]]["bytes"])
    say(f"  added to {folder}")


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(help="An export folder, or an engine in one.")],
    against: Annotated[Path | None, typer.Option(help="Another one: print what differs from it.")] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="Every block, not only stages and attentions.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the audit as JSON to this file, too.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Show what engines are made of: types, fused attentions, launches, in the words of the model."""
    audits = read_audits(path)
    if against is not None:
        _print_differences(_only(read_audits(against), against), _only(audits, path))
    else:
        for name, profiles in audits.items():
            for index, found in enumerate(profiles):
                print_audit(_named(name, index, len(profiles)), found, blocks=blocks)
    if output is not None:
        with new_file(output, overwrite=overwrite) as file:
            records = {name: [found.record() for found in profiles] for name, profiles in audits.items()}
            file.write_text(json.dumps(records, indent=1) + "\n")


@app.command()
def verify(
    folder: Folder,
    trust: Annotated[bool, typer.Option("--trust", help="Take signatures of unknown keys, and none.")] = False,
) -> None:
    """Check every engine of an export against this machine, without loading it; exit code 2 if one would not load."""
    checks = check_engines(folder, trust=trust)
    if not checks:
        raise FasterViTError(f"'{folder}' has no engines; build one with: fastervit-engine build {folder}")
    for check in checks:
        say(f"{check.file}: {check.verdict or 'damaged record'}")
        for line in (*check.problems, *(f"note: {warning}" for warning in check.warnings)):
            say(f"  {line}")
        if not check.problems:
            say("  would load here")
    if failed := [check.file for check in checks if check.problems]:
        raise FasterViTError(f"{len(failed)} of {len(checks)} engines would not load here: {', '.join(failed)}")


app.command("key")(key_command)
app.command("trust")(trust_command)


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove everything in it.")] = False) -> None:
    """List the engines built before, or clear them."""
    store = EngineCache.default()
    if clear:
        say(f"removed {store.clear() / 1e6:.1f} MB from {store.folder}")
        return
    for entry in store.entries():
        used = datetime.fromtimestamp(entry.last_used, timezone.utc).isoformat(timespec="seconds")
        say(f"{entry.bytes / 1e6:8.1f} MB  {used}  {_described(entry)}")
    size, limit = store.size_bytes() or 0, store.limit_bytes
    say(f"{size / 1e6:.1f} MB of at most {limit / 1e6:.0f} MB in {store.folder}")


def _described(entry: CacheEntry) -> str:
    """What a cached engine is; timing caches have no key, but tell by their names."""
    if not entry.key:
        return entry.path.name
    what = " ".join(str(entry.key.get(name, "?")) for name in ("runtime", "version", "target", "precision"))
    profiles = ",".join(str(BatchRange(*profile)) for profile in entry.key.get("profiles", ()))
    return f"{what}, batch {profiles or '?'}"


def _only(audits: dict[str, list[Audit]], path: Path) -> list[Audit]:
    """The audits of the one engine, one per profile."""
    if len(audits) != 1:
        raise FasterViTError(f"'{path}' has {len(audits)} engines; name one of {', '.join(audits)} in it")
    return next(iter(audits.values()))


def _named(engine: str, profile: int, profiles: int) -> str:
    return engine if profiles == 1 else f"{engine}, profile {profile}"


def _print_differences(before: list[Audit], after: list[Audit]) -> None:
    """Profile by profile; where one engine has fewer of them, its last against the others' rest."""
    count = max(len(before), len(after))
    for index in range(count):
        found = differences(before[min(index, len(before) - 1)], after[min(index, len(after) - 1)])
        for difference in found:
            say(_named(str(difference), index, count))
        if not found:
            say(_named("no difference", index, count))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fastervit-engine``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
