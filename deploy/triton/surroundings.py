"""What is served, and how, in; everything beside the model repository out: image, compose file, client, documents.

The repository alone would be served too, but by which Triton, with which options, and is it right? What lies beside it
answers that: ``docker compose up``, then ``client.py --golden golden``.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt import __version__
from fastervit_trt.artifacts import sha256_file
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.triton.config import LABELS, Service
from fastervit_trt.deploy.triton.images import NEWEST, Release, release_with
from fastervit_trt.deploy.triton.served import Served

__all__ = ["PLUGINS", "REPOSITORY", "Surroundings"]

REPOSITORY = "models"
PLUGINS = "plugins"
GOLDEN = "golden"
_IN_IMAGE = "/opt/fastervit/plugins"
_HERE = Path(__file__).parent
_DOCKER = _HERE.parent / "docker"
_DEFAULT_REQUEST = 64 << 20  # bytes that Triton's HTTP takes (HTTP_DEFAULT_MAX_INPUT_SIZE in its src/common.h)
_HEADER = 1 << 20  # of a request, beside the tensor


@dataclass(frozen=True)
class Surroundings:
    """Writes what lies beside the repository."""

    bundle: Bundle
    served: Served
    service: Service
    image: str | None  # Triton's, where the user named one

    @property
    def release(self) -> Release | None:
        """Of NVIDIA's containers, that fits; None where the user named an image, or none is known."""
        if self.image is not None:
            return None
        engine = self.served.engine
        if engine is None:
            return NEWEST
        return release_with(engine["version"], version_compatible=engine["version_compatible"])

    @property
    def server_image(self) -> str | None:
        release = self.release
        return self.image if release is None else release.server

    @property
    def notices(self) -> tuple[str, ...]:
        """What whoever serves it has to know, one line each."""
        engine, lines = self.served.engine, list(self.served.notices)
        if self.server_image is None and engine is not None:
            lines.append(
                f"no Triton image is known that has TensorRT {engine['version']}: find one in NVIDIA's support matrix "
                "and set TRITON_IMAGE, or build the engine in the image that will serve it"
            )
        if not self.served.batch:
            lines.append(
                f"the graph takes {self.served.static} image(s) at once, no fewer and no more: Triton puts no requests "
                "together and limits no queue; export with --batch 1:OPT:MAX for that"
            )
        return (*lines, *self.bundle.manifest.notices)

    def command(self, models: str, plugins: str) -> list[str]:
        """The server's command line, for a machine or an image that has ``tritonserver``.

        Args:
            models: folder of the repository; Triton wants it absolute.
            plugins: folder of the plugin library.
        """
        options = ["tritonserver", f"--model-repository={models}", "--disable-auto-complete-config"]
        options.append("--model-control-mode=none")  # nobody changes over the network what is served
        if self.served.plugin is not None:
            # Not LD_PRELOAD: the library registers itself with the TensorRT that is loaded, and at that time none is.
            # When the backend opens it (tensorrt_backend/src/tensorrt.cc), TensorRT is there.
            options.append(f"--backend-config=tensorrt,plugins={plugins}/{self.served.plugin[0].name}")
        if self.served.engine is not None and self.served.engine["version_compatible"]:
            options.append("--backend-config=tensorrt,version-compatible=true")
        if self._request_bytes is not None:
            options.append(f"--http-max-input-size={self._request_bytes}")
        return options

    def write(self, folder: Path) -> None:
        """All of it, into ``folder``, which has the repository already."""
        self._plugins(folder / PLUGINS)
        (folder / "Dockerfile").write_text(self._dockerfile())
        (folder / "compose.yaml").write_text(self._compose())
        shutil.copyfile(_DOCKER / "requirements.txt", folder / "requirements.txt")
        shutil.copyfile(_HERE / "templates" / "client.py", folder / "client.py")
        if self.bundle.manifest.labels is not None:
            shutil.copyfile(self.bundle.folder / self.bundle.manifest.labels, folder / LABELS)
        if self._checkable:
            self._golden(folder / GOLDEN)
        if (self.bundle.folder / "LICENSES").is_dir():  # NVIDIA's weights must not travel without theirs
            shutil.copytree(self.bundle.folder / "LICENSES", folder / "LICENSES")
        (folder / "README.txt").write_text(self._readme(), encoding="utf-8")

    @property
    def _request_bytes(self) -> int | None:
        """Of the largest request, where Triton would refuse it unless told."""
        size = 4 * (self.served.batch or self.served.static)
        for side in self.served.image:
            size *= side
        limited = self.release is None or self.release.limits_requests
        return size + _HEADER if limited and size + _HEADER > _DEFAULT_REQUEST else None

    def _plugins(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "README.txt").write_text("Libraries that Triton's TensorRT backend loads; SHA256SUMS pins them.\n")
        files = [folder / "README.txt"]
        if self.served.plugin is not None:
            path, _ = self.served.plugin
            shutil.copyfile(path, folder / path.name)
            files.append(folder / path.name)
        lines = [f"{sha256_file(path)}  {path.name}\n" for path in files]
        (folder / "SHA256SUMS").write_text("".join(lines))

    def _dockerfile(self) -> str:
        text = (_DOCKER / "Dockerfile.triton").read_text()
        image = self.server_image
        text = re.sub(
            r"^ARG TRITON_IMAGE=.*$", f"ARG TRITON_IMAGE={image}" if image else "ARG TRITON_IMAGE", text, flags=re.M
        )
        return re.sub(r"^# 26\.07 holds .*\n(?:# .*\n)*", f"# {self._why_image()}\n", text, flags=re.M)

    def _why_image(self) -> str:
        engine, release = self.served.engine, self.release
        if engine is None:
            return "ONNX Runtime runs the graph: any release of Triton does whose ONNX Runtime reads its opset."
        if release is None:
            return f"The engine runs with TensorRT {engine['version']}: the image must have that."
        built = f"The engine was built with TensorRT {engine['version']}"
        return f"{built}; {release.tag} holds {release.tensorrt}."

    def _compose(self) -> str:
        served, engine, name = self.served, self.served.engine, self.served.name
        conditions = {
            "gpu": served.device == "gpu",
            "cpu": served.backend == "onnxruntime",
            "either": self._either,
            "plugin": served.plugin is not None,
            "version-compatible": engine is not None and engine["version_compatible"],
            "limit": self._request_bytes is not None,
            "template": False,
        }
        text = _kept((_DOCKER / "compose.yaml").read_text(), conditions)
        image = self.server_image
        default = f"${{TRITON_IMAGE:-{image}}}" if image else "${TRITON_IMAGE:?an image with the engine's TensorRT}"
        text = re.sub(r"\$\{TRITON_IMAGE:-[^}]*\}", lambda _: default, text)
        project = re.sub(r"[^a-z0-9_-]", "-", f"triton-{name}".lower())  # compose allows no more
        text = text.replace("name: fastervit-triton\n", f"name: {project}\n").replace(
            "fastervit-triton:local", f"{project}:local"
        )
        if engine is not None and str(engine["platform"]).endswith("aarch64"):
            text = text.replace("platform: linux/amd64", "platform: linux/arm64")
        elif engine is None:
            text = re.sub(r"^  platform: .*\n", "", text, flags=re.M)  # a graph runs on either
        if served.plugin is not None:
            text = text.replace("libfastervit_plugins.so", served.plugin[0].name)
        return text.replace("max-input-size=67108864", f"max-input-size={self._request_bytes}")

    def _golden(self, folder: Path) -> None:
        """The golden images and outputs, with a record that ``client.py`` reads without this package."""
        record = self.bundle.export.golden
        assert record is not None
        folder.mkdir()
        for file in (record["images"], *(output["file"] for output in record["outputs"].values())):
            shutil.copyfile(self.bundle.export_folder / file, folder / file)
        (folder / "golden.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")

    def _readme(self) -> str:
        name, release = self.served.name, self.release or NEWEST
        height, width = self.served.image[1:]
        python = "python client.py --model"
        lines = [
            f"{name}, for the Triton Inference Server",
            "",
            f"Written by fastervit-trt {__version__} from bundle {self.bundle.manifest.name}. {self._why_image()}",
            "",
            "Start it, with Docker and, for a GPU, the NVIDIA Container Toolkit:",
            "  docker compose up --build --wait",
            *(
                ["or on the CPU:", "  docker compose --profile cpu up --build --wait triton-cpu"]
                if self._either
                else []
            ),
            "Start it without Docker (NumPy and Pillow must be there, for the Python step):",
            f"  {' '.join(self.command(f'$PWD/{REPOSITORY}', f'$PWD/{PLUGINS}'))}",
            "",
            "Ask it:",
            f"  {python} {name} PICTURE.jpg    {self._shown}; the file is sent as it is, to {name}_pictures",
            *(
                [f"  {python} {name} --golden {GOLDEN}    is it right? PyTorch's outputs are the measure"]
                if self._checkable
                else []
            ),
            "",
            "Measure it:",
            f"  docker run --rm --net host {release.sdk} \\",
            f"    perf_analyzer -m {name} -u 127.0.0.1:8001 -i grpc --concurrency-range 1:64:8 --percentile 99",
            "",
            f"Model {name} takes float32 images {' x '.join(map(str, (3, height, width)))}, prepared as "
            f"{REPOSITORY}/{name}_preprocess does.",
            f"Requests wait {self.service.queue_delay_us} us for others to share their batch; too many are refused.",
            f"A new version of the model: {REPOSITORY}/{name}/2 beside 1; newest served: {self.service.versions}.",
            "Several repositories in one server: --model-repository as often as there are.",
            "",
            *(f"Note: {notice}." for notice in self.notices),
            "Engines, plugins and model.py are executable code: serve those alone whose origin you know, and keep",
            f"{REPOSITORY}/ writable for yourself only. Ports are open to this machine alone: Triton knows no users.",
        ]
        return "\n".join(lines) + "\n"

    @property
    def _shown(self) -> str:
        """What ``client.py`` prints of a picture."""
        shown = {"segmentation": "the classes of most pixels", "detection": "the 5 surest boxes"}
        return shown.get(self.bundle.export.task, "top 5")

    @property
    def _checkable(self) -> bool:
        """Whether ``client.py`` has something to hold the server to."""
        return self.bundle.export.golden is not None

    @property
    def _either(self) -> bool:
        return self.served.device == "gpu" and self.served.backend == "onnxruntime"


def _kept(text: str, conditions: dict[str, bool]) -> str:
    """``text`` without its markers ``# if NAME`` and ``# end``, and without what lies between if it does not apply."""
    lines, keep = [], [True]
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["#", "if"]:
            keep.append(keep[-1] and conditions[words[2]])
        elif words == ["#", "end"]:
            keep.pop()
        elif keep[-1]:
            lines.append(line)
    return "\n".join(lines) + "\n"
