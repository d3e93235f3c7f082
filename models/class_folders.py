"""A folder with one sub-folder of images per class in, files with class indices out; refuses what it would misnumber.

A class index is the number of a name: in ``classes.txt`` beside the sub-folders (one name a line, in the model's
order) or ``class_to_idx.json`` ({"name": index}), else among the sorted names of the sub-folders, as in ImageNet's
published evaluation. With such a file sub-folders may be missing, so that a subset keeps the model's indices.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt.errors import FasterViTError

__all__ = [
    "SUFFIXES",
    "ClassFolders",
    "image_files",
    "is_imagenet_1k",
    "is_wordnet",
    "read_class_folders",
    "read_class_names",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})

_LIST, _INDICES = "classes.txt", "class_to_idx.json"
_PARTS = {"train", "val", "validation", "test"}  # of a data set, whose folder was given instead of one of them
_JUDGED = ("val", "validation")
_WORDNET = re.compile(r"(n\d{8})(\s.*)?")
_NAMED = 3  # names that a message lists before it only counts

# Of the 1000 sorted WordNet ids of ILSVRC2012, one a line: the classes of every ImageNet-1k checkpoint, in its order.
_IMAGENET_1K = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


@dataclass(frozen=True)
class ClassFolders:
    """Images of a folder (paths), their class indices, and the names of all classes in the order of the indices."""

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    mapping: Path | None  # the file that gives the indices


def read_class_folders(root: Path) -> ClassFolders:
    """Images and classes of ``root``, or of its ``val`` where it is the folder around ``train`` and ``val``.

    Raises:
        FasterViTError: no images, a sub-folder without images or unknown to the mapping, a damaged mapping, or names
            whose order is a matter of opinion.
    """
    given, root = root, _judged_part(root)
    found = {folder.name: image_files(folder) for folder in _sub_folders(root)}
    if not any(found.values()):
        raise FasterViTError(f"dataset folder '{given}' has no images; it needs one sub-folder of images per class")
    mapping = _mapping_file(dict.fromkeys((root, given)))
    if mapping is None:
        names = _numbered(list(found), root)
        if empty := [name for name in names if not found[name]]:
            raise FasterViTError(
                f"{_listed(empty)} in '{root}' has no images, though it would count as a class; remove it, or name "
                f"all classes of the model, one a line, in '{root / _LIST}'"
            )
    else:
        names = read_class_names(mapping)
        if unknown := [name for name in found if name not in set(names)]:
            raise FasterViTError(f"{_listed(unknown)} in '{root}' is not in '{mapping}'; add or remove it")
    files = [(path, index) for index, name in enumerate(names) for path in found.get(name, [])]
    paths, labels = zip(*files, strict=True)
    return ClassFolders(root, tuple(paths), tuple(labels), tuple(names), mapping)


def image_files(folder: Path) -> list[Path]:
    """Images at any depth, sorted; hidden files, such as macOS leaves beside its own, are none."""
    found = [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    ]
    return sorted(found)


def is_wordnet(names: Iterable[str]) -> bool:
    """All of ``names`` are WordNet ids, as the folders of ImageNet are called."""
    return all(re.fullmatch(r"n\d{8}", name) for name in names)


def is_imagenet_1k(names: Sequence[str]) -> bool:
    """``names`` are the classes of ImageNet-1k in the order of every checkpoint trained on it."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest() == _IMAGENET_1K


def _judged_part(root: Path) -> Path:
    names = {folder.name for folder in _sub_folders(root)}
    part = next((name for name in _JUDGED if name in names), None)
    return root / part if part is not None and names <= _PARTS and _sub_folders(root / part) else root


def _sub_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _numbered(names: list[str], root: Path) -> list[str]:
    """Sorted, where text and numbers agree on what that means; 0, 1, …, 10 are the indices themselves."""
    if all(name.isdecimal() for name in names) and sorted(map(int, names)) == list(range(len(names))):
        return sorted(names, key=int)
    as_text, as_numbers = sorted(names), sorted(names, key=_natural)
    if as_text == as_numbers:
        return as_text
    first = next(i for i, (one, other) in enumerate(zip(as_text, as_numbers, strict=True)) if one != other)
    raise FasterViTError(
        f"which sub-folder of '{root}' is class {first}: '{as_text[first]}' (sorted as text) or '{as_numbers[first]}' "
        f"(as numbers, in any case)? Name all classes in the model's order, one a line, in '{root / _LIST}'"
    )


def _natural(name: str) -> list[str | int]:
    """timm's order, where torchvision's is that of the text."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


def _mapping_file(folders: Iterable[Path]) -> Path | None:
    found = [folder / name for folder in folders for name in (_LIST, _INDICES) if (folder / name).is_file()]
    if len(found) > 1:
        raise FasterViTError(f"'{found[0]}' and '{found[1]}' both number the classes; keep one of them")
    return found[0] if found else None


def read_class_names(path: Path) -> list[str]:
    """Names in the order of their indices, of a ``classes.txt`` or ``class_to_idx.json``.

    Raises:
        FasterViTError: it does not number them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _names_of_list(text) if path.name == _LIST else _names_of_indices(json.loads(text))
    except (ValueError, TypeError) as error:
        raise FasterViTError(f"'{path}' does not number classes: {error}; write it again") from error
    return names


def _names_of_list(text: str) -> list[str]:
    """A name a line; of lists of ImageNet, whose lines go on with words, the WordNet ids alone."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    ids = [match[1] for name in names if (match := _WORDNET.fullmatch(name))]
    names = ids if len(ids) == len(names) else names
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"it names {_listed(repeated)} more than once")
    return names


def _names_of_indices(indices: object) -> list[str]:
    """All of 0, 1, … must be there: of a part of them, nobody could say whether they are the model's."""
    if not isinstance(indices, dict):
        raise ValueError('it is not of the form {"name": 0, …}')
    if sorted(indices.values()) != list(range(len(indices))):
        raise ValueError(f"its {len(indices)} indices are not 0 to {len(indices) - 1}, each once")
    return sorted(indices, key=indices.__getitem__)


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return listed if len(names) <= _NAMED else f"{listed} and {len(names) - _NAMED} more"
