"""Hosts on this machine: namespaces with a network, processes, files and a name of their own, joined by a bridge.

The bridge lies in a namespace of its own too, so nothing is added to this machine's network, and no packet leaves it.
A host is held by one process, which is the first of its namespaces: when it ends, the kernel ends every process in
them and takes the network devices and mounts away. Where the tests die, that process dies with them.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
SUBNET = "10.77.0"
"""Addresses are SUBNET.1 (the bridge, which is everyone's gateway), SUBNET.2 and so on, inside the namespaces alone."""
TOOLS = ("ip", "ps", "unshare", "nsenter", "setpriv", "mount", "ssh", "ssh-keygen", "sshd", "rsync")

# As the first process of its namespaces it takes in those whose parents have ended; they would stay zombies otherwise.
FIRST = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
while True:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    signal.sigtimedwait([signal.SIGCHLD], 5)
"""


def find_tool(name: str) -> str | None:
    """Administrators' tools are not on every PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def new_key(path: Path) -> str:
    """Make a key pair for SSH; its public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path.with_name(path.name + ".pub").read_text()


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "namespaces with their own mounts and sshd need root"
    if missing := [tool for tool in TOOLS if find_tool(tool) is None]:
        return f"{', '.join(missing)} not installed (openssh-server, openssh-client, rsync, iproute2, util-linux)"
    try:
        namespace = Namespace()
    except OSError as error:
        return f"namespaces are not allowed here: {error}"
    try:
        namespace.shell("ip link add name probe type bridge && mount -t tmpfs none /mnt")
        namespace.shell("ip link add name left type veth peer name right")
    except OSError as error:
        return f"bridges, veths or mounts are not allowed here: {error}"
    finally:
        namespace.close()
    return None


class Namespace:
    """Namespaces of network, processes, mounts, host name and shared memory, and the process that holds them."""

    def __init__(self) -> None:
        """Raises OSError when the kernel refuses."""
        self.pid = 0
        """Of the first process, as this machine counts."""
        kinds = ["--net", "--pid", "--mount", "--uts", "--ipc"]
        self._holder = subprocess.Popen(
            # Each dies with its parent, by SIGKILL: the holder with the tests, the first process with the holder.
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "--fork", "--kill-child", "--mount-proc"),
                *(sys.executable, "-I", "-S", "-c", FIRST),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        deadline = time.monotonic() + 60
        while True:
            if self._holder.poll() is not None:
                assert self._holder.stderr is not None
                raise OSError(self._holder.stderr.read().decode(errors="replace").strip() or "unshare failed")
            found = children.read_text().split()
            # Its own /proc is there once it has become the program that it is to be.
            with suppress(FileNotFoundError):
                if found and FIRST.encode() in Path(f"/proc/{found[0]}/cmdline").read_bytes():
                    self.pid = int(found[0])
                    return
            if time.monotonic() > deadline:
                self.close()
                raise OSError("the first process of the namespaces did not start within a minute")
            time.sleep(0.01)

    def enter(self, *command: str) -> list[str]:
        """The command that runs `command` inside."""
        return ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", "--uts", "--ipc", "--", *command]

    def shell(self, script: str) -> str:
        """Run a script as an administrator would; what it printed. Raises OSError with what it said when it fails."""
        done = subprocess.run(
            self.enter("sh", "-ec", script),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        if done.returncode:
            raise OSError(f"{done.stderr.strip() or done.returncode} (in: {script})")
        return done.stdout

    @property
    def alive(self) -> bool:
        return self._holder.poll() is None

    def close(self) -> None:
        """End every process inside, and with them everything else; again without effect."""
        if self._holder.poll() is None:
            # The holder, its parent, ends when it has gone, which it has not before all others in its namespace have.
            os.kill(self.pid or self._holder.pid, signal.SIGKILL)
        self._holder.wait()
        if self._holder.stderr is not None:
            self._holder.stderr.close()


class Host:
    """A machine: an address, a name, a home, its own /tmp, and sshd where it is asked for."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name, self.address = name, f"{SUBNET}.{number}"
        self._network, self._port = network, f"to-{name}"
        self.place = network.place / name
        self.home = self.place / "home"
        """Its home as this machine sees it."""
        self.space = Namespace()
        self._join(number)
        self._mount()

    @property
    def alive(self) -> bool:
        return self.space.alive

    def _join(self, number: int) -> None:
        """A cable to the bridge. Without a default route Ray would take 127.0.0.1 for the host's address."""
        switch = self._network.switch
        # In the bridge's network, but not among its processes, where the host's number means nothing.
        subprocess.run(
            [
                *("nsenter", "--target", str(switch.pid), "--net", "ip", "link", "add", "name", self._port),
                *("type", "veth", "peer", "name", "eth0", "netns", str(self.space.pid)),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        switch.shell(f"ip link set {self._port} master bridge up")
        self.space.shell(
            f"hostname {self.name}; ip link set lo up; ip address add {self.address}/24 dev eth0; ip link set eth0 up;"
            f" ip route add default via {SUBNET}.1"
        )

    def _mount(self) -> None:
        """A home, /tmp, /run and /dev/shm of its own; the names of its neighbours, and nobody who knows others."""
        etc = self.place / "etc"
        for folder in (self.home, etc, self.place / "tmp", self.place / "run" / "sshd"):
            folder.mkdir(parents=True)
        (self.place / "tmp").chmod(0o1777)
        (self.home / ".profile").write_text('[ -z "$BASH" ] || . ~/.bashrc\n')
        (self.home / ".bashrc").write_text("# What every shell of this host begins with.\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "resolv.conf").write_text("")
        (etc / "shadow").write_text("root:*:20000::::::\nsshd:!:20000::::::\n")  # no password, but not locked
        binds = [f"mount --bind {shlex.quote(str(etc / name))} /etc/{name}" for name in sorted(os.listdir(etc))]
        covers = {HOME: self.home, Path("/run"): self.place / "run", Path("/tmp"): self.place / "tmp"}
        covered = [line for target, cover in covers.items() for line in self._cover(target, cover)]
        self.space.shell("; ".join(["mount -t tmpfs -o mode=1777 none /dev/shm", *binds, *covered]))

    def _cover(self, target: Path, cover: Path) -> list[str]:
        """Mount a folder over another, but leave what the tests need of it at its place: interpreter, project, data."""
        needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix), self._network.shared]
        script = []
        for path in needed:
            if path.is_relative_to(target) and path != target:
                inside = shlex.quote(str(cover / path.relative_to(target)))
                script += [f"mkdir -p {inside}", f"mount --rbind {shlex.quote(str(path))} {inside}"]
        return [*script, f"mount --rbind {shlex.quote(str(cover))} {shlex.quote(str(target))}"]

    def start_sshd(self, allowed_key: str) -> None:
        """Let the holder of a key in as root, as a machine that Ray sets up over SSH does."""
        folder = self.place / "run" / "sshd"
        (folder / "authorized_keys").write_text(allowed_key)
        config = {
            "ListenAddress": self.address,
            "HostKey": "/run/sshd/host_key",
            "AuthorizedKeysFile": "/run/sshd/authorized_keys",
            "PidFile": "/run/sshd/pid",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "StrictModes": "no",
            "UsePAM": "no",
            "UseDNS": "no",
            "PrintMotd": "no",
        }
        (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
        new_key(folder / "host_key")
        self.space.shell(f"{find_tool('sshd')} -f /run/sshd/config")

    def command(self, line: str, seconds: float = 600) -> list[str]:
        """The command that runs a line in a login shell of the host's user, and ends it after so many seconds."""
        return self.space.enter(
            *("env", "-i", f"HOME={HOME}", "USER=root", "LOGNAME=root", "TERM=dumb", "LC_ALL=C.UTF-8"),
            *("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "setsid", "--wait"),
            *("timeout", "--kill-after=5", str(seconds), "bash", "--login", "-c", f"cd; {line}"),
        )

    def run(self, line: str, seconds: float = 120, code: int | None = 0) -> str:
        """Run a line to its end; what it printed on both streams. code: the exit code that it must have, None = any."""
        done = subprocess.run(
            self.command(line, seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=seconds + 30,
        )
        said = done.stdout
        assert code is None or done.returncode == code, f"{self.name}: {line}: exit code {done.returncode}\n{said}"
        return said

    def start(self, line: str, output: Path, seconds: float = 600) -> subprocess.Popen[bytes]:
        """Run a line and do not wait; its output goes to a file of this machine."""
        with output.open("wb") as file:
            return subprocess.Popen(
                self.command(line, seconds), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def processes(self, *names: str) -> dict[int, str]:
        """Command lines by process number, as the host counts, of those that hold one of the names; of all for none."""
        found = {}
        for line in self.space.shell("ps -eo pid=,stat=,args= -ww").splitlines():
            number, state, arguments = line.split(None, 2)
            if not state.startswith("Z") and (not names or any(name in arguments for name in names)):
                found[int(number)] = arguments
        return found

    def send(self, number: int, what: signal.Signals) -> None:
        """A signal to one process, numbered as the host counts."""
        self.space.shell(f"kill -{what.value} {number}")

    def cut(self) -> None:
        """Pull the network cable."""
        self._network.switch.shell(f"ip link set {self._port} down")

    def mend(self) -> None:
        """Put it back."""
        self._network.switch.shell(f"ip link set {self._port} up")

    def destroy(self) -> None:
        """Pull the power cable: every process ends at once, and the host does not come back."""
        self.space.close()


class Network:
    """A bridge and the hosts on it. shared: the folder that all hosts see, at its own path."""

    def __init__(self, place: Path) -> None:
        """place: a new folder for the hosts' files."""
        self.place, self.shared = place, place / "shared"
        self.shared.mkdir(parents=True)
        self.hosts: list[Host] = []
        self.switch = Namespace()
        self.switch.shell(
            "ip link set lo up; ip link add name bridge type bridge; ip link set bridge up;"
            f" ip address add {SUBNET}.1/24 dev bridge"
        )

    def add(self, name: str) -> Host:
        """A new host."""
        host = Host(self, name, len(self.hosts) + 2)
        self.hosts.append(host)
        return host

    def close(self) -> None:
        """Leave nothing: no process, namespace, device or mount."""
        for host in self.hosts:
            host.destroy()
        self.switch.close()
