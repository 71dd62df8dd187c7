"""One stage by several processes: torchrun starts this process's command so many times.

    KOQA_PROCESSES=4 dvc repro                     # on one machine, a GPU each where there are any

On several machines, each with a clone of the same commit and the same data, all at once:

    export KOQA_PROCESSES=4
    export KOQA_TORCHRUN="--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400"
    dvc repro

No parameter, and in no fingerprint: a step is the same but for last digits at any number, and a run
resumes with another one.

On a GPU `koqa plan --stage` runs before anything loads, as a process of its own: it reads all of
params.yaml, and a stage is to depend on its own params alone.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.rlhf.runs import provenance, sharding, signals
from stages.rlhf.runs.cache import run_cached
from stages.rlhf.runs.process_group import TIMEOUT, WAIT, ProcessGroup
from stages.rlhf.runtime import processes

TORCHRUN = "KOQA_TORCHRUN"  # torchrun's options for several machines; default: this one alone
PLAN = "KOQA_PLAN"  # 0: start also what does not fit the GPU by the plan's estimate
DOES_NOT_FIT = 3  # exit status of `koqa plan --stage`

Make = Callable[[Path, ProcessGroup], None]


def run_parallel(stage: provenance.Stage, outs: Sequence[Path], make: Make) -> None:
    """`run_cached`, by as many processes as the environment says.

    `make` gets the work folder and the group; where this process is not the main one it writes
    nothing. Raises ValueError also where the stage does not fit this machine's GPUs, where the
    processes do not see the same code, params and inputs, or where one of them ends.
    """
    count = processes()

    def do(work: Path) -> None:
        if "RANK" not in os.environ:
            shard = must_shard(stage.name, count)
            if count > 1 or os.environ.get(TORCHRUN):
                launch(f"stages.{stage.name}", count, shard)
                return
        group = ProcessGroup.init()
        with group.together():
            group.check_same(work.name, "the fingerprint of code, params and inputs is")
            group.check_same(f"{sharding.wanted():02x}", f"{sharding.SHARD}, as two digits, is")
            make(work, group)
            group.destroy()

    run_cached(stage, outs, do)


def must_shard(stage: str, count: int) -> bool:
    """Whether a stage fits this machine's GPUs only with its weights spread over `count` of them.

    False without a GPU, and where the plan cannot tell. Raises ValueError, the plan's sentence,
    where it does not fit at all.
    """
    if not torch.cuda.is_available() or os.environ.get(PLAN) == "0":
        return False
    command = [sys.executable, "-m", "stages.cli.main", "plan", "--stage", stage]
    command += ["--processes", str(count)]
    command += ["--no-shard"] if os.environ.get(sharding.SHARD) == "0" else []
    local = {**os.environ, "HF_HUB_OFFLINE": "1"}  # it reads what stage base has fetched
    done = subprocess.run(command, capture_output=True, text=True, env=local)
    if done.returncode == DOES_NOT_FIT:
        raise ValueError(f"{done.stdout.strip()}; {PLAN}=0 starts it all the same")
    return done.returncode == 0 and done.stdout.strip() == "shard"


def launch(module: str, count: int, shard: bool = False) -> None:
    """Run this process's command as so many processes under torchrun, and pass signals on.

    `shard`: with weights spread over them, unless the environment says otherwise.

    They have as long to finish and save their step as they have for each other. The agent is out of
    the terminal's process group, so that Ctrl-C comes to it once, and it holds the lock of the work
    folder as long as it lives. Raises ValueError where one fails, Interrupted where a stop was
    requested.
    """
    wait = os.environ.get(TIMEOUT, WAIT)
    command = [sys.executable, "-m", "torch.distributed.run", f"--shutdown-timeout={wait}"]
    command += shlex.split(os.environ.get(TORCHRUN, "--standalone"))
    command += [f"--nproc_per_node={count}", "-m", module, *sys.argv[1:]]
    environment = {"OMP_NUM_THREADS": "1"}  # else accelerate takes all cores
    if shard:
        environment[sharding.SHARD] = "1"
    with subprocess.Popen(
        command, env={**environment, **os.environ}, start_new_session=True, close_fds=False
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
