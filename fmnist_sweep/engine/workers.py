"""Workers, which train stacks in this process or in processes of their own, one core each.

A stack trains on as many threads as one of its trials would alone. More cores train more stacks
side by side, each in its own process: threads of one process would wait for one another in Python
between any two steps. (Two stacks of one trial each were no faster in two threads than one after
the other.)
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
from fmnist_sweep.base.processes import (
    enter_child_process,
    fork_server,
    picklable_error,
    process_died,
    start,
)
from fmnist_sweep.engine.checkpoint import State
from fmnist_sweep.engine.data import DataFormat, DataSplits
from fmnist_sweep.engine.settings import WORKER_MODULES
from fmnist_sweep.engine.stack import CHUNK_SIZE, Outcome, Progress, Stack, StackKey
from fmnist_sweep.engine.step import StepCache, Trial
from fmnist_sweep.engine.step_library import StepLibrary, is_portable

MAX_STEP_CACHES = 16

Outcomes = dict[int, Outcome | Exception]


class Trainer:
    """Trains one stack after another and keeps the compiled steps of recent stack keys."""

    def __init__(self) -> None:
        self.step_caches: dict[StackKey, StepCache] = {}

    def load_data(self, data: DataSplits) -> None:
        """Set the examples for the stacks opened from now on."""
        self.data = data

    def open(self, stack_key: StackKey, first: Trial) -> None:
        """Begin an empty stack.

        Args:
            stack_key: the stack key of all trials to be added.
            first: a trial with this key, from which the step is made.
        """
        torch.set_num_threads(stack_key.threads)
        device = self.data.device
        if stack_key not in self.step_caches:
            if len(self.step_caches) >= MAX_STEP_CACHES:
                del self.step_caches[next(iter(self.step_caches))]
            compile, bf16 = stack_key.compile, stack_key.bf16
            library = _library(stack_key, self.data.format)
            step_cache = StepCache(first, self.data.format, compile, bf16, device, library)
            self.step_caches[stack_key] = step_cache
        self.stack = Stack(
            self.step_caches[stack_key],
            self.data,
            stack_key.batch_size,
            stack_key.log_every,
            CHUNK_SIZE[device.type],
        )

    def add(self, number: int, trial: Trial, state: State | None = None) -> None:
        """Add a trial to the stack; see `Stack.add`."""
        self.stack.add(number, trial, state)

    def release(self, number: int) -> State:
        """Remove a trial from the stack to continue it in another; see `Stack.release`."""
        return self.stack.release(number)

    def state(self, number: int) -> State:
        """Return a trial's state; see `Stack.state`."""
        return self.stack.state(number)

    def pause(self, number: int) -> None:
        """Remove a trial from the stack to continue it later; see `Stack.pause`."""
        self.stack.pause(number)

    def remove(self, number: int) -> dict[str, torch.Tensor]:
        """Remove a trial from the stack; see `Stack.remove`."""
        return self.stack.remove(number)


def _library(stack_key: StackKey, data: DataFormat) -> StepLibrary | None:
    if not is_portable(stack_key.signature):
        return None
    settings = stack_key.why_alone, stack_key.bf16, stack_key.threads, data
    return StepLibrary(stack_key.signature, *settings)


class Worker:
    """A trainer in this process; an epoch runs within the call of `event`."""

    connection: Connection | None = None

    def __init__(self) -> None:
        self.trainer = Trainer()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the trainer, between two epochs."""
        return getattr(self.trainer, method)(*arguments)

    def begin_epoch(self) -> None:
        """Start the next epoch of the worker's stack."""

    def event(self, tell: Callable[[list[Progress]], None]) -> Outcomes | None:
        """Wait for the next event of the epoch: progress or the end of the epoch.

        Args:
            tell: called with the progress of trials within the epoch.

        Returns:
            The outcomes of the epoch when it has finished, else None.

        Raises:
            Exception: the trainer's process has died, or its whole stack cannot continue.
        """
        return self.trainer.stack.train_epoch(tell)

    def hang_up(self) -> None:
        """Ask the worker to end after the current epoch."""

    def close(self, patience: float = 1.0) -> None:
        """End the worker; kill its process if it has not ended after `patience` seconds."""


class ProcessWorker(Worker):
    """A trainer in its own process, which ends with this process."""

    def __init__(self) -> None:
        server = fork_server(*WORKER_MODULES)
        self.connection, theirs = server.Pipe()
        self.process = server.Process(target=_serve, args=(theirs,), daemon=True)
        start(self.process)
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        self._send((method, arguments))
        message_type, value = self._receive()
        assert message_type == "result"
        return value

    def begin_epoch(self) -> None:
        self._send(("epoch", ()))

    def event(self, tell: Callable[[list[Progress]], None]) -> Outcomes | None:
        message_type, value = self._receive()
        if message_type == "progress":
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
        # pickle, because multiprocessing would put tensors into shared memory, which may be scarce.
        try:
            content = pickle.dumps(message)
        except Exception as error:  # for example, the model refers to a lambda function
            raise ConfigError(
                f"its model cannot be sent to another process ({first_line(error)}); "
                "use hydra/launcher=basic"
            ) from None
        try:
            self.connection.send_bytes(content)  # type: ignore[union-attr]
        except OSError:
            raise process_died(self.process) from None

    def _receive(self) -> Any:
        try:
            message_type, value = pickle.loads(
                self.connection.recv_bytes()  # type: ignore[union-attr]
            )
        except (EOFError, OSError):
            raise process_died(self.process) from None
        if message_type == "error":
            raise value
        return message_type, value


def wait_for_event(workers: Sequence[Worker]) -> Worker:
    """Wait until one of the workers has an event of its epoch, and return this worker."""
    by_connection = {
        worker.connection: worker for worker in workers if worker.connection is not None
    }
    if len(by_connection) < len(workers):
        return next(worker for worker in workers if worker.connection is None)
    connection = wait(list(by_connection))[0]
    return by_connection[connection]  # type: ignore[index]


def _serve(connection: Connection) -> None:
    """Run calls and epochs one after the other; the main function of a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the connection
    enter_child_process()
    command.make_streams_robust()
    torch.set_flush_denormal(True)
    trainer = Trainer()

    def send(message_type: str, value: Any) -> None:
        try:
            connection.send_bytes(pickle.dumps((message_type, value)))
        except OSError:  # the parent has closed the connection
            os._exit(0)

    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
            if method == "epoch":
                outcomes = trainer.stack.train_epoch(lambda progress: send("progress", progress))
                send("epoch", {n: picklable_error(outcome) for n, outcome in outcomes.items()})
            else:
                send("result", getattr(trainer, method)(*arguments))
        except EOFError:  # the parent has closed the connection
            return
        except Exception as error:
            send("error", picklable_error(error))
