"""``cluster.local.yaml`` for pretend machines: the file itself, with their addresses, key and Python."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
# Ray's own take a minute to miss a machine whose packets vanish: 5 times 3 s and 10 s to answer.
FAST_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "2000",
    # Workers that train are as important here as everything else on the machine that pretends.
    "RAY_worker_niceness": "0",
}


def write_cluster_file(hosts, *, head="head", workers=("w1", "w2"), cpus=1, laptop="laptop"):
    """Write the cluster's file, key and token to the laptop; return the file's path."""
    config = yaml.safe_load((ROOT / "cluster.local.yaml").read_text())
    addresses = [hosts.address(name) for name in workers]
    config["provider"] = {"type": "local", "head_ip": hosts.address(head), "worker_ips": addresses}
    config["min_workers"] = config["max_workers"] = len(workers)
    config["auth"]["ssh_user"] = "root"
    home = hosts.root(laptop) / "home"
    shutil.copyfile(hosts.base / "key", home / ".ssh/striate_cluster")
    (home / ".ssh/striate_cluster").chmod(0o600)
    (home / ".striate").mkdir(mode=0o700, exist_ok=True)
    (home / ".striate/auth_token").write_text("a" * 64)
    # No network to install from: this Python, and of the project the copy that was shipped.
    config["setup_commands"] = [
        command for command in config["setup_commands"] if not command.startswith(("test -x", "pip install"))
    ]
    config["setup_commands"].insert(0, f"ln -sfn {sys.prefix} ~/striate-environment")
    config["worker_start_ray_commands"] = [
        f"{command} --num-cpus={cpus}" if "ray start" in command else command
        for command in config["worker_start_ray_commands"]
    ]
    copy_project(home / "striate")
    path = home / "cluster.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, width=10_000))
    return str(hosts.home / "cluster.yaml")


def copy_project(folder):
    """Copy what a clone would have, and what is new and not ignored; Ray hashes every file of a mount."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def on_laptop(hosts, command, *, timeout=300, check=True, laptop="laptop"):
    """Run a shell command in the project's folder on the laptop."""
    return hosts.run(laptop, "bash", "-c", f"cd ~/striate && {command}", timeout=timeout, check=check)


def living_nodes(hosts, *, head="head"):
    """Return the names of the machines that the head's control service counts as alive."""
    program = (
        "import json, ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False); "
        "print(json.dumps([node['NodeManagerHostname'] for node in ray.nodes() if node['Alive']]))"
    )
    shell = f'. ~/.striate_environment && python -c "{program}"'
    printed = hosts.run(head, "bash", "-c", shell, check=False)
    try:
        return sorted(json.loads(printed.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return []


def wait_until(condition, *, seconds, what):
    """Poll until something holds; say what did not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.5)
