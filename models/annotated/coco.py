"""A folder in COCO's layout in, pictures with boxes out; refuses annotations that do not fit what they annotate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.annotated.coco_json import CocoImage, CocoJson
from fastervit_trt.models.annotated.images import AnnotatedImages, picture_size

__all__ = ["is_coco", "open_coco"]

_FOLDER = "annotations"
_PREFIX = "instances_"
_USUAL = f"{_PREFIX}val2017.json"  # of several, what results are published on
_NAMED = 3  # files that a message names before it only counts


def is_coco(path: Path) -> bool:
    """``path`` is a JSON file, or a folder with JSON files in ``annotations``."""
    return (path.is_file() and path.suffix.lower() == ".json") or any((path / _FOLDER).glob("*.json"))


def open_coco(path: Path, max_unreadable: float) -> AnnotatedImages:
    """Images and boxes that one ``instances_NAME.json`` lists.

    Categories are numbered in the order of their ids, so that COCO's 80, whose ids reach 90, are classes 0 to 79.
    Images are ordered by their ids, as pycocotools orders them; those without an object belong to the data, too.
    Boxes are cut at the edges of the picture.

    Args:
        path: a folder with ``annotations/instances_NAME.json``, of several the one with ``val2017``; or such a file.
            Images are in ``NAME``, ``images/NAME`` or ``images`` of the folder, in the folder itself, or beside the
            file.

    Raises:
        FasterViTError: no such file, or one that does not describe the images that are there.
    """
    file = path if path.is_file() else _annotation_file(path)
    content = CocoJson(file)
    classes, names = content.categories()
    images = content.images()
    folder = _image_folder(file, images)
    paths = tuple(folder / image.file for image in images)
    for image, picture in zip(images, paths, strict=True):
        _check_size(image, picture, file)
    return AnnotatedImages(
        task="detection",
        name=f"{_root(file).resolve().name}, {_part(file)}",
        images=paths,
        sizes=tuple(image.size for image in images),
        annotations=content.objects(images, classes),
        classes=len(classes),
        class_names=names,
        root=folder,
        max_unreadable=max_unreadable,
    )


def _annotation_file(root: Path) -> Path:
    found = sorted((root / _FOLDER).glob(f"{_PREFIX}*.json"))
    if not found:
        raise FasterViTError(
            f"'{root / _FOLDER}' has no {_PREFIX}*.json, the files of COCO with boxes; give yours by its path"
        )
    if len(found) == 1:
        return found[0]
    usual = root / _FOLDER / _USUAL
    if usual not in found:
        raise FasterViTError(
            f"'{root / _FOLDER}' has {len(found)} files {_PREFIX}*.json; name one of them instead of the folder, "
            f"as '{found[-1]}'"
        )
    return usual


def _image_folder(file: Path, images: Sequence[CocoImage]) -> Path:
    """The first of the usual places that has all images; else that which has most of them is wrong by what it lacks."""
    root, part = _root(file), _part(file)
    places = [root / part, root / "images" / part, root / "images", root, file.parent]
    lacking = {}
    for place in dict.fromkeys(place for place in places if place.is_dir()):
        lacking[place] = [image.file for image in images if not (place / image.file).is_file()]
        if not lacking[place]:
            return place
    place, missing = min(lacking.items(), key=lambda item: len(item[1]))
    if len(missing) == len(images):
        raise FasterViTError(
            f"none of the {len(images)} images of '{file}' is in '{root / part}' or '{root / 'images'}'; put them there"
        )
    named = ", ".join(f"'{name}'" for name in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    raise FasterViTError(f"'{file}' annotates {named}{more}, not to be found in '{place}'; add the images there")


def _root(file: Path) -> Path:
    return file.parent.parent if file.parent.name == _FOLDER else file.parent


def _part(file: Path) -> str:
    return file.stem.removeprefix(_PREFIX)


def _check_size(image: CocoImage, picture: Path, file: Path) -> None:
    actual = picture_size(picture)
    if actual is not None and actual != image.size:
        raise FasterViTError(
            f"'{picture}' is {actual[1]}x{actual[0]} pixels, but '{file}' was made for {image.size[1]}x{image.size[0]} "
            "(orientation tags are ignored); annotate the picture as it is"
        )
