"""An engine's record in, an Ed25519 signature out; and a signature in, whose it is out.

A signature says who built an engine and that neither its file nor what is said of it has changed since. It covers the
record in the manifest and size and SHA-256 of the files that are loaded with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastervit_trt.engines.keys import Signed, Verdict, sign, verify
from fastervit_trt.export.graph import GRAPH_FILE

__all__ = ["sign_record", "verify_record"]

_PURPOSE = b"fastervit-trt engine 1\n"  # so that no other signature of this key fits


def sign_record(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record with the signature of the user's own key, which is made at its first use.

    Args:
        record: of the manifest's engines; a signature in it is replaced.
        files: of the manifest, with ``record["file"]`` and the graph of a stripped engine.

    Raises:
        FasterViTError: the key cannot be read or made, or others could have read it.
    """
    return {**record, "signature": sign(_PURPOSE, _message(record, files))}


def verify_record(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Whose signature ``record`` carries, and whether it holds for the record and the files as the manifest lists them.

    That the files are what the manifest says is for the caller to check.

    Raises:
        FasterViTError: the user's own key cannot be read.
    """
    signature = record.get("signature")
    if signature is None:
        return Verdict(Signed.UNSIGNED)
    try:
        message = _message(record, files)
    except (KeyError, TypeError, ValueError):
        return Verdict(Signed.BAD)
    return verify(_PURPOSE, message, signature)


def _message(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """What is signed: the record, and the files that are loaded with the engine."""
    names = [record["file"]]
    if record.get("stripped"):  # its weights come from there
        names += sorted(name for name in files if name.startswith(GRAPH_FILE))
    covered = {name: {"sha256": files[name]["sha256"], "bytes": files[name]["bytes"]} for name in names}
    plain = json.loads(json.dumps({k: v for k, v in record.items() if k != "signature"}))  # as it is read back
    signed = {"record": plain, "files": covered}
    return json.dumps(signed, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
