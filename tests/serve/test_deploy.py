"""deploy/: what the files name exists, and nothing runs with more rights than it needs."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeclip.serve.settings import OPTIONS, PREFIX, Settings
from tests.conftest import DATA

ROOT = DATA.parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")
GRACE_S = Settings(bundle=Path("-")).shutdown_timeout_s
PORT = 8000


def instructions(name: str) -> list[tuple[str, str]]:
    """Instruction and arguments of a Dockerfile, continued lines joined."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def last_stage(name: str) -> dict[str, str]:
    found = instructions(name)
    start = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return dict(found[start:])


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    return next(one for one in resources() if one["kind"] == "Deployment")


def resources() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def unit() -> dict[str, list[str]]:
    """The settings of [Service]; one may stand there more than once."""
    section = (DEPLOY / "edgeclip.service").read_text().partition("[Service]\n")[2].partition("\n[Install]")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_every_variable_and_flag_is_a_setting(path: Path) -> None:
    """Those that are commented out, too."""
    text = path.read_text(encoding="utf-8")
    known = {option.variable for option in OPTIONS}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", text.replace(f"{PREFIX}PORT=tcp", ""))) <= known
    flags = {option.flag for option in OPTIONS} | {"--print-config"}
    for line in re.findall(r"edgeclip serve ([^`\n]*)", text):
        assert {word for word in line.split() if word.startswith("--")} <= flags


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_is_built_from_what_is_here(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ignored = (DEPLOY / f"{name}.dockerignore").read_text()
    allowed = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    copied = {
        source
        for word, arguments in instructions(name)
        if word == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    assert {package.partition("/")[0] for package in packages} | {project["project"]["readme"]} <= copied
    build = next(arguments for word, arguments in instructions(name) if word == "RUN")
    (extras,) = re.findall(r"edgeclip-\*\.whl\)\[([a-z,]+)\]", build)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    assert extras == f"{name.removeprefix('Dockerfile.')},serve"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_runs_the_service_and_not_as_root(name: str) -> None:
    stage = last_stage(name)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", stage["USER"])
    assert json.loads(stage["ENTRYPOINT"]) == ["edgeclip", "serve"]
    assert stage["EXPOSE"] == str(PORT)
    settings = dict(word.split("=", 1) for word in shlex.split(stage["ENV"]))
    assert (settings[f"{PREFIX}HOST"], settings[f"{PREFIX}PORT"]) == ("0.0.0.0", str(PORT))
    assert settings[f"{PREFIX}BUNDLE"] == "/bundle"
    check = json.loads(stage["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"] and f"http://127.0.0.1:{PORT}/health/live" in check[2]
    compile(check[2], "HEALTHCHECK", "exec")


def test_the_images_differ_in_the_device_alone() -> None:
    cpu, gpu = (last_stage(name) for name in DOCKERFILES)
    assert {word for word in cpu if cpu[word] != gpu[word]} == {"ENV"}
    assert "EDGECLIP_DEVICE=cuda" in gpu["ENV"]


def test_compose_gives_few_rights() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"edgeclip", "edgeclip-gpu"}
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["cpus"] and service["pids_limit"]
        assert [volume.rpartition("}")[2] for volume in service["volumes"]] == [":/bundle:ro"]
        assert service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
        assert seconds(service["stop_grace_period"]) > GRACE_S
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_kubernetes_gives_few_rights(deployment: dict[str, Any]) -> None:
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    user = last_stage("Dockerfile.cpu")["USER"].partition(":")[0]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == int(user)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # a Service of this name would set EDGECLIP_PORT
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert next(mount for mount in container["volumeMounts"] if mount["mountPath"] == "/bundle")["readOnly"]


def test_kubernetes_asks_the_service_how_it_is(deployment: dict[str, Any]) -> None:
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    wanted = {"startupProbe": "ready", "readinessProbe": "ready", "livenessProbe": "live"}
    for probe, path in wanted.items():
        assert container[probe]["httpGet"] == {"path": f"/health/{path}", "port": "http"}
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": PORT, "metrics": int(variables[f"{PREFIX}METRICS_PORT"])}
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert (notes["prometheus.io/port"], notes["prometheus.io/path"]) == (str(ports["metrics"]), "/metrics")
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > GRACE_S + pause
    service = next(one for one in resources() if one["kind"] == "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]  # and not the metrics


def test_systemd_gives_few_rights() -> None:
    service = unit()
    assert service["ExecStart"] == ["/opt/edgeclip/bin/edgeclip serve"]
    # Packed weights lie where this user may write: edgeclip's folder in $XDG_CACHE_HOME.
    assert service["CacheDirectory"] == ["edgeclip"]
    assert "EDGECLIP_PREPACK=true XDG_CACHE_HOME=%C" in service["Environment"]
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"):
        assert service[name] == ["yes"], name
    assert service["ProtectSystem"] == ["strict"] and service["CapabilityBoundingSet"] == [""]
    assert service["MemoryMax"]
    assert seconds(service["TimeoutStopSec"][0]) > GRACE_S


def test_the_readme_names_files_that_are_here() -> None:
    text = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"deploy/([\w.]+)", text))
    assert {"Dockerfile.cpu", "compose.yaml", "edgeclip.service", "kubernetes.yaml"} <= named
    assert all((DEPLOY / name).is_file() for name in named)
