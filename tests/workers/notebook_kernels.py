"""Notebook kernels that are forks of the process which has imported the libraries, as in `launching`."""

import os
from importlib.metadata import EntryPoint
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from workers.launching import fork

GROUP = "jupyter_client.kernel_provisioners"


def use(factory: KernelProvisionerFactory, patch: Any) -> None:
    """Let `factory` start such kernels until pytest's monkeypatch `patch` is undone."""
    entry = EntryPoint("forked", f"{__name__}:ForkedKernel", GROUP)
    patch.setitem(factory.provisioners, "forked", entry)
    patch.setattr(factory, "default_provisioner_name", "forked")


class ForkedKernel(LocalProvisioner):
    """Starts `python -m ipykernel_launcher -f CONNECTION` as a fork."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; `cmd` is what a new interpreter would be given."""
        module, words = cmd[cmd.index("-m") + 1], cmd[cmd.index("-m") + 2 :]
        folder = Path(self.parent.connection_file).parent
        said = [str(folder / f"{self.kernel_id}.{end}") for end in ("out", "err")]
        self.process = _Process(fork(module, words, kwargs["env"], Path(kwargs["cwd"]), said))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class _Process:
    """What a provisioner asks of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)
