"""torchvision's networks: against torchvision itself, and what their files may be."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.v2.functional import normalize, resize

from fmnist_sweep.engine import functional_model
from fmnist_sweep.models import weights as files
from fmnist_sweep.models.pretrained import Pretrained
from fmnist_sweep.task.data.fashion import FORMAT
from tests.conftest import Command

IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


def make(
    architecture: str = "resnet18",
    image_size: int = 32,
    weights: str | Path = "none",
    channels: str = "repeat",
    freeze: str = "none",
    unfreeze_after: int | None = None,
    body_lr: float = 1.0,
    seed: int = 0,
) -> Pretrained:
    torch.manual_seed(seed)
    return Pretrained(
        architecture,
        image_size,
        str(weights),
        channels,
        freeze,
        unfreeze_after,
        body_lr,
        inputs=FORMAT.shape,
        classes=FORMAT.classes,
    )


def lived_in(network: nn.Module) -> nn.Module:
    """Gives batch norm statistics that are not those of a new network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict as torchvision's are: three channels, a thousand classes."""
    path = tmp_path_factory.mktemp("weights") / "imagenet.pth"
    torch.manual_seed(7)
    torch.save(lived_in(models.resnet18(weights=None)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's model.pt."""
    path = tmp_path_factory.mktemp("run") / "model.pt"
    torch.save(lived_in(make(seed=5)).state_dict(), path)
    return path


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    result: torch.Tensor = model.eval()(IMAGES)
    return result


@torch.no_grad()
def features(model: Pretrained) -> torch.Tensor:
    """What the head is given."""
    model.network.fc = nn.Identity()
    return logits(model)


@torch.no_grad()
def torchvision_features(file: Path, normalised: bool, size: int = 32) -> torch.Tensor:
    """The same by torchvision alone, from images in [0, 1]."""
    network = models.resnet18(weights=None)
    network.load_state_dict(torch.load(file, weights_only=True))
    network.fc = nn.Identity()
    pixels = ((IMAGES + 1) / 2).expand(-1, 3, -1, -1)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if normalised else ([0.5], [0.5])
    large = resize(normalize(pixels, mean, std), [size, size], antialias=False)
    result: torch.Tensor = network.eval()(large)
    return result


@pytest.mark.parametrize("architecture", ["resnet50", "vgg11_bn", "vgg16_bn"])
def test_every_network_trains_at_its_smallest_size(architecture: str) -> None:
    model = make(architecture, freeze="all")
    functional_model.check(model, FORMAT)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == model.head_parameters() and len(trained) == 2


@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_drawn_weights_are_torchvisions_own(image_size: int) -> None:
    model = make(image_size=image_size, seed=3)
    torch.manual_seed(3)
    network = models.resnet18(weights=None, num_classes=10)
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.state_dict()[f"network.{name}"], tensor)
    large = resize(IMAGES, [image_size, image_size], antialias=False).expand(-1, 3, -1, -1)
    torch.testing.assert_close(logits(model), network.eval()(large))


@pytest.mark.parametrize("image_size", [32, 64])
def test_torchvisions_file_sees_imagenets_normalisation(imagenet: Path, image_size: int) -> None:
    ours = features(make(weights=imagenet, image_size=image_size))
    expected = torchvision_features(imagenet, True, image_size)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    other = torchvision_features(imagenet, False, image_size)
    assert (expected - other).abs().max() > 0.01


@pytest.mark.parametrize("source", ["none", "imagenet", "run_file"])
def test_sum_is_the_same_function_as_repeat(source: str, request: pytest.FixtureRequest) -> None:
    weights = "none" if source == "none" else request.getfixturevalue(source)
    one, three = (make(weights=weights, channels=channels) for channels in ("sum", "repeat"))
    torch.testing.assert_close(logits(one), logits(three), rtol=1e-4, atol=1e-4)
    inputs = [model.network.conv1.weight.shape[1] for model in (one, three)]
    assert inputs == [2 if source == "imagenet" else 1, 3]


@pytest.mark.parametrize("source", ["imagenet", "run_file"])
@pytest.mark.parametrize("channels", ["repeat", "sum"])
@pytest.mark.parametrize("again", ["repeat", "sum"])
def test_a_runs_file_is_the_same_function_in_either(
    source: str, channels: str, again: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = make(weights=request.getfixturevalue(source), channels=channels, seed=2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = make(weights=tmp_path / "model.pt", channels=again)
    rounding = 0.0 if channels == again else 1e-4
    torch.testing.assert_close(logits(loaded), logits(model), rtol=rounding, atol=rounding)


def test_one_channel_file_of_torchvisions_kind_sees_images_as_they_are(tmp_path: Path) -> None:
    network = models.resnet18(weights=None, num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "grey.pt")
    expected = network.eval()(resize(IMAGES, [32, 32], antialias=False))
    for channels in ("repeat", "sum"):
        model = make(weights=tmp_path / "grey.pt", channels=channels)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [5, 1000, None])
def test_another_head_is_replaced(classes: int | None, tmp_path: Path) -> None:
    network = models.resnet18(weights=None, num_classes=classes or 10)
    state = network.state_dict()
    if classes is None:
        del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "file.pt")
    model, again = (make(weights=tmp_path / "file.pt", seed=seed) for seed in (1, 2))
    assert torch.equal(model.network.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert not torch.equal(model.network.fc.weight, again.network.fc.weight)
    torch.manual_seed(1)
    assert torch.equal(model.network.fc.weight, nn.Linear(512, 10).weight)


def test_what_is_trained_does_not_reach_the_next_reader(run_file: Path) -> None:
    before = logits(make(weights=run_file))
    with torch.no_grad():
        for tensor in make(weights=run_file).state_dict().values():
            tensor.zero_()
    assert torch.equal(logits(make(weights=run_file)), before)


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(make(seed=1).state_dict(), path)
    first = logits(make(weights=path))
    torch.save(make(seed=2).state_dict(), path)
    os.utime(path, ns=(1, 1))
    assert not torch.equal(logits(make(weights=path)), first)


def test_half_precision_and_files_without_counts_are_taken(imagenet: Path, tmp_path: Path) -> None:
    state = torch.load(imagenet, weights_only=True)
    old = {name: t.half() for name, t in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = make(weights=tmp_path / "old.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = features(make(weights=imagenet))
    torch.testing.assert_close(features(model), expected, rtol=0.05, atol=0.05)


RESNET_FREEZES = {
    "none": "conv1 bn1 layer1 layer2 layer3 layer4 fc",
    "until:layer1": "layer1 layer2 layer3 layer4 fc",
    "until:layer3": "layer3 layer4 fc",
    "all": "fc",
}


@pytest.mark.parametrize("freeze", RESNET_FREEZES)
def test_what_a_resnet_trains(freeze: str) -> None:
    model = make(freeze=freeze)
    names = [name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad]
    assert " ".join(dict.fromkeys(names)) == RESNET_FREEZES[freeze]
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert {name.split(".")[1] for name in norms} == {*names} - {"conv1", "fc"}


def test_what_a_vgg_trains() -> None:
    model = make("vgg11_bn", freeze="until:features.25")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names[0] == "network.features.25.weight" and len(names) == 10
    assert model.network.classifier[5].training and not model.network.features[23].training


def test_frozen_statistics_stay_until_unfrozen() -> None:
    model = make(freeze="until:layer3", unfreeze_after=2, body_lr=0.5)
    assert (model.unfreeze_after, model.body_lr) == (2, 0.5)

    def moved() -> list[bool]:
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        model.train()(IMAGES)
        after = dict(model.named_buffers())
        names = ("network.bn1.running_mean", "network.layer3.0.bn1.running_mean")
        return [not torch.equal(before[name], after[name]) for name in names]

    assert moved() == [False, True]
    model.eval()
    model.unfreeze()
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert moved() == [True, True]


def test_seed_fixes_the_weights(imagenet: Path) -> None:
    for weights in ("none", imagenet):
        first, same, other = (make(weights=weights, seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], same[name]) for name in first)
        assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


WRONG_ARGUMENTS = {
    "model.architecture=alexnet: must be resnet18, resnet50, vgg11_bn or vgg16_bn": {
        "architecture": "alexnet"
    },
    "model.image_size=28: must be 32, 64 or 224": {"image_size": 28},
    "model.channels=mean: must be repeat or sum": {"channels": "mean"},
    "model.freeze=until:bn1: must be none, all or until:NAME with NAME of "
    "layer1, layer2, layer3, layer4": {"freeze": "until:bn1"},
    "model.freeze=layer3: must be none, all or until:NAME with NAME of "
    "layer1, layer2, layer3, layer4": {"freeze": "layer3"},
}


@pytest.mark.parametrize("line", WRONG_ARGUMENTS)
def test_a_wrong_argument_is_one_line(line: str) -> None:
    with pytest.raises(ValueError) as raised:
        make(**WRONG_ARGUMENTS[line])  # type: ignore[arg-type]
    assert str(raised.value) == line


class Executes:
    """What a pickle must not do."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def _truncated(path: Path) -> None:
    torch.save(make().state_dict(), path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _of(value: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def _changed(**tensors: Any) -> Callable[[Path], None]:
    """A resnet18's, with some of its tensors replaced, or taken away by None."""

    def write(path: Path) -> None:
        state = {**models.resnet18(weights=None).state_dict(), **tensors}
        torch.save({name: t for name, t in state.items() if t is not None}, path)

    return write


OTHER = "is not of model.architecture=resnet18: "
WRONG_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "no such file; must be none, DEFAULT or"),
    "folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is damaged, or not a file that torch.save has written"),
    "text": (lambda path: path.write_text("weights"), "is damaged"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "is damaged"),
    "truncated": (_truncated, "is damaged"),
    "code": (_of({"conv1.weight": Executes()}), "holds more than tensors"),
    "module": (_of(nn.Linear(2, 2)), "holds more than tensors"),
    "list": (_of([torch.zeros(2)]), "holds a list, not a state dict"),
    "checkpoint": (_of({"epoch": 3, "model": {}}), "is not a state dict: its 'epoch' is a int"),
    "no tensors": (_of({}), f"{OTHER}has no conv1.weight"),
    "mlp": (_of(nn.Sequential(nn.Linear(784, 10)).state_dict()), f"{OTHER}has no conv1.weight"),
    "lacking": (_changed(**{"bn1.bias": None}), f"{OTHER}has no bn1.bias"),
    "more": (_changed(extra=torch.zeros(1)), f"{OTHER}has extra, which the model lacks"),
    "shape": (
        _changed(**{"layer1.0.bn1.bias": torch.zeros(3)}),
        f"{OTHER}layer1.0.bn1.bias is [3], must be [64]",
    ),
    "four channels": (
        _changed(**{"conv1.weight": torch.zeros(64, 4, 7, 7)}),
        f"{OTHER}conv1.weight is [64, 4, 7, 7], must be [64, 3, 7, 7]",
    ),
    "head": (
        _changed(**{"fc.weight": torch.zeros(10, 99), "fc.bias": torch.zeros(10)}),
        f"{OTHER}fc.weight is [10, 99], must be [10, 512]",
    ),
    "planes": (_changed(planes=torch.zeros(3)), "its planes are [3], must be [2, channels]"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_one_line_and_executes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, told = WRONG_FILES[kind]
    write(Path("model.pt"))
    with pytest.raises(ValueError) as raised:
        make(weights="model.pt")
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"model.weights=model.pt: {told}")
    assert not Path("executed").exists()


def test_a_file_of_another_network_is_refused(imagenet: Path) -> None:
    told = "is not of model.architecture=resnet50: has no layer1.0.conv3.weight"
    with pytest.raises(ValueError, match=told):
        make("resnet50", weights=imagenet)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub looks for weights: an empty folder, not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def test_default_takes_torchvisions_file(checkpoints: Path, imagenet: Path) -> None:
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").symlink_to(imagenet)
    expected = torchvision_features(imagenet, normalised=True)
    ours = features(make(weights="DEFAULT"))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_default_that_is_damaged_names_its_file(checkpoints: Path) -> None:
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    told = f"model.weights=DEFAULT: {checkpoints}/resnet18-f37072fd.pth is damaged"
    with pytest.raises(ValueError, match=told):
        make(weights="DEFAULT")


@pytest.mark.parametrize("listens", [False, True])
def test_default_without_a_network_says_what_to_do(
    listens: bool, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    with socket.socket() as silent:  # a proxy that refuses, or takes a call and says nothing
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(ValueError) as raised:
            make("resnet50", weights="DEFAULT")
    assert time.monotonic() - begun < 5
    (line,) = str(raised.value).splitlines()
    assert line.startswith("model.weights=DEFAULT: https://download.pytorch.org/models/resnet50-")
    assert f"put resnet50-11ad3fa6.pth into {checkpoints}, or name its path" in line
    assert not list(checkpoints.iterdir()) and socket.getdefaulttimeout() is None


def test_a_run_begins_with_the_weights_of_another(fmnist_train: Command) -> None:
    small = ("data.classes=[2,9]", "data.train_size=40", "data.val_size=10", "trainer.epochs=1")
    network = ("model=resnet18", "trainer.compile=false", "data.batch_size=8")
    for more in (
        ("hydra.run.dir=first",),
        ("hydra.run.dir=second", "model.weights=first/model.pt", "model.freeze=until:layer4"),
    ):
        outcome = fmnist_train(*small, *network, *more)
        assert outcome.code == 0, outcome.err
    first, second = (
        torch.load(f"{run}/model.pt", weights_only=True) for run in ("first", "second")
    )
    changed = {n.split(".")[1] for n in first if n != "planes" and (first[n] != second[n]).any()}
    assert changed == {"layer4", "fc"}


def test_a_wrong_file_is_a_wrong_key_of_the_command(fmnist_train: Command) -> None:
    outcome = fmnist_train("model=resnet18", "model.weights=nothing.pt")
    assert outcome.code == 1
    assert outcome.err.startswith(f"model.weights={Path.cwd()}/nothing.pt: no such file; ")
    assert len(outcome.err.strip().splitlines()) == 1
