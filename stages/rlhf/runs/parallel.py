"""One stage by several processes: torchrun starts this process's command so many times.

    KOQA_PROCESSES=4 dvc repro                     # on one machine, a GPU each where there are any

On several machines, each with a clone of the same commit and the same data, all at once:

    export KOQA_PROCESSES=4
    export KOQA_TORCHRUN="--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400"
    dvc repro

No parameter, and in no fingerprint: a step is the same but for last digits at any number, and a run
resumes with another one.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.rlhf.runs import provenance, signals
from stages.rlhf.runs.cache import run_cached
from stages.rlhf.runs.process_group import TIMEOUT, WAIT, ProcessGroup
from stages.rlhf.runtime import processes

TORCHRUN = "KOQA_TORCHRUN"  # torchrun's options for several machines; default: this one alone

Make = Callable[[Path, ProcessGroup], None]


def run_parallel(stage: provenance.Stage, outs: Sequence[Path], make: Make) -> None:
    """`run_cached`, by as many processes as the environment says.

    `make` gets the work folder and the group; where this process is not the main one it writes
    nothing. Raises ValueError also where the processes do not see the same code, params and
    inputs, or where one of them ends.
    """
    count = processes()

    def do(work: Path) -> None:
        if "RANK" not in os.environ and (count > 1 or os.environ.get(TORCHRUN)):
            launch(f"stages.{stage.name}", count)
            return
        group = ProcessGroup.init()
        with group.together():
            group.check_same(work.name, "the fingerprint of code, params and inputs is")
            make(work, group)
            group.destroy()

    run_cached(stage, outs, do)


def launch(module: str, count: int) -> None:
    """Run this process's command as so many processes under torchrun, and pass signals on.

    They have as long to finish and save their step as they have for each other. The agent is out of
    the terminal's process group, so that Ctrl-C comes to it once, and it holds the lock of the work
    folder as long as it lives. Raises ValueError where one fails, Interrupted where a stop was
    requested.
    """
    wait = os.environ.get(TIMEOUT, WAIT)
    command = [sys.executable, "-m", "torch.distributed.run", f"--shutdown-timeout={wait}"]
    command += shlex.split(os.environ.get(TORCHRUN, "--standalone"))
    command += [f"--nproc_per_node={count}", "-m", module, *sys.argv[1:]]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # else accelerate takes all cores
    with subprocess.Popen(
        command, env=environment, start_new_session=True, close_fds=False
    ) as agent:
        terminated = False
        try:
            while agent.poll() is None:
                if signals.stop_requested() and not terminated:
                    agent.terminate()
                    terminated = True
                time.sleep(0.2)
        except KeyboardInterrupt:  # the second signal
            agent.terminate()
            raise
    code = agent.returncode
    if code and terminated:
        raise signals.Interrupted(f"with {count} processes, after the last saved step")
    if code:
        raise ValueError(f"one of {count} processes ended with {code}; its message is above")
