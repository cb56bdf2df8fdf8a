#!/usr/bin/env bash
# Checks the files that run the programs: units for systemd, manifests for Kubernetes, the compose file.
#
# Schemas come from PyPI and npm, and are kept in target/manifests. What is not installed is named and
# left out; with CI=true, that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

at=target/manifests
mkdir -p "$at"
left=0

leave_out() {
    echo "left out: $*" >&2
    left=1
}

if command -v systemd-analyze >/dev/null; then
    # 50 stands for 5.0.
    for unit in examples/service/*.service; do
        systemd-analyze security --offline=true --threshold=50 "$unit" | tail -n 1
    done
else
    leave_out "the units, without systemd-analyze"
fi

if command -v python3 >/dev/null; then
    if [ ! -x "$at/python/bin/python" ]; then
        python3 -m venv "$at/python"
    fi
    "$at/python/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.34.1
    # The last release that brings the schema of compose files.
    if [ ! -e "$at/compose/config/compose_spec.json" ]; then
        "$at/python/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$at" \
            docker-compose==1.29.2
        (cd "$at" && python3 -m zipfile -e docker_compose-*.whl .)
    fi
    "$at/python/bin/python" scripts/manifests.py "$at/compose/config/compose_spec.json"
else
    leave_out "the manifests, without python3"
fi

if command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$at" @kubernetes-models/prometheus-operator@6.0.0
    "$at/python/bin/python" scripts/manifests.py --pod-monitors >"$at/pod-monitors.json"
    (cd "$at" && node --input-type=module -e '
        import { readFileSync } from "node:fs";
        import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
        for (const found of JSON.parse(readFileSync("pod-monitors.json", "utf8"))) {
            new PodMonitor(found).validate();
            console.log(`PodMonitor ${found.metadata.name}: as its schema demands`);
        }')
else
    leave_out "the PodMonitor, without npm"
fi

if [ "$left" = 1 ] && [ "${CI:-}" = true ]; then
    exit 1
fi
