"""Pretend machines on one Linux machine, for clusters that are started and broken for real.

Each has its own network namespace (10.77.0.n; the bridge between them lies in a namespace of its own, so
nothing reaches a real network), process namespace (``ray stop`` sees the processes of its own machine only),
mount namespace (own /tmp, /var/tmp, /dev/shm and home), name and SSH server. ``/mnt/striate`` is one folder
for all.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.77.0"
STORAGE = Path("/mnt/striate")
_NAMESPACES = (
    "unshare",
    *("--pid", "--mount", "--uts", "--ipc"),
    *("--fork", "--kill-child", "--mount-proc"),
    *("--propagation", "private"),
)
TOOLS = ("ip", "sshd", "ssh-keygen", "rsync", "nsenter", "unshare")

# Run as process 1 of a machine: when it is killed, the kernel kills every process of the machine with it.
_FIRST_PROCESS = r"""
set -e
hostname {name}
mkdir -p {kept}
{hide}
mount -t tmpfs -o size=4g tmpfs /dev/shm
for folder in tmp var/tmp; do
    mkdir -p {root}/$folder; mount --bind {root}/$folder /$folder; chmod 1777 /$folder
done
mount --bind {root}/home {home}
mount -t tmpfs tmpfs /mnt && mkdir {storage} && mount --bind {shared} {storage}
{show}
mkdir -p /run/sshd
mount --bind {base}/resolv.conf /etc/resolv.conf
mount --bind {base}/hosts /etc/hosts
$(command -v sshd) -D -e -f {root}/sshd_config > {root}/sshd.log 2>&1 &
trap 'exit 0' TERM
while :; do wait -n 2> /dev/null || sleep 0.5; done
"""


def missing() -> str | None:
    """Return why there can be no pretend machines here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "pretend machines need Linux and root"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=_search_path()) is None]
    if absent:
        return f"pretend machines need {', '.join(absent)}: apt-get install openssh-server rsync iproute2"
    done = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "this system does not allow namespaces"


def _search_path() -> str:
    return f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, text=True, capture_output=True)


@dataclass
class PretendHosts:
    """A few machines; use as a context manager.

    Attributes:
        names: of the machines; the first has address 10.77.0.1.
        base: folder for everything they keep; not below /tmp or home, which are hidden in them.
        environment: variables that every process of theirs sees.
    """

    names: tuple[str, ...]
    base: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.prefix = f"s{os.getpid()}"
        self.home = Path.home()
        # What must be seen in spite of the hidden folders: this Python and the project.
        self.keep = sorted({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])})
        # The copy of the project that was shipped to a machine, not the one that is installed here.
        self.variables = {"PATH": _search_path(), "PYTHONPATH": f"{self.home}/striate", **self.environment}
        self.leaders: dict[str, subprocess.Popen] = {}

    def address(self, name):
        return f"{SUBNET}.{self.names.index(name) + 1}"

    def root(self, name):
        return self.base / name

    @property
    def shared(self):
        """The folder that all machines see as /mnt/striate."""
        return self.base / "shared"

    def __enter__(self):
        self.shared.mkdir(parents=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.base / "key"))
        # No name server in there: a look-up fails at once instead of after seconds.
        (self.base / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.names)]
        (self.base / "hosts").write_text("\n".join(lines) + "\n")
        lan = f"{self.prefix}-lan"
        _run("ip", "netns", "add", lan)
        _run("ip", "-n", lan, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", lan, "link", "set", "br0", "up")
        try:
            for name in self.names:
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            self.power_off(name)
        for name in (*self.names, "lan"):
            _run("ip", "netns", "del", f"{self.prefix}-{name}", check=False)
        shutil.rmtree(self.base, ignore_errors=True)

    def start(self, name):
        """Switch a machine on, for the first time or again."""
        self._connect(name)
        root = self.root(name)
        (root / "home" / ".ssh").mkdir(parents=True, exist_ok=True)
        (root / "home" / ".ssh").chmod(0o700)
        shutil.copyfile(self.base / "key.pub", root / "home/.ssh/authorized_keys")
        exports = "".join(f"export {key}={value}\n" for key, value in self.variables.items())
        if not (root / "home/.bashrc").exists():
            (root / "home/.bashrc").write_text(exports)
        settings = {
            "ListenAddress": self.address(name),
            "HostKey": self.base / "key",
            "PidFile": "none",
            "UsePAM": "no",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "StrictModes": "no",
            "AuthorizedKeysFile": root / "home/.ssh/authorized_keys",
            "SetEnv": " ".join(f"{key}={value}" for key, value in self.variables.items()),
            "MaxStartups": 50,
            "UseDNS": "no",
        }
        (root / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        (root / "first.sh").write_text(self._first_process(name))
        with (root / "first.log").open("w") as log:
            self.leaders[name] = subprocess.Popen(
                [
                    *f"ip netns exec {self.prefix}-{name}".split(),
                    *_NAMESPACES,
                    "bash",
                    str(root / "first.sh"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PATH": _search_path()},
                start_new_session=True,
                cwd="/",
            )
        self._wait_for_ssh(name)

    def _connect(self, name):
        space, number = f"{self.prefix}-{name}", self.names.index(name) + 1
        if Path(f"/run/netns/{space}").exists():
            return
        lan = f"{self.prefix}-lan"
        _run("ip", "netns", "add", space)
        _run(
            *f"ip link add ve{number} netns {lan} type veth peer name eth0 netns {space}".split(),
        )
        _run(*f"ip -n {lan} link set ve{number} master br0 up".split())
        _run(*f"ip -n {space} link set lo up".split())
        _run(*f"ip -n {space} addr add {self.address(name)}/24 dev eth0".split())
        _run(*f"ip -n {space} link set eth0 up".split())
        _run(*f"ip -n {space} route add default dev eth0".split())

    def _first_process(self, name):
        root = self.root(name)
        kept, hide, show = root / "kept", [], []
        for number, folder in enumerate((*self.keep, str(self.base))):
            if not Path(folder).is_relative_to("/tmp") and not Path(folder).is_relative_to(self.home):
                continue
            hide.append(f"mkdir -p {kept}/{number} && mount --bind {folder} {kept}/{number}")
            show.append(f"mkdir -p {folder} && mount --bind {kept}/{number} {folder}")
        return _FIRST_PROCESS.format(
            name=name,
            root=root,
            kept=kept,
            hide="\n".join(hide),
            show="\n".join(show),
            home=self.home,
            base=self.base,
            storage=STORAGE,
            shared=self.shared,
        )

    def _wait_for_ssh(self, name):
        probe = f"exec 3<>/dev/tcp/{self.address(name)}/22"
        for _ in range(200):
            if self.leaders[name].poll() is not None:
                break
            if (
                _run(
                    "ip", "netns", "exec", f"{self.prefix}-{name}", "bash", "-c", probe, check=False
                ).returncode
                == 0
            ):
                return
            time.sleep(0.1)
        logs = [path.read_text() for path in self.root(name).glob("*.log")]
        raise RuntimeError(f"{name} did not start: {' '.join(logs)}")

    def first_pid(self, name):
        """Return the machine's process 1, as this system numbers it; None when it is off."""
        leader = self.leaders.get(name)
        if leader is None or leader.poll() is not None:
            return None
        children = Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def command(self, name, *command):
        """Return the command line that runs a command on a machine, in its home."""
        settings = [f"{key}={value}" for key, value in {"HOME": str(self.home), **self.variables}.items()]
        pid = str(self.first_pid(name))
        return [
            "nsenter",
            "-t",
            pid,
            "-a",
            f"--wdns={self.home}",
            "env",
            "-i",
            *settings,
            "TERM=dumb",
            *command,
        ]

    def run(self, name, *command, timeout=240, check=True):
        """Run a command on a machine and return what it printed, errors as well."""
        done = subprocess.run(
            self.command(name, *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{command} on {name} ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout

    def start_program(self, name, *command, output):
        """Start a command on a machine, its output in a file."""
        with Path(output).open("w") as file:
            return subprocess.Popen(
                self.command(name, *command), stdout=file, stderr=file, stdin=subprocess.DEVNULL
            )

    def power_off(self, name):
        """Cut the power: every process of the machine is gone at once; its disk stays."""
        pid = self.first_pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        if name in self.leaders:
            self.leaders[name].wait(timeout=30)

    def unplug(self, name):
        """Cut the link: packets vanish."""
        self._link(name, "down")

    def plug(self, name):
        """Heal the link."""
        self._link(name, "up")

    def _link(self, name, state):
        number = self.names.index(name) + 1
        _run(*f"ip -n {self.prefix}-lan link set ve{number} {state}".split())

    def processes(self, name, *, of):
        """Return how many processes of a machine have a text in their command line."""
        listing = self.run(name, "ps", "-eo", "args=", "--width", "1000")
        return sum(of in line for line in listing.splitlines() if "ps -eo" not in line)
