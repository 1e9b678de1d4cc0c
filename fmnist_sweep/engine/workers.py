"""Where stacks are trained: in this process, or in processes of their own, a core each.

A stack trains on as many threads as one of its trials would alone. More cores are used by more
stacks side by side, each in a process: threads of one process would wait for one another in
Python between any two steps (two stacks of one trial ran no faster so than one after the other).
"""

import os
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError, first_line
from fmnist_sweep.base.processes import died, end_with_parent, fork_server, portable, start
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.stack import CHUNK, Outcome, Progress, Stack, StackKey
from fmnist_sweep.engine.step import Steps, Trial

KINDS_KEPT = 16

Outcomes = dict[int, Outcome | Exception]


class Trainer:
    """Trains one stack after another, keeping the steps that it has compiled."""

    def __init__(self) -> None:
        self.steps: dict[StackKey, Steps] = {}

    def take(self, data: DataSplits) -> None:
        """Takes the images that later stacks train on."""
        self.data = data

    def open(self, kind: StackKey, first: Trial) -> None:
        """Begins a stack of trials of the kind of `first`, none of them in it yet."""
        torch.set_num_threads(kind.threads)
        device = self.data.train.pixels.device
        if kind not in self.steps:
            if len(self.steps) >= KINDS_KEPT:
                del self.steps[next(iter(self.steps))]
            self.steps[kind] = Steps(first, kind.compile, kind.bf16, device)
        chunk = CHUNK[device.type]
        self.stack = Stack(self.steps[kind], self.data, kind.batch_size, kind.log_every, chunk)

    def add(self, number: int, trial: Trial) -> None:
        """See `Stack.add`."""
        self.stack.add(number, trial)

    def remove(self, number: int) -> dict[str, torch.Tensor]:
        """See `Stack.remove`."""
        return self.stack.remove(number)


class Worker:
    """A trainer in this process; an epoch runs when its events are asked for."""

    connection: Connection | None = None

    def __init__(self) -> None:
        self.trainer = Trainer()

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the trainer, between two epochs."""
        return getattr(self.trainer, method)(*arguments)

    def begin_epoch(self) -> None:
        """Starts the next epoch of the worker's stack."""

    def event(self, tell: Callable[[list[Progress]], None]) -> Outcomes | None:
        """Waits for the epoch's next news.

        Args:
            tell: told where trials stand within the epoch.

        Returns:
            The epoch's outcomes once it is finished; until then None.

        Raises:
            Exception: what ended the trainer's process, or kept its whole stack from going on.
        """
        return self.trainer.stack.epoch(tell)

    def hang_up(self) -> None:
        """Asks the worker to end; it does so between two epochs."""

    def close(self, patience: float = 1.0) -> None:
        """Ends the worker with what it is at, after so many seconds if not by itself."""


class ProcessWorker(Worker):
    """A trainer in a process of its own, which ends with this one."""

    def __init__(self) -> None:
        server = fork_server(__name__)
        self.connection, theirs = server.Pipe()
        self.process = server.Process(target=_serve, args=(theirs,), daemon=True)
        start(self.process)
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        self._send((method, arguments))
        kind, value = self._receive()
        assert kind == "result"
        return value

    def begin_epoch(self) -> None:
        self._send(("epoch", ()))

    def event(self, tell: Callable[[list[Progress]], None]) -> Outcomes | None:
        kind, value = self._receive()
        if kind == "progress":
            tell(value)
            return None
        outcomes: Outcomes = value
        return outcomes

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()

    def close(self, patience: float = 1.0) -> None:
        self.hang_up()
        self.process.join(patience)
        self.process.kill()
        self.process.join()

    def _send(self, message: Any) -> None:
        # Pickled here: multiprocessing would put tensors into shared memory, which may be scarce.
        try:
            content = pickle.dumps(message)
        except Exception as error:  # as of a lambda that the model holds
            raise ConfigError(
                f"its model cannot be sent to another process ({first_line(error)}); "
                "use hydra/launcher=basic"
            ) from None
        try:
            self.connection.send_bytes(content)  # type: ignore[union-attr]
        except OSError:
            raise died(self.process) from None

    def _receive(self) -> Any:
        try:
            kind, value = pickle.loads(self.connection.recv_bytes())  # type: ignore[union-attr]
        except (EOFError, OSError):
            raise died(self.process) from None
        if kind == "error":
            raise value
        return kind, value


def ready(workers: Sequence[Worker]) -> Worker:
    """Waits until one of the workers has news of its epoch."""
    by_connection = {
        worker.connection: worker for worker in workers if worker.connection is not None
    }
    if len(by_connection) < len(workers):
        return next(worker for worker in workers if worker.connection is None)
    connection = wait(list(by_connection))[0]
    return by_connection[connection]  # type: ignore[index]


def _serve(connection: Connection) -> None:
    """What a worker's process does: calls and epochs, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    end_with_parent()
    command.make_forgiving()
    torch.set_flush_denormal(True)
    trainer = Trainer()

    def send(kind: str, value: Any) -> None:
        try:
            connection.send_bytes(pickle.dumps((kind, value)))
        except OSError:  # nobody listens any longer
            os._exit(0)

    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
            if method == "epoch":
                outcomes = trainer.stack.epoch(lambda told: send("progress", told))
                send("epoch", {n: portable(outcome) for n, outcome in outcomes.items()})
            else:
                send("result", getattr(trainer, method)(*arguments))
        except EOFError:  # nobody asks any longer
            return
        except Exception as error:
            send("error", portable(error))
