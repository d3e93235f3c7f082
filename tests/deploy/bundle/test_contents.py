"""Contents of bundles: names that no system misreads, and folders that are exactly what was declared."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervit_trt.deploy.bundle.contents import (
    check_declared,
    check_folder,
    check_names,
    check_path,
    declare,
    list_files,
)
from fastervit_trt.errors import FasterViTError

GOOD = ["bundle.txt", "export/model.rtx-sm89.engine", "LICENSES/Größe 漢.txt", "a b/-c", "con_/common.h", "x" * 100]
BAD = {
    "": "0 bytes",
    "/etc/passwd": "absolute",
    "//host/share": "absolute",
    "a/../../b": r"'\.\.'",
    "..": r"'\.\.'",
    ".": r"'\.'",
    "./a": r"'\.'",
    "a//b": "empty part",
    "a/": "empty part",
    "a\\b": r"it holds \\",
    "C:/a": "it holds :",
    "a:stream": "it holds :",
    "a?": r"it holds \?",
    "a\0b": "control characters",
    "a\nb": "control characters",
    "a\x1b[2J": "control characters",
    "a\u202egnp.exe": "control characters",  # shown as aexe.png
    "a\u2028b": "control characters",
    "a.": "ends with a space or a dot",
    "a /b": "ends with a space or a dot",
    ".../b": "ends with a space or a dot",
    "nul": "a device on Windows",
    "a/Aux.engine": "a device on Windows",
    "COM1 .txt": "a device on Windows",
    "lpt³.onnx": "a device on Windows",
    "u\u0308": "form NFC",
    "\u212b": "form NFC",
    "\ud800": "not Unicode",
    "x" * 101: "101 bytes",
    "é" * 51: "102 bytes",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, a manifest and a signature."""
    folder = tmp_path / "bundle"
    (folder / "export/deep").mkdir(parents=True)
    for name in ("export/deep/b", "export/a", "z", "bundle.json", "bundle.sig"):
        (folder / name).write_text(f"in {name}")
    return folder


@pytest.fixture
def declared(folder: Path) -> dict[str, dict[str, Any]]:
    return declare(folder, lambda name: f"role of {name}")


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_are_paths(name: str) -> None:
    assert check_path(name) == PurePosixPath(name)


@pytest.mark.parametrize("name", BAD)
def test_names_that_some_system_misreads_are_refused(name: str) -> None:
    with pytest.raises(FasterViTError, match=rf"cannot be the path of a file in a bundle: .*{BAD[name]}") as refusal:
        check_path(name)
    assert str(refusal.value).isprintable()


@settings(max_examples=250, derandomize=True, deadline=None)
@given(st.text(st.sampled_from("ab.. /\\:\0~-CONul1é\u0301\u202e\ud800"), max_size=12) | st.text(max_size=8))
def test_what_is_taken_stays_below_its_folder_on_every_system(name: str) -> None:
    try:
        check_path(name)
    except FasterViTError:
        return
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    assert posix.parts == windows.parts == tuple(name.split("/"))
    assert not (posix.is_absolute() or windows.drive or windows.root)
    assert ".." not in posix.parts and name.isprintable() and unicodedata.is_normalized("NFC", name)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["Labels.txt", "labels.TXT"], "same on some file systems"),
        (["a/x", "A/y"], "same on some file systems"),
        (["straße", "STRASSE"], "same on some file systems"),
        (["ﬁle", "file"], "same on some file systems"),
        (["a", "b", "a"], "listed twice"),
        (["a/b", "a"], "both a file and a folder"),
        (["a", "a/b/c"], "both a file and a folder"),
        (["A", "a/b/c"], "same on some file systems"),
        (["a", "../b"], "cannot be the path"),
    ],
)
def test_names_that_cannot_lie_side_by_side_are_refused(names: list[str], reason: str) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(FasterViTError, match=reason):
            check_names(order)
    check_names(["a/x", "a/y", "b", "a/z/x"])


@pytest.mark.parametrize(
    "declared",
    [
        None,
        [],
        {"a": None},
        {"a": {}},
        {"a": {"sha256": "0" * 64}},
        {"a": {"sha256": "0" * 63, "bytes": 1}},
        {"a": {"sha256": "A" * 64, "bytes": 1}},
        {"a": {"sha256": "0" * 64 + "\n", "bytes": 1}},
        {"a": {"sha256": "0" * 64, "bytes": -1}},
        {"a": {"sha256": "0" * 64, "bytes": True}},
        {"a": {"sha256": "0" * 64, "bytes": 1.0}},
        {"bundle.json": {"sha256": "0" * 64, "bytes": 1}},
        {"BUNDLE.SIG": {"sha256": "0" * 64, "bytes": 1}},
        {"bundle.json/a": {"sha256": "0" * 64, "bytes": 1}},
        {"../a": {"sha256": "0" * 64, "bytes": 1}},
        {str(n): {"sha256": "0" * 64, "bytes": 1} for n in range(4097)},
    ],
)
def test_a_record_that_no_bundle_has_is_refused(declared: Any) -> None:
    with pytest.raises(FasterViTError):
        check_declared(declared)
    check_declared({"a": {"sha256": "0" * 64, "bytes": 0}})


def test_files_are_declared_as_they_are(folder: Path, declared: dict[str, dict[str, Any]]) -> None:
    assert list(declared) == ["export/a", "export/deep/b", "z"]
    assert declared["export/a"] == {
        "sha256": hashlib.sha256(b"in export/a").hexdigest(),
        "bytes": 11,
        "role": "role of export/a",
    }
    check_folder(folder, declared)
    (folder / "bundle.sig").unlink()
    check_folder(folder, declared)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("export/a", "in export/b", r"export/a' is not the file that bundle\.json describes"),
        ("z", "", r"z' is not the file that bundle\.json describes"),
        ("export/deep/b", None, r"'export/deep/b' is missing in bundle"),
        ("bundle.json", None, r"'bundle\.json' is missing in bundle"),
        ("export/c", "", r"'export/c' in bundle '.*' is not in its bundle\.json; remove it"),
        ("export/bundle.json", "", r"'export/bundle\.json' in bundle '.*' is not in its"),
    ],
)
def test_what_is_not_as_declared_is_named(
    folder: Path, declared: dict[str, dict[str, Any]], name: str, content: str | None, reason: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(FasterViTError, match=reason):
        check_folder(folder, declared)


def test_the_size_counts_as_the_hash_does(folder: Path, declared: dict[str, dict[str, Any]]) -> None:
    declared["z"]["bytes"] += 1
    with pytest.raises(FasterViTError, match=r"z' is not the file"):
        check_folder(folder, declared)


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
@pytest.mark.parametrize("kind", ["file", "dangling", "folder", "fifo", "manifest"])
def test_links_and_devices_are_no_files(
    folder: Path, declared: dict[str, dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    if kind in ("file", "manifest"):
        place = folder / ("z" if kind == "file" else "bundle.json")
        place.replace(outside)  # of the right content, but elsewhere
        place.symlink_to(outside)
    elif kind == "dangling":
        (folder / "more").symlink_to("nowhere")
    elif kind == "folder":
        (folder / "export").replace(outside)
        (folder / "export").symlink_to(outside, target_is_directory=True)
    else:
        os.mkfifo(folder / "pipe")
    for act in (lambda: check_folder(folder, declared), lambda: declare(folder, str), lambda: list_files(folder)):
        with pytest.raises(FasterViTError, match=r" is a link or a device; put a copy of the file in its place"):
            act()


def test_a_name_that_cannot_travel_is_not_declared(folder: Path) -> None:
    (folder / "a:b").write_text("")
    with pytest.raises(FasterViTError, match=r"'a:b' cannot be the path of a file in a bundle"):
        declare(folder, str)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match=r"cannot read '.*nothing/?' \(No such file"):
        list_files(tmp_path / "nothing")
