"""Begin a sweep: check its command line, make its folder, open its study and run it."""

import importlib.util
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_sweep.base.errors import ConfigError, hydra_line
from fmnist_sweep.base.files import make_unique_dir, write_atomically
from fmnist_sweep.base.processes import cores
from fmnist_sweep.base.schema import trusted_packages
from fmnist_sweep.results import ranking, record
from fmnist_sweep.results.metrics import says_direction
from fmnist_sweep.sweep import constraints as constraints_module
from fmnist_sweep.sweep import database, pbt, runners, warm_start
from fmnist_sweep.sweep import settings as settings_module
from fmnist_sweep.sweep.budget import Budget
from fmnist_sweep.sweep.constraints import Constraints
from fmnist_sweep.sweep.job import SweepJob
from fmnist_sweep.sweep.loop import SweepLoop, trials_at_once
from fmnist_sweep.sweep.pbt import Pbt, Population
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.space import Space, parse_space
from fmnist_sweep.sweep.study import SweepStudy, lock
from fmnist_sweep.sweep.task import Task, seed_of, task_of
from fmnist_sweep.sweep.worker_job import WorkerJob

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def sweep(
    arguments: Sequence[str],
    values: Mapping[str, Any],
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
    started: float,
) -> None:
    """Run a sweep, or resume it.

    Args:
        arguments: the command line's overrides, without those of `hydra.*`.
        values: `hydra.sweeper`.
        config: the configuration without the swept values, with its `hydra` section.
        context: Hydra's configuration loader and callbacks.
        task: the application's function that Hydra runs.
        started: when the command started, as `time.time()` returns it.

    Raises:
        ConfigError: the user made a mistake; no trial has begun.
        SystemExit: interrupted (130 or 143), or stopped by failures (1).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    definition = _define(arguments, values, config, context, task_of(task))
    settings, space = definition.settings, definition.space
    with _sweep_folder(config, settings) as folder:
        name = str(config.get("name") or "/".join(folder.parts[-2:]))
        known = warm_start.read(settings, space, folder, definition.task)
        study = SweepStudy(
            folder,
            name,
            space,
            settings,
            definition.seed,
            definition.task.free_keys,
            known,
            definition.constraints.allow,
            definition.task.epochs_key,
        )
    try:
        budget = Budget(settings, study, started)
        write_atomically(folder / "multirun.yaml", OmegaConf.to_yaml(config))
    except BaseException:
        study.close()
        raise
    job = SweepJob(
        task,
        study.address,
        settings.objective,
        settings.pruner,
        settings.seed_key,
        settings.repeats or 1,
        deadline=budget.deadline,
        scheduler=settings.scheduler,
        limit=study.limit,
        n_trials=study.space.n_trials,
        population=_population(study, settings),
    )
    worker_job = WorkerJob(
        job,
        folder,
        name,
        space,
        settings,
        definition.extend,
        config,
        context,
        budget.started,
        budget.used_before,
        known,
        definition.constraints,
    )
    try:
        loop = _make_loop(study, budget, job, worker_job, config, context, definition.extend)
        with loop.background:
            loop.run(is_named=_has_fixed_folder(config))
    finally:
        study.close()


def _population(study: SweepStudy, settings: Settings) -> Population | None:
    if not isinstance(settings.scheduler, Pbt):
        return None
    return Population(
        settings.scheduler,
        study.folder,
        pbt.ranges(study.space.distributions),
        settings.objective[0],
        settings.direction[0],
        study.space.n_trials,
    )


class _Definition(NamedTuple):
    """The definition of a sweep, from its command line and configuration, checked.

    extend: suggests further, conditional parameters.
    """

    task: Task
    settings: Settings
    space: Space
    constraints: Constraints
    seed: int
    extend: Callable[[optuna.Trial], None] | None


def _define(
    arguments: Sequence[str],
    values: Mapping[str, Any],
    config: DictConfig,
    context: HydraContext,
    task: Task,
) -> _Definition:
    """Check a sweep's command line and settings; the arguments are those of `sweep`.

    Raises:
        ConfigError: the user made a mistake.
    """

    def compose(lines: Sequence[str]) -> DictConfig:
        try:
            return context.config_loader.load_sweep_config(config, list(lines))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_line(error, task.known_keys)) from None

    def is_group(key: str) -> bool:
        return bool(context.config_loader.get_group_options(key))

    settings = _read_settings(values, config, task)
    settings_module.check_repeats(settings, task, config)
    constraints_module.check(settings, task)
    seed = seed_of(config, settings.seed_key) or 0
    for key, default in (("sweep.subdir", "${hydra.job.num}"), ("output_subdir", ".hydra")):
        _warn_about_unused_key(config, key, default)
    space = parse_space(arguments, settings, compose, is_group, task, seed)
    extend = _load_custom_space(settings, config)
    _try_sampler(settings, space)
    if isinstance(settings.scheduler, Pbt):
        _check_population(settings, space, config, task)
    _check_scheduler(settings, space, task)
    warm_start.check(settings, space)
    _check_launcher(config, settings)
    constraints = Constraints(settings.constraints, space, config, context, task)
    space = constraints.restrict(space)
    if values.get("direction") is None:
        _tell_default_direction(settings, task)
    return _Definition(task, settings, space, constraints, seed, extend)


def _tell_default_direction(settings: Settings, task: Task) -> None:
    """Print which objectives are minimized because their names tell no direction."""
    for name in settings.objective:
        if not (task.direction(name) or says_direction(name)):
            print(
                f"{name}: minimized, as its name tells no direction; "
                "hydra.sweeper.direction=maximize changes that",
                file=sys.stderr,
            )


def _make_loop(
    study: SweepStudy,
    budget: Budget,
    job: SweepJob,
    worker_job: WorkerJob,
    config: DictConfig,
    context: HydraContext,
    extend: Callable[[optuna.Trial], None] | None,
) -> SweepLoop:
    at_once, settings = None, budget.settings
    run: Callable[[SweepLoop], None]
    if config.hydra.launcher._target_ == BASIC_LAUNCHER:
        run = runners.BasicRunner(config, context, job).run
        return SweepLoop(study, budget, run, extend, ranking.console())
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=worker_job if settings.shares else job, config=config
    )
    if isinstance(launcher, runners.ProvidesRunner):
        runner = launcher.runner(cores() // study.processes())
        at_once = trials_at_once(settings, study.space, runner)
        run = runner.run
    elif settings.shares:
        run = runners.WorkerJobRunner(launcher, settings.shares).run
    else:
        batch = settings.n_jobs or _parallel_jobs(config)
        run = runners.BatchRunner(launcher, batch, config, context, job).run
    return SweepLoop(study, budget, run, extend, ranking.console(), at_once)


def _warn_about_unused_key(config: DictConfig, key: str, default: str) -> None:
    """Warn about a key that a sweep ignores, as its run folders have fixed names."""
    section, _, name = f"hydra.{key}".rpartition(".")
    chosen = OmegaConf.to_container(OmegaConf.select(config, section), resolve=False)
    if isinstance(chosen, dict) and chosen.get(name) != default:
        print(
            f"hydra.{key}={chosen.get(name)}: not used by a sweep, whose run folders are "
            "0, 1, ... with .hydra in each; hydra.sweep.dir says where they lie",
            file=sys.stderr,
        )


def _read_settings(values: Mapping[str, Any], config: DictConfig, task: Task) -> Settings:
    """Check the sweeper's keys; return them with a storage URL that may be passed to jobs."""
    resolved = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    unresolved = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(resolved, dict) and isinstance(unresolved, dict)
    settings = settings_module.read({str(key): value for key, value in resolved.items()}, task)
    database.refuse_password(unresolved["storage"])
    storage = database.portable_url(unresolved["storage"], settings.storage)
    return settings.model_copy(update={"storage": storage})


def _check_launcher(config: DictConfig, settings: Settings) -> None:
    """Refuse a launcher configuration with which every job would fail; connect to Ray."""
    target = config.hydra.launcher._target_
    cls = get_class(target)
    if check := getattr(cls, "check", None):
        check(OmegaConf.to_container(config.hydra.launcher, resolve=True))
    if ".hydra_submitit_launcher." in target:
        _require_submitit(is_slurm=target.endswith(".SlurmLauncher"))
    if settings.shares and (target == BASIC_LAUNCHER or issubclass(cls, runners.ProvidesRunner)):
        raise ConfigError(
            f"hydra.sweeper.shares={settings.shares}: needs a launcher that starts processes: "
            "hydra/launcher=joblib, ray, submitit_local or submitit_slurm"
        )


def _require_submitit(is_slurm: bool) -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError(
            "hydra/launcher: submitit needs the extra slurm: pip install 'fmnist-sweep[slurm]'"
        )
    if is_slurm and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=submitit_slurm: there is no Slurm here (no srun); start the sweep "
            "where there is, or with hydra/launcher=submitit_local"
        )


def _load_custom_space(
    settings: Settings, config: DictConfig
) -> Callable[[optuna.Trial], None] | None:
    """Return the user's function that adds conditional parameters, if there is one."""
    target = settings.custom_search_space
    if target is None:
        return None
    try:
        function = instantiate(
            {"_target_": target, "_partial_": True}, _execution_whitelist_=trusted_packages()
        )
    except HydraException as error:
        raise ConfigError(
            f"hydra.sweeper.custom_search_space={target}: {hydra_line(error)}; the environment "
            "variable FMNIST_SWEEP_TRUST=yourpackage.* lets a package of your own be called"
        ) from None
    return lambda trial: function(config, trial)


def _check_scheduler(settings: Settings, space: Space, task: Task) -> None:
    """Refuse a scheduler that decides on no trial, as none has so many epochs."""
    key, scheduler = task.epochs_key, settings.scheduler
    if scheduler and not scheduler.prunes and not task.can_pause:
        raise ConfigError(
            f"hydra/sweeper/scheduler={scheduler.kind}: needs an application whose trials can be "
            "paused; choose asha, which prunes instead"
        )
    if scheduler is None or key is None:
        return
    first = scheduler.first_decision
    searched = space.distributions.get(key)
    most = getattr(searched, "high", None) or max(getattr(searched, "choices", [space.base[key]]))
    if first >= most:
        raise ConfigError(
            f"hydra.sweeper.scheduler: its first decision on some trials comes after {first} "
            f"epochs, and no trial has more than {key}={most}; let it decide earlier, or choose "
            "hydra/sweeper/scheduler=none"
        )


def _check_population(settings: Settings, space: Space, config: DictConfig, task: Task) -> None:
    """Refuse what a population of trials, which train side by side, cannot be."""
    pbt.check(space.distributions, space.n_trials, task)
    if settings.n_jobs and settings.n_jobs < space.n_trials:
        raise ConfigError(
            f"hydra.sweeper.n_jobs={settings.n_jobs}: hydra/sweeper/scheduler=pbt trains all "
            f"{space.n_trials} trials side by side; use null"
        )
    if not issubclass(get_class(config.hydra.launcher._target_), runners.ProvidesRunner):
        raise ConfigError(
            "hydra/sweeper/scheduler=pbt: trials copy from one another within one command; use "
            "hydra/launcher=stacked"
        )
    found = pbt.ranges(space.distributions)
    task.check_changes(config, {key: (each.low, each.high) for key, each in found.items()})


def _try_sampler(settings: Settings, space: Space) -> None:
    """Let the sampler suggest two trials of a study in memory.

    Raises:
        ConfigError: the sampler does not support the space or the directions.
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
def _sweep_folder(config: DictConfig, settings: Settings) -> Iterator[Path]:
    """Yield the sweep's folder: a named or chosen folder if there is one, else a new folder.

    Remove a new folder again if the study cannot be opened in it.
    """
    if settings.storage:
        database.connect(settings.storage)
    folder = Path(config.hydra.sweep.dir).absolute()
    new_folder = None
    try:
        is_chosen = any(o.startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)
        if is_chosen or _has_fixed_folder(config):
            try:
                folder.mkdir(parents=True)
                new_folder = folder
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
            folder = new_folder = make_unique_dir(folder)
        yield folder
    except BaseException as error:
        if new_folder:
            _remove_unused_folder(new_folder)
        if isinstance(error, OSError):
            raise ConfigError(f"hydra.sweep.dir={folder}: {error.strerror}") from None
        raise


def _has_fixed_folder(config: DictConfig) -> bool:
    """Return whether the same command uses the same folder again, not one named by the time."""
    sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(sweep, dict)
    return "${now:" not in str(sweep["dir"]) or bool(config.get("name"))


def _remove_unused_folder(folder: Path) -> None:
    """Remove an unused folder, unless another process has begun to work in it."""
    with suppress(OSError), lock(folder):
        if not any(folder.glob(".worker-*.lock")) and not record.attempts(folder):
            shutil.rmtree(folder)


def _parallel_jobs(config: DictConfig) -> int:
    """Return the launcher's `n_jobs` as a number of jobs; 1 if it has no such key."""
    jobs = OmegaConf.select(config, "hydra.launcher.n_jobs")
    if not isinstance(jobs, int) or jobs == 0:
        return 1
    return jobs if jobs > 0 else max(1, cores() + 1 + jobs)
