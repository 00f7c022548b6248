"""A Slurm of two nodes on this machine, for tests: munge, slurmctld and two slurmd, as root and without systemd.

Needs Debian's slurm-wlm and munge. Both nodes are this machine under two names.

    python -m tests.slurm    # starts and stops one; the exit status says whether that works here
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "munged", "mungekey")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=fusegap
SlurmctldHost={host}
SlurmctldPort={port}
AuthType=auth/munge
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=2
MaxArraySize=50
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
{nodes}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why no Slurm can be started here, or ""."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"Debian's slurm-wlm and munge are not installed ({absent[0]})"
    return "" if os.getuid() == 0 else "starting Slurm takes root"


class Slurm:
    """A running Slurm, whose files are in a folder. `environment` is what its commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        host = socket.gethostname().split(".")[0]
        ports = [free_port() for _ in range(3)]
        nodes = [
            f"NodeName={node} NodeHostname={host} Port={port} CPUs=1 RealMemory=4000 State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        text = CONFIGURATION.format(host=host, port=ports[0], folder=self.folder, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(text)
        start_munge()
        self.run("slurmctld", "-f", self.environment["SLURM_CONF"])
        for node in NODES:
            self.start_node(node)
        self.wait_for(lambda: self.states() == ["idle", "idle"], "both nodes to be idle")

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-f", self.environment["SLURM_CONF"], "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and all that it runs, as a power cut would."""
        pid = int((self.folder / f"slurmd-{node}.pid").read_text())
        subprocess.run(["kill", "-9", str(pid)], check=False)
        for step in step_daemons(node, self.environment["SLURM_CONF"]):
            kill_tree(step)

    def states(self) -> list[str]:
        """Return the state of each node."""
        return self.run("sinfo", "--noheader", "--Node", "--format=%T").split()

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, **self.environment}, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_for(self, is_there, what: str, limit_s: float = 60) -> None:
        """Wait until something is so; fail after a minute."""
        end_s = time.monotonic() + limit_s
        while not is_there():
            assert time.monotonic() < end_s, f"waited {limit_s:g} s for {what}"
            time.sleep(0.3)

    def stop(self) -> None:
        """End all daemons."""
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld"):
            if (file := self.folder / f"{name}.pid").exists():
                subprocess.run(["kill", file.read_text().strip()], capture_output=True, check=False)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def start_munge() -> None:
    """Start munge, unless it runs already."""
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    Path("/run/munge").chmod(0o755)
    key = Path("/etc/munge/munge.key")
    if not key.exists() or not key.stat().st_size:
        subprocess.run(["mungekey", "--create"], check=True)
    shutil.chown(key, "munge", "munge")
    subprocess.run(["munged", "--force"], check=True, capture_output=True)


def step_daemons(node: str, configuration: str) -> list[int]:
    """Return the daemons of the jobs on a node of the cluster with this configuration."""
    found = []
    for process in psutil.process_iter(["name"]):
        is_step = process.info["name"] == "slurmstepd"
        if is_step and any(_place_of(child) == (configuration, node) for child in process.children(recursive=True)):
            found.append(process.pid)
    return found


def _place_of(process: psutil.Process) -> tuple[str, str]:
    """Return the cluster's configuration and the node that a process runs on; empty where it cannot be read."""
    try:
        variables = process.environ()
    except psutil.Error:
        return "", ""
    return variables.get("SLURM_CONF", ""), variables.get("SLURMD_NODENAME", "")


def kill_tree(pid: int) -> None:
    """Kill a process and all below it."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> int:
    """Start and stop a Slurm, and return 0 if that works."""
    with tempfile.TemporaryDirectory() as folder:
        running = Slurm(Path(folder) / "slurm")
        try:
            running.start()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            print(f"Slurm does not start: {error}", file=sys.stderr)
            return 1
        finally:
            running.stop()
            time.sleep(1)  # the daemons write as they end
    return 0


if __name__ == "__main__":
    sys.exit(main())
