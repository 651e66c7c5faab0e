"""Checks manifests against the schemas of Kubernetes' API: those of examples/kubernetes-azure, and the DaemonSet that the
official Helm chart of Fluent Bit makes of examples/helm/values.yaml. The chart's template is not run: the values are put
where it puts them. Argument: the folder of the examples."""

import pathlib
import sys

import kubernetes_validate
import yaml

examples = pathlib.Path(sys.argv[1])
# The oldest that is looked after, and the newest that the schemas know.
VERSIONS = ["1.33", "1.37"]

checked = 0


def check(name, manifest):
    global checked
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)
    checked += 1


for file in sorted((examples / "kubernetes-azure").glob("*.yaml")):
    for manifest in yaml.safe_load_all(file.read_text()):
        # Kustomize's own file is no resource of the API.
        if manifest["kind"] != "Kustomization":
            check(file.name, manifest)

values = yaml.safe_load((examples / "helm/values.yaml").read_text())
image = values["image"]
container = {
    "name": "fluent-bit",
    "image": f"{image['repository']}:{image['tag']}",
    "command": ["/fluent-bit/bin/fluent-bit"],
    "args": values["args"],
    "env": values["env"],
    "ports": [
        {"name": "http", "containerPort": 2020, "protocol": "TCP"},
        *(
            {"name": port["name"], "containerPort": port["containerPort"], "protocol": port["protocol"]}
            for port in values["extraPorts"]
        ),
    ],
    "livenessProbe": values["livenessProbe"],
    "readinessProbe": values["readinessProbe"],
    "resources": values["resources"],
    "volumeMounts": [
        {"name": "config", "mountPath": "/fluent-bit/etc/conf"},
        {"name": "varlog", "mountPath": "/var/log"},
        *values["extraVolumeMounts"],
    ],
}
labels = {"app.kubernetes.io/name": "fluent-bit"}
pod = {
    "serviceAccountName": "fluent-bit",
    "initContainers": values["initContainers"],
    "containers": [container],
    "volumes": [
        {"name": "config", "configMap": {"name": "fluent-bit"}},
        {"name": "varlog", "hostPath": {"path": "/var/log"}},
        *values["extraVolumes"],
    ],
}
check(
    "values.yaml",
    {
        "apiVersion": "apps/v1",
        "kind": values["kind"],
        "metadata": {"name": "fluent-bit", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    },
)

# What a schema does not say: names that have to be the same.
volumes = {volume["name"]: volume for volume in pod["volumes"]}
for each in [*pod["initContainers"], container]:
    for mount in each["volumeMounts"]:
        assert mount["name"] in volumes, mount
(copy,) = values["initContainers"]
folder = copy["command"][-1]
mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
assert copy["command"][:2] == ["/usr/bin/ferry", "install"], copy
assert values["args"][-2:] == ["-e", f"{folder}/out_ferry.so"], values["args"]
assert mounted[folder] == copy["volumeMounts"][0]["name"]
outputs = values["config"]["outputs"]
keys = dict(line.split(None, 1) for line in outputs.splitlines() if line.startswith("    ") and "#" not in line)
assert "hostPath" in volumes[mounted["/var/lib/ferry"]], "the spool does not outlive the pod"
assert keys["spool_dir"].startswith("/var/lib/ferry/")
for probe in ("livenessProbe", "readinessProbe"):
    assert keys["metrics_listen"].endswith(f":{values[probe]['httpGet']['port']}"), probe
assert "COPY --chmod=0755 bin/ferry /usr/bin/" in (examples / "../packaging/Dockerfile").read_text()

broken = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a"}, "spec": {"selektor": {}}}
try:
    kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)
except kubernetes_validate.ValidationError:
    pass
else:
    raise AssertionError("the schemas let anything pass")
print(f"Kubernetes' schemas accept {checked} manifests")
