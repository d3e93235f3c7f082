"""A folder of pictures and a folder of masks in, annotated images out: ADE20K's layout, or a plain one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated.images import AnnotatedImages, picture_size
from fastervit_trt.models.annotated.masks import MaskFile
from fastervit_trt.models.class_folders import image_files, read_class_names

__all__ = ["is_ade20k", "is_mask_folder", "open_ade20k", "open_mask_folder"]

_ADE_IMAGES, _ADE_MASKS = Path("images/validation"), Path("annotations/validation")
_ADE_CLASSES = 150
_ADE_NAMES = "objectInfo150.txt"
_IMAGES, _MASKS, _NAMES = Path("images"), Path("masks"), "classes.txt"
_IGNORED = 255  # value of pixels that nobody annotated, as in Cityscapes and Pascal VOC
_NAMED = 3  # files that a message names before it only counts


def is_ade20k(root: Path) -> bool:
    """``root`` is laid out as the Scene Parsing Benchmark's ``ADEChallengeData2016``."""
    return (root / _ADE_IMAGES).is_dir() and (root / _ADE_MASKS).is_dir()


def is_mask_folder(root: Path) -> bool:
    """``root`` has ``images`` and ``masks``."""
    return (root / _IMAGES).is_dir() and (root / _MASKS).is_dir()


def open_ade20k(root: Path, max_unreadable: float) -> AnnotatedImages:
    """The validation part of ADE20K's 150 classes: in masks 0 is nothing, 1 to 150 are classes 0 to 149.

    Names come from ``objectInfo150.txt``, or from a ``classes.txt``, which may also name fewer classes.

    Raises:
        FasterViTError: images and masks do not match, or a list of names is damaged.
    """
    names = _read_names(root / _NAMES) if (root / _NAMES).is_file() else _ade_names(root / _ADE_NAMES)
    classes = len(names) or _ADE_CLASSES
    pairs = _pairs(root / _ADE_IMAGES, root / _ADE_MASKS)
    return _open(root, _ADE_IMAGES, pairs, (1, 0), classes, names, max_unreadable)


def open_mask_folder(root: Path, max_unreadable: float) -> AnnotatedImages:
    """``images/…`` with ``masks/….png`` of the same names, whose values are the lines of ``classes.txt``, from 0 on.

    255 is what nobody annotated.

    Raises:
        FasterViTError: images and masks do not match, or ``classes.txt`` is missing or damaged.
    """
    if not (root / _NAMES).is_file():
        raise FasterViTError(
            f"'{root / _NAMES}' is missing; name the classes there, one a line: the first is the value 0 in masks"
        )
    names = _read_names(root / _NAMES)
    pairs = _pairs(root / _IMAGES, root / _MASKS)
    return _open(root, _IMAGES, pairs, (0, _IGNORED), len(names), names, max_unreadable)


def _open(
    root: Path,
    images: Path,
    pairs: list[tuple[Path, Path]],
    values: tuple[int, int],
    classes: int,
    names: tuple[str, ...],
    max_unreadable: float,
) -> AnnotatedImages:
    """Of pictures and masks; ``values`` are those of class 0 and of what nobody annotated."""
    masks = tuple(MaskFile(mask, *values) for _, mask in pairs)
    sizes = tuple(_checked_size(image, mask) for (image, _), mask in zip(pairs, masks, strict=True))
    return AnnotatedImages(
        task="segmentation",
        name=root.resolve().name,
        images=tuple(image for image, _ in pairs),
        sizes=sizes,
        annotations=masks,
        classes=classes,
        class_names=names,
        root=root / images,
        max_unreadable=max_unreadable,
    )


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pictures and masks of the same names but for the suffix, at any depth."""
    pictures = {path: path.relative_to(images).with_suffix("") for path in image_files(images)}
    if not pictures:
        raise FasterViTError(f"'{images}' has no images")
    found = {path.relative_to(masks).with_suffix(""): path for path in image_files(masks) if _is_png(path)}
    repeated = {name for name, times in Counter(pictures.values()).items() if times > 1}
    if twice := [path for path, name in pictures.items() if name in repeated]:
        raise FasterViTError(f"{_listed(twice)} would share one mask; give every image a name of its own")
    if bare := [path for path, name in pictures.items() if name not in found]:
        raise FasterViTError(
            f"{_listed(bare)} has no mask of the same name in '{masks}' (a PNG); add it, or remove the image"
        )
    if lonely := [found[name] for name in found.keys() - set(pictures.values())]:
        raise FasterViTError(f"{_listed(sorted(lonely))} has no image of the same name in '{images}'; add or remove it")
    return [(path, found[name]) for path, name in pictures.items()]


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"  # what JPEG makes of class indices are others


def _checked_size(image: Path, mask: MaskFile) -> tuple[int, int]:
    annotated, actual = mask.size(), picture_size(image)
    if actual is not None and actual != annotated:
        raise FasterViTError(
            f"mask '{mask.path}' is {annotated[1]}x{annotated[0]} pixels, its image '{image}' {actual[1]}x{actual[0]}; "
            "they must be of one size"
        )
    return annotated


def _read_names(path: Path) -> tuple[str, ...]:
    names = tuple(read_class_names(path))
    if not names:
        raise FasterViTError(f"'{path}' is empty; name the classes there, one a line")
    return names


def _ade_names(path: Path) -> tuple[str, ...]:
    """The first word for each class of a table whose columns are number, ratio, train, val and names."""
    if not path.is_file():
        return ()
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()[1:] if line.strip()]
    numbers = [row[0].strip() for row in rows]
    if numbers != [str(number + 1) for number in range(_ADE_CLASSES)]:
        raise FasterViTError(
            f"'{path}' does not list the classes 1 to {_ADE_CLASSES} in order; download it again, or remove it"
        )
    return tuple(row[-1].split(",")[0].strip() for row in rows)


def _listed(paths: list[Path]) -> str:
    named = ", ".join(f"'{path}'" for path in paths[:_NAMED])
    return named if len(paths) <= _NAMED else f"{named} and {len(paths) - _NAMED} more"
