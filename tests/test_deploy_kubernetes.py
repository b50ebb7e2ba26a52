"""The manifests: Kubernetes' own schemas take them, the sidecar is the application's twin, no secret is one."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from deployed import DEPLOY, documents, parse
from harness import run
from mothership_backup.config import load
from mothership_backup.credentials import TOKEN
from mothership_backup.credentials import parse as parse_credential

FOLDER = DEPLOY / "kubernetes"
EXAMPLE = FOLDER / "example"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
CUSTOM = {"PodMonitor", "HTTPRoute"}  # their schemas are not Kubernetes' own
Document = Mapping[str, Any]


@functools.cache
def manifests() -> list[Any]:
    """All of them; nobody changes one."""
    return [document for path in FILES for document in documents(path)]


def manifest(kind: str, name: str) -> Any:
    [found] = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def merged(base: Any, patch: Any) -> Any:
    """What a strategic merge makes of both, as far as our patch needs it: lists by name, the patch's first."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merged(base.get(key), value) for key, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list):
        return copy.deepcopy(patch + base)
    return copy.deepcopy(patch)


def workload() -> Any:
    """The example's Deployment with the sidecar in it."""
    base = manifest("Deployment", "spaxel")
    return merged(base, {"spec": manifest("Deployment", "any")["spec"]})


def sidecar() -> Any:
    [container] = workload()["spec"]["template"]["spec"]["initContainers"]
    return container


def cron_pod() -> Any:
    return manifest("CronJob", "mothership-backup-fetch")["spec"]["jobTemplate"]["spec"]["template"]


def test_kubernetes_takes_every_manifest() -> None:
    """Strictly: a key that is none does not pass."""
    whole = [each for each in manifests() if each["kind"] not in CUSTOM | {"Deployment"}] + [workload()]

    for each in whole:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            merged(workload(), {"spec": {"replica": 1}}), kubernetes_validate.latest_version(), strict=True
        )


def test_each_kustomization_names_each_file_beside_it() -> None:
    """And nothing that is not there."""
    for path in FOLDER.rglob("kustomization.yaml"):
        [document] = documents(path)
        named = document["resources"] + [patch["path"] for patch in document.get("patches", [])]
        there = [other.name for other in path.parent.glob("*.yaml") if other != path]

        assert sorted(named) == sorted(there), path
        assert all((path.parent / component).is_dir() for component in document.get("components", []))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl; Debian's is too old for components")
def test_kustomize_builds_the_example(tmp_path: Path) -> None:
    """With all components, the sidecar in the workload, and the image that was set."""
    shutil.copytree(FOLDER, tmp_path / "k")
    file = tmp_path / "k" / "example" / "kustomization.yaml"
    file.write_text(file.read_text("utf-8").replace("  # - ../", "  - ../"))

    done = run("kubectl", "kustomize", file.parent)
    (tmp_path / "built.yaml").write_text(done.stdout)
    built = documents(tmp_path / "built.yaml")

    assert done.returncode == 0, done.stderr
    assert len(built) == len(manifests()) - 1  # all but the patch
    [deployment] = [each for each in built if each["kind"] == "Deployment"]
    expected = workload()["spec"]
    expected["template"]["spec"]["initContainers"][0]["image"] += ":0.1.0"
    assert deployment["spec"] == expected


def test_the_sidecar_is_native_and_asks_only_whether_it_lives() -> None:
    """Started before the application, and never a reason to take the pod out of its Services."""
    container = sidecar()

    assert container["restartPolicy"] == "Always"
    assert "readinessProbe" not in container
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/livez"}
    assert container["resources"]["limits"]["memory"] == "128Mi"
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_sidecar_has_the_application_s_user_and_volume() -> None:
    """The user is the pod's, and the data are the same volume at the same place."""
    [application] = workload()["spec"]["template"]["spec"]["containers"]
    container = sidecar()

    assert not {"runAsUser", "runAsGroup"} & container["securityContext"].keys()
    assert application["volumeMounts"][0] in container["volumeMounts"]


def test_every_mount_has_its_volume() -> None:
    """In the pod of the workload and in that of the CronJob."""
    for spec in (workload()["spec"]["template"]["spec"], cron_pod()["spec"]):
        containers = spec["containers"] + spec.get("initContainers", [])
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}

        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_commands_and_variables_are_ours() -> None:
    """And the files that they name lie in what is mounted."""
    [fetch] = cron_pod()["spec"]["containers"]
    job, container = parse(fetch["args"]), sidecar()
    settings = load(None, {each["name"]: each["value"] for each in container["env"]})

    assert container["args"] == ["serve"]
    assert settings.auth.tokens_file == "/etc/mothership-backup/tokens"
    assert {"mothership-backup", str(settings.server.port)} == set(job["url"].split("/")[2].split(":"))
    assert job["token_file"] == Path("/etc/mothership-backup/token")
    assert job["file"].startswith("/backups/")


def test_the_network_policy_closes_one_port_only() -> None:
    """That of the backup, to all but the CronJob; the application's stay as they are."""
    callers, everybody = manifest("NetworkPolicy", "mothership-backup")["spec"]["ingress"]
    tcp = [(port["port"], port["endPort"]) for port in everybody["ports"] if port["protocol"] == "TCP"]

    assert callers["from"] == [{"podSelector": {"matchLabels": cron_pod()["metadata"]["labels"]}}]
    assert callers["ports"] == [{"protocol": "TCP", "port": 8080}]
    assert tcp == [(1, 8079), (8081, 65535)]
    assert "from" not in everybody


def test_the_placeholders_are_no_secrets() -> None:
    """Each side refuses them: neither a token nor a stored form can be read out of them."""
    tokens = manifest("Secret", "mothership-backup-tokens")["stringData"]["tokens"]
    token = manifest("Secret", "mothership-backup-fetch")["stringData"]["token"]

    assert not TOKEN.search(token)
    with pytest.raises(ValueError, match=r"."):
        parse_credential(tokens.strip())


def test_the_route_has_no_time_limit() -> None:
    """0s switches it off; a Gateway's default would cut a long backup."""
    [rule] = manifest("HTTPRoute", "mothership-backup")["spec"]["rules"]

    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
