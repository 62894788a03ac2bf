"""The cluster files, checked in seconds and without an account: schema, cloud fields, versions, commands."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster.local.yaml")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="ascii"))


def commands(config):
    return [command for field in COMMANDS for command in config.get(field, [])]


@pytest.fixture(params=FILES)
def config(request):
    return read(request.param)


def validated(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_takes_the_file(config):
    validated(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("idle_timeout_minute",), 5), (("auth", "user"), "x")],
)
def test_ray_refuses_a_field_that_does_not_exist(config, path, value):
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(Exception, match=path[-1]):
        validated(config)


def test_the_provider_has_only_fields_that_ray_knows(config):
    # Ray's own check lets unknown fields of the provider pass.
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(config["provider"]) <= set(schema["properties"]["provider"]["properties"])


def invalid_fields(node_config):
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return report.generate_report()


def test_ec2_knows_every_field_of_every_machine():
    for name, machine in validated(read("cluster.yaml"))["available_node_types"].items():
        assert not invalid_fields(machine["node_config"]), name
    assert "InstanceTyp" in invalid_fields({"InstanceTyp": "m6i.xlarge"})


def test_versions_are_those_of_the_project(config):
    import ray

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = next(each for each in project["dependencies"] if each.startswith("ray["))
    minor = re.search(r">=(\d+\.\d+)", requirement)[1]
    assert ray.__version__.startswith(minor + ".")
    (check,) = (command for command in commands(config) if "ray.__version__" in command)
    wanted = re.search(r"\('([\d.]+)', (\d+), (\d+)\)", check)
    assert wanted[1] == ray.__version__
    assert f">={wanted[2]}.{wanted[3]}" == project["requires-python"]
    for image in re.findall(r"rayproject/ray\S*", yaml.safe_dump(config)):
        assert image.startswith(f"rayproject/ray:{ray.__version__}-py{wanted[2]}{wanted[3]}-")


def test_kubernetes_runs_the_same_versions():
    import ray

    text = (ROOT / "docs/kuberay.yaml").read_text(encoding="ascii")
    documents = {each["kind"]: each for each in yaml.safe_load_all(text)}
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(re.findall(r"(?:REGISTRY/striate|rayproject/ray):([\d.]+)", text)) == {ray.__version__}
    assert documents["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress"]
    assert "hpo/search.py vivit" in documents["RayJob"]["spec"]["entrypoint"]


def test_the_version_check_passes_here_and_fails_elsewhere(config):
    import subprocess
    import sys

    (check,) = (command for command in commands(config) if "ray.__version__" in command)
    program = shlex.split(check)
    assert program[:2] == ["python", "-c"]
    done = subprocess.run([sys.executable, *program[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = program[2].replace("3, 11", "3, 9")
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "but must be" in done.stderr


def test_nothing_that_runs_jobs_listens_on_a_public_interface(config):
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert "0.0.0.0" not in " ".join(starts)
    (head,) = (start for start in starts if "--head" in start)
    assert "--dashboard-host=127.0.0.1" in head
    (mlflow,) = (start for start in starts if "mlflow server" in start)
    assert "--host 127.0.0.1" in mlflow
    assert "RAY_AUTH_MODE=token" in " ".join(config["setup_commands"])


def test_the_head_takes_no_runs_and_threads_are_set_back(config):
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for start in (each for each in starts if "ray start" in each):
        assert start.startswith("unset OMP_NUM_THREADS;")
        assert ("--num-cpus=0" in start) == ("--head" in start)


def test_local_clusters_use_the_autoscaler_that_starts_all_their_machines():
    config = read("cluster.local.yaml")
    (head,) = (start for start in config["head_start_ray_commands"] if "--head" in start)
    assert re.search(r"RAY_enable_autoscaler_v2=0 ray start", head)
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_project_and_the_token_are_shipped_and_secrets_are_not(config):
    mounts = config["file_mounts"]
    assert mounts["~/striate"] == "."
    assert any("striate/auth_token" in command and "chmod 600" in command for command in commands(config))
    (environment,) = (command for command in commands(config) if "RAY_AUTH_TOKEN_PATH" in command)
    assert "RAY_AUTH_TOKEN_PATH=$HOME/.striate/auth_token" in environment
    assert mounts["~/.striate"] == "~/.striate"
    assert {"**/.git", "**/.venv", "/runs"} <= set(config["rsync_exclude"])
    # A token or password written into the file would be in everybody's copy of it.
    assert not re.search(r"(?i)(password|secret|token)\s*[:=]\s*['\"]?[0-9a-z]{16,}", yaml.safe_dump(config))


def test_every_command_is_shell_and_every_option_exists(config):
    import subprocess

    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        if "ray start" in command:
            used = set(re.findall(r"(--[a-z-]+)", command.split("ray start")[1]))
            assert used <= known


def test_mlflow_knows_its_options(config):
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    (command,) = (each for each in commands(config) if "mlflow server" in each)
    assert set(re.findall(r"(--[a-z-]+)", command.split("mlflow server")[1])) <= known


def test_every_repository_path_exists():
    for name in (*FILES, "docs/kuberay.yaml", "docs/aws.yaml"):
        text = (ROOT / name).read_text(encoding="ascii")
        for path in re.findall(
            r"\b((?:docs|tests|hpo|ensembles|training|data)/[\w./]+\.(?:py|yaml|md))", text
        ):
            assert (ROOT / path).is_file(), f"{name} names {path}"


def test_gpu_workers_fall_back_from_spot_to_on_demand_and_cost_nothing_when_idle():
    config = read("cluster.yaml")
    kinds = config["available_node_types"]
    spot, on_demand = kinds["worker.spot"], kinds["worker.on_demand"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert all(kind.get("min_workers", 0) == 0 for kind in kinds.values())
    assert config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False
    assert all("IamInstanceProfile" in kind["node_config"] for kind in kinds.values())
