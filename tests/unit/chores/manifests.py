"""Reads docker/kubernetes, and Kubernetes' own schemas of what stands there."""

from __future__ import annotations

import functools
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

__all__ = ["FILES", "VERSIONS", "containers", "documents", "faults", "find", "pods"]

FOLDER = Path(__file__).parents[3] / "docker" / "kubernetes"
FILES = tuple(sorted(path.name for path in FOLDER.glob("*.yaml")))
#: The first release in which sidecars are stable, and the newest that we have.
VERSIONS = ("1.33", "1.37")

_PACKAGE = "kubernetes_validate/kubernetes-json-schema/v{}.0-local-strict/{}.json"


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def find(name: str, kind: str) -> list[dict[str, Any]]:
    """The objects of a kind."""
    return [one for one in documents(name) if one["kind"] == kind]


def pods(name: str) -> list[dict[str, Any]]:
    """The specifications of all pods."""
    found = [one for one in documents(name) if one["kind"] in ("Deployment", "StatefulSet")]
    return [one["spec"]["template"]["spec"] for one in found]


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All containers of a pod, by name."""
    return {one["name"]: one for one in (*pod["initContainers"], *pod["containers"])}


def faults(document: dict[str, Any], version: str) -> list[str]:
    """What `version` of Kubernetes would refuse; fields that it does not know too."""
    group, _, number = document["apiVersion"].rpartition("/")
    short = group.partition(".")[0]
    name = "-".join(word for word in (document["kind"].lower(), short, number) if word)
    validator = jsonschema.Draft202012Validator(
        _schema(version, name), registry=_definitions(version)
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@functools.cache
def _definitions(version: str) -> Registry[Any]:
    content = Resource.from_contents(_schema(version, "_definitions"), DRAFT202012)
    return Registry().with_resource("_definitions.json", content).crawl()


@functools.cache
def _schema(version: str, name: str) -> Any:
    (wheel,) = Path(sys.prefix, "kubernetes").glob("kubernetes_validate-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(_PACKAGE.format(version, name)))
