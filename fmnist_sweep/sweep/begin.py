"""The begin of a sweep: its command line checked, its folder made, its study opened."""

import importlib.util
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
from fmnist_sweep.sweep import runners
from fmnist_sweep.sweep import settings as settings_file
from fmnist_sweep.sweep import space as space_file
from fmnist_sweep.sweep.database import as_it_travels, check_written, reachable
from fmnist_sweep.sweep.job import SweepJob
from fmnist_sweep.sweep.loop import Loop, ahead
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.share import Share
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy, lock
from fmnist_sweep.sweep.task import Task, seed_of, task_of

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


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

    asked = task_of(task)

    def compose(lines: Sequence[str]) -> DictConfig:
        try:
            return context.config_loader.load_sweep_config(config, list(lines))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_line(error, asked.known_keys)) from None

    def is_group(key: str) -> bool:
        return bool(context.config_loader.get_group_options(key))

    settings = _settings(values, config, asked)
    settings_file.check_repeats(settings, asked, config)
    seed = seed_of(config, settings.seed_key) or 0
    for key, usual in (("sweep.subdir", "${hydra.job.num}"), ("output_subdir", ".hydra")):
        _tell_of_what_is_not_used(config, key, usual)
    space = space_file.read(arguments, settings, compose, is_group, asked, seed)
    extend = _custom_space(settings, config)
    _rehearse(settings, space)
    _check_launcher(config, settings)
    for name in settings.objective:
        if values.get("direction") is None and not (asked.direction(name) or says_direction(name)):
            print(
                f"{name}: better when lower, as its name does not say; "
                "hydra.sweeper.direction=maximize turns that",
                file=sys.stderr,
            )
    with _folder(config, settings) as folder:
        name = config.get("name") or "/".join(folder.parts[-2:])
        study = SweepStudy(folder, str(name), space, settings, seed, asked.free_keys)
    try:
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
    )
    share = Share(job, folder, str(name), space, settings, extend, config, context)
    try:
        loop = _loop(study, settings, job, share, config, context, extend)
        loop.run(is_named=_names_itself(config))
    finally:
        study.close()


def _loop(
    study: SweepStudy,
    settings: Settings,
    job: SweepJob,
    share: Share,
    config: DictConfig,
    context: HydraContext,
    extend: Callable[[optuna.Trial], None] | None,
) -> Loop:
    """The loop over the runner of this sweep's launcher."""
    at_once = None
    run: Callable[[Loop], None]
    if config.hydra.launcher._target_ == BASIC:
        run = runners.BasicRunner(config, context, job).run
        return Loop(study, settings, run, extend, ranking.console())
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=share if settings.shares else job, config=config
    )
    if isinstance(launcher, runners.RunsByItself):
        at_once = ahead(settings, study.space)
        run = launcher.runner(cores() // study.processes()).run
    elif settings.shares:
        run = runners.ShareRunner(launcher, settings.shares).run
    else:
        batch = settings.n_jobs or _side_by_side(config)
        run = runners.BatchRunner(launcher, batch, config, context, job).run
    return Loop(study, settings, run, extend, ranking.console(), at_once)


def _tell_of_what_is_not_used(config: DictConfig, key: str, usual: str) -> None:
    """Run folders are numbered, and hold their configuration, in a place that all know."""
    section, _, name = f"hydra.{key}".rpartition(".")
    chosen = OmegaConf.to_container(OmegaConf.select(config, section), resolve=False)
    if isinstance(chosen, dict) and chosen.get(name) != usual:
        print(
            f"hydra.{key}={chosen.get(name)}: not used by a sweep, whose run folders are "
            "0, 1, ... with .hydra in each; hydra.sweep.dir says where they lie",
            file=sys.stderr,
        )


def _settings(values: Mapping[str, Any], config: DictConfig, task: Task) -> Settings:
    """The sweeper's own keys; their storage as jobs may be told it, without what is secret."""
    plain = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    written = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(plain, dict) and isinstance(written, dict)
    settings = settings_file.read({str(key): value for key, value in plain.items()}, task)
    check_written(written["storage"])
    storage = as_it_travels(written["storage"], settings.storage)
    return settings.model_copy(update={"storage": storage})


def _check_launcher(config: DictConfig, settings: Settings) -> None:
    """Refuses a launcher's configuration that its jobs would fail of; connects to Ray."""
    target = config.hydra.launcher._target_
    cls = get_class(target)
    if check := getattr(cls, "check", None):
        check(OmegaConf.to_container(config.hydra.launcher, resolve=True))
    if ".hydra_submitit_launcher." in target:
        _look_for_submitit(is_slurm=target.endswith(".SlurmLauncher"))
    if settings.shares and (target == BASIC or issubclass(cls, runners.RunsByItself)):
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
            {"_target_": target, "_partial_": True}, _execution_whitelist_=trusted_packages()
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
    made = None
    try:
        if _is_chosen(config) or _names_itself(config):
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
            folder = made = make_unique_dir(folder)
        yield folder
    except BaseException as error:
        if made:
            _take_away(made)
        if isinstance(error, OSError):
            raise ConfigError(f"hydra.sweep.dir={folder}: {error.strerror}") from None
        raise


def _is_chosen(config: DictConfig) -> bool:
    """Whether the command line says which folder."""
    return any(o.startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)


def _names_itself(config: DictConfig) -> bool:
    """Whether the configuration names the same folder each time, and not one by the time."""
    written = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(written, dict)
    return "${now:" not in str(written["dir"]) or bool(config.get("name"))


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
    return jobs if jobs > 0 else max(1, cores() + 1 + jobs)
