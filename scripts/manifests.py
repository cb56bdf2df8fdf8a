"""Checks manifests for Kubernetes and the compose file: see manifests.sh."""

import json
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

MANIFESTS = [Path("examples/service/kubernetes.yaml"), Path("examples/deploy/kubernetes.yaml")]
COMPOSE = Path("examples/deploy/compose.yaml")
VERSION = "1.34"
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def manifests():
    for file in MANIFESTS:
        for manifest in yaml.safe_load_all(file.read_text()):
            yield file, manifest


def violations(pod):
    """What the Pod Security profile "restricted" forbids, and what a container should have besides."""
    context = pod.get("securityContext", {})
    if pod.get("automountServiceAccountToken", True):
        yield "has a token of the API server"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']}: {kinds}"
    for container in pod.get("initContainers", []) + pod["containers"]:
        own = context | container.get("securityContext", {})
        name = container["name"]
        if own.get("allowPrivilegeEscalation", True):
            yield f"{name}: allowPrivilegeEscalation"
        if own.get("privileged"):
            yield f"{name}: privileged"
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            yield f"{name}: keeps capabilities"
        if not own.get("runAsNonRoot") or not own.get("runAsUser"):
            yield f"{name}: may run as root"
        if own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: no seccomp profile"
        if not own.get("readOnlyRootFilesystem"):
            yield f"{name}: may write to its image"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{name}: no memory limit"


def check_kubernetes():
    for file, manifest in manifests():
        name = f"{file}: {manifest['kind']} {manifest['metadata']['name']}"
        if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        if manifest["kind"] == "Deployment":
            found = list(violations(manifest["spec"]["template"]["spec"]))
            if found:
                sys.exit(f"{name}: {', '.join(found)}")
        print(f"{name}: as the schema of {VERSION} and the profile demand")


def check_compose(schema):
    compose = yaml.safe_load(COMPOSE.read_text())
    for error in jsonschema.Draft201909Validator(json.loads(Path(schema).read_text())).iter_errors(compose):
        sys.exit(f"{COMPOSE}: {error.json_path}: {error.message}")
    for name, service in compose["services"].items():
        files = [volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith(".")]
        if "build" in service:
            files.append(f"{service['build']['context']}/{service['build']['dockerfile']}")
        for file in files:
            if not (COMPOSE.parent / file).is_file():
                sys.exit(f"{COMPOSE}: {name}: there is no {file}")
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                sys.exit(f"{COMPOSE}: {name}: {port} is open to other machines")
    print(f"{COMPOSE}: as its schema demands")


if sys.argv[1] == "--pod-monitors":
    print(json.dumps([manifest for _, manifest in manifests() if manifest["kind"] == "PodMonitor"]))
else:
    check_kubernetes()
    check_compose(sys.argv[1])
