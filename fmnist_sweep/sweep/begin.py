"""The begin of a sweep: its command line checked, its folder made, its study opened."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_sweep import record
from fmnist_sweep.cli import hydra_line
from fmnist_sweep.config import ConfigError, trusted_targets
from fmnist_sweep.report import ranking
from fmnist_sweep.sweep import ray_launcher, together
from fmnist_sweep.sweep import settings as settings_file
from fmnist_sweep.sweep import space as space_file
from fmnist_sweep.sweep.database import as_it_travels, check_written, reachable
from fmnist_sweep.sweep.job import SweepJob
from fmnist_sweep.sweep.launcher import StackedLauncher
from fmnist_sweep.sweep.loop import Loop, ahead
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.share import Share
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy, lock


def sweep(
    arguments: Sequence[str],
    values: Mapping[str, Any],
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
) -> None:
    """Runs a sweep, or what is left of it.

    Args:
        arguments: the command line's overrides, without those of `hydra.*`.
        values: `hydra.sweeper`.

    Raises:
        ConfigError: a user's mistake; nothing has been begun.
        SystemExit: interrupted (130 or 143), or stopped by failures (1).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def compose(lines: Sequence[str]) -> DictConfig:
        try:
            return context.config_loader.load_sweep_config(config, list(lines))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_line(error)) from None

    settings = _settings(values, config)
    space = space_file.read(arguments, settings, compose, config.seed)
    extend = _custom_space(settings, config)
    _rehearse(settings, space)
    _check_launcher(config, settings)
    with _folder(config, settings) as folder:
        name = config.name or "/".join(folder.parts[-2:])
        study = SweepStudy(folder, name, space, settings, config.seed)
    try:
        record.write_whole(folder / "multirun.yaml", OmegaConf.to_yaml(config))
    except BaseException:
        study.close()
        raise
    job = SweepJob(task, study.address, settings.objective, settings.pruner)
    share = Share(job, folder, name, space, settings, extend, config, context)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=share if settings.shares else job, config=config
    )
    if isinstance(launcher, StackedLauncher):
        launcher.cores //= study.processes()
        at_once = ahead(settings, study.space)
    else:
        at_once = settings.n_jobs or _side_by_side(config)
    try:
        Loop(study, settings, launcher, at_once, extend, ranking.console()).run(config.name)
    finally:
        study.close()


def _settings(values: Mapping[str, Any], config: DictConfig) -> Settings:
    """The sweeper's own keys; their storage as jobs may be told it, without what is secret."""
    plain = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    written = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(plain, dict) and isinstance(written, dict)
    settings = settings_file.read({str(key): value for key, value in plain.items()})
    check_written(written["storage"])
    storage = as_it_travels(written["storage"], settings.storage)
    return settings.model_copy(update={"storage": storage})


def _check_launcher(config: DictConfig, settings: Settings) -> None:
    """Refuses a launcher's configuration that its jobs would fail of; connects to Ray."""
    target = config.hydra.launcher._target_
    if target.endswith(".StackedLauncher"):
        together.read(config.hydra.launcher)
    if target.endswith(".RayLauncher"):
        ray_launcher.connect(OmegaConf.to_container(config.hydra.launcher.init, resolve=True))
    if ".hydra_submitit_launcher." in target:
        _look_for_submitit(is_slurm=target.endswith(".SlurmLauncher"))
    if settings.shares and target.endswith((".StackedLauncher", ".BasicLauncher")):
        raise ConfigError(
            f"hydra.sweeper.shares={settings.shares}: needs a launcher that starts processes: "
            "hydra/launcher=joblib, ray, submitit_local or submitit_slurm"
        )


def _look_for_submitit(is_slurm: bool) -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError(
            "hydra/launcher: submitit needs the extra slurm: pip install 'fmnist-sweep[slurm]'"
        )
    if is_slurm and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=submitit_slurm: there is no Slurm here (no srun); start the sweep "
            "where there is, or with hydra/launcher=submitit_local"
        )


def _custom_space(settings: Settings, config: DictConfig) -> Callable[[optuna.Trial], None] | None:
    """The user's function that adds conditional keys."""
    target = settings.custom_search_space
    if target is None:
        return None
    try:
        function = instantiate(
            {"_target_": target, "_partial_": True}, _execution_whitelist_=trusted_targets()
        )
    except HydraException as error:
        raise ConfigError(
            f"hydra.sweeper.custom_search_space={target}: {hydra_line(error)}; the environment "
            "variable FMNIST_SWEEP_TRUST=yourpackage.* lets a package of your own be called"
        ) from None
    return lambda trial: function(config, trial)


def _rehearse(settings: Settings, space: Space) -> None:
    """Lets the sampler suggest two trials of a study in memory.

    Raises:
        ConfigError: it cannot work with this space or these directions.
    """
    sampler = make_sampler(settings, 0, 0)
    if space.is_grid:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=sampler, directions=settings.direction)
            for _ in range(2):
                trial = study.ask(space.distributions)
                study.tell(trial, [0.0] * len(settings.direction))
    except (ValueError, ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"hydra/sweeper/sampler: {text}") from None


@contextmanager
def _folder(config: DictConfig, settings: Settings) -> Iterator[Path]:
    """The sweep's folder: a new one, unless a name or the user says which.

    A folder made here is taken away again if the study cannot be opened in it.
    """
    if settings.storage:
        reachable(settings.storage)
    folder = Path(config.hydra.sweep.dir).absolute()
    chosen = [o for o in config.hydra.overrides.hydra if o.startswith("hydra.sweep.dir=")]
    made = None
    try:
        if chosen or config.name:
            try:
                folder.mkdir(parents=True)
                made = folder
            except FileExistsError:
                if not folder.is_dir():
                    raise
                if record.attempts(folder) and not (folder / "study.json").exists():
                    raise ConfigError(
                        f"hydra.sweep.dir={folder}: holds another sweeper's runs; name another"
                    ) from None
                if record.holds_run(folder):
                    raise ConfigError(
                        f"hydra.sweep.dir={folder}: holds a run; name another folder"
                    ) from None
        else:
            folder = made = record.reserve(folder)
        yield folder
    except BaseException as error:
        if made:
            _take_away(made)
        if isinstance(error, OSError):
            raise ConfigError(f"hydra.sweep.dir={folder}: {error.strerror}") from None
        raise


def _take_away(folder: Path) -> None:
    """Removes a folder made in vain, unless another process has begun to work in it."""
    with suppress(OSError), lock(folder):
        if not any(folder.glob(".worker-*.lock")) and not record.attempts(folder):
            shutil.rmtree(folder)


def _side_by_side(config: DictConfig) -> int:
    """How many trials run at once, as far as the launcher's configuration says."""
    jobs = OmegaConf.select(config, "hydra.launcher.n_jobs")
    if not isinstance(jobs, int) or jobs == 0:
        return 1
    return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)
