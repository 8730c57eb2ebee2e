"""docker/kubernetes: right by Kubernetes' own schemas, and coherent in itself."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from pgkeeper.cli.run import command as run_command
from pgkeeper.config import BouncerIni
from tests.unit.chores.manifests import (
    FILES,
    VERSIONS,
    containers,
    documents,
    faults,
    find,
    pods,
)

SIDECARS = ("pgkeeper", "pgbouncer-a", "pgbouncer-b")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_kubernetes_would_take_it(name: str, version: str) -> None:
    assert [fault for one in documents(name) for fault in faults(one, version)] == []


def _misspell(pod: dict[str, Any]) -> None:
    pod["initContainers"][-1]["restartPolcy"] = pod["initContainers"][-1].pop("restartPolicy")


def _forget_name(pod: dict[str, Any]) -> None:
    del pod["containers"][0]["name"]


def _write_number(pod: dict[str, Any]) -> None:
    pod["initContainers"][-1]["env"] = [{"name": "PORT", "value": 6432}]


@pytest.mark.parametrize("spoil", [_misspell, _forget_name, _write_number])
def test_it_would_refuse_what_is_wrong(spoil: Any) -> None:
    """The control."""
    (document,) = find("sidecar.yaml", "Deployment")
    spoilt = copy.deepcopy(document)
    spoil(spoilt["spec"]["template"]["spec"])
    assert faults(spoilt, VERSIONS[0]) != []


@pytest.mark.parametrize("name", FILES)
def test_each_of_them_is_a_sidecar_with_the_same_socket(name: str) -> None:
    for pod in pods(name):
        assert pod["shareProcessNamespace"] is True
        names = [one["name"] for one in pod["initContainers"] if "restartPolicy" in one]
        assert tuple(names) == SIDECARS  # pgkeeper starts first, and ends last
        for sidecar in SIDECARS:
            one = containers(pod)[sidecar]
            assert one["restartPolicy"] == "Always"
            assert {"name": "keeper", "mountPath": "/run/pgkeeper"} in one["volumeMounts"]
        for bouncer in SIDECARS[1:]:
            assert "livenessProbe" not in containers(pod)[bouncer]


@pytest.mark.parametrize("name", FILES)
def test_no_container_has_a_privilege(name: str) -> None:
    for pod in pods(name):
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in containers(pod).values():
            context = {**pod["securityContext"], **one["securityContext"]}
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize("name", FILES)
def test_what_is_named_is_there(name: str) -> None:
    known = {
        kind: {one["metadata"]["name"] for one in find(name, kind)}
        for kind in ("ConfigMap", "Secret", "Service")
    }
    for pod in pods(name):
        volumes = {one["name"]: one for one in pod["volumes"]}
        for one in containers(pod).values():
            assert {mount["name"] for mount in one.get("volumeMounts", ())} <= set(volumes)
            for variable in one.get("env", ()):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                assert secret is None or secret["name"] in known["Secret"]
        for source in volumes["config"]["projected"]["sources"]:
            if "configMap" in source:
                assert source["configMap"]["name"] in known["ConfigMap"]
            else:
                assert source["secret"]["name"] in known["Secret"]
    for service in find(name, "Service"):
        (workload,) = find(name, "StatefulSet")
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == labels
        ports = [
            port for one in containers(pods(name)[0]).values() for port in one.get("ports", ())
        ]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in {one["name"] for one in ports}


@pytest.mark.parametrize("name", FILES)
def test_variables_of_pgkeeper_are_its_options(name: str) -> None:
    options = {f"PGKEEPER_{option.name.upper()}" for option in run_command.params if option.name}
    for pod in pods(name):
        names = {variable["name"] for variable in containers(pod)["pgkeeper"]["env"]}
        assert names <= options


@pytest.mark.parametrize("name", FILES)
def test_the_ini_holds_what_it_serves(name: str, tmp_path: Path) -> None:
    (config,) = find(name, "ConfigMap")
    text = config["data"]["pgbouncer.ini"]
    (tmp_path / "peer.ini").write_text("peer_id = 1\n")
    path = tmp_path / "pgbouncer.ini"
    path.write_text(text.replace("/run/peer/", f"{tmp_path}/"))
    ini = BouncerIni.load(path)
    assert ini.keeper_socket == Path("/run/pgkeeper/keeper.sock")
    assert ini.warnings() == ()
    assert ini.databases


def test_each_replica_is_a_peer_of_all() -> None:
    (config,) = find("pooler.yaml", "ConfigMap")
    (workload,) = find("pooler.yaml", "StatefulSet")
    spec, name = workload["spec"], workload["metadata"]["name"]
    peers = re.findall(r"^(\d+) = host=(\S+) port=6432$", config["data"]["pgbouncer.ini"], re.M)
    first = spec["ordinals"]["start"]
    assert peers == [
        (str(number), f"{name}-{number}.{spec['serviceName']}")
        for number in range(first, first + spec["replicas"])
    ]
    assert first > 0  # 0 is no peer_id
