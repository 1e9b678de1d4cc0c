"""torchvision's networks for transfer learning."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model

from fmnist_sweep.models import weights as files

ARCHITECTURES = ("resnet18", "resnet50", "vgg11_bn", "vgg16_bn")
IMAGE_SIZES = (32, 64, 224)

# What the planes of a network's input are of the image in [-1, 1]: factors [P], then offsets [P].
_AS_THEY_ARE = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
_IMAGENET = torch.stack([0.5 / _STD, (0.5 - _MEAN) / _STD])


class Pretrained(nn.Module):
    """A network of torchvision with ten classes, its weights drawn or taken from a file.

    Only the last layer, the head, is not torchvision's. VGG keeps its two layers of 4096 units,
    which its adaptive pooling serves at any image size, so that their weights can be had too.

    Args:
        architecture: resnet18, resnet50 (He et al., 2016), vgg11_bn or vgg16_bn (Simonyan &
            Zisserman, 2015, with batch norm).
        image_size: 32, 64 or 224, the side to which images are enlarged (bilinear). These networks
            halve it five times.
        weights: `none`, drawn as torchvision does; `DEFAULT`, torchvision's best for ImageNet,
            downloaded once; or the path of a state dict, of a run (its model.pt) or of torchvision.
            A head of ten classes is taken over, any other is replaced by a fresh `nn.Linear`.
        channels: how the one grey channel meets kernels for three. `repeat`: the image is repeated.
            `sum`: the first kernels are summed over their input channels, which gives the same
            function. A file of either kind serves both; a one-channel kernel is spread as thirds.
        freeze: `none`; `all`, everything but the head; or `until:NAME`, everything that `forward`
            runs before the layer NAME, which itself trains with all that follows. NAME is a stage
            of a ResNet (until:layer3 freezes conv1, bn1, layer1 and layer2) or, by torchvision's
            names, a convolution or linear layer of a VGG (until:features.11).
        unfreeze_after: epochs after which everything trains, or None: what is frozen stays so.
        body_lr: factor in (0, 1] on the learning rate of everything but the head.

    What the network sees follows its weights: ImageNet's mean and standard deviation for `DEFAULT`
    and for torchvision's files with three channels; [-1, 1] for `none` and for one-channel files of
    torchvision's kind; what the run had for a run's file, which says so in its buffer `planes`.
    ImageNet's means differ from channel to channel, and padding by zeros is another grey in each:
    `sum` then has a second, constant plane, without which it would not be the same function.

    Frozen layers have no gradients and stay in evaluation mode: batch norm keeps its statistics,
    dropout drops nothing.

    Raises:
        ValueError: one line with the key, its value and what is allowed.
    """

    planes: torch.Tensor

    def __init__(
        self,
        architecture: str,
        image_size: int,
        weights: str,
        channels: str,
        freeze: str,
        unfreeze_after: int | None,
        body_lr: float,
    ) -> None:
        super().__init__()
        _check("architecture", architecture, ARCHITECTURES)
        _check("image_size", image_size, IMAGE_SIZES)
        _check("channels", channels, ("repeat", "sum"))
        self.image_size = image_size
        self.unfreeze_after = unfreeze_after
        self.body_lr = body_lr
        if weights == "none":
            self.network, planes = get_model(architecture, num_classes=10), _AS_THEY_ARE
        else:
            try:
                self.network, planes = _loaded(architecture, weights)
            except ValueError as error:
                raise ValueError(f"model.weights={weights}: {error}") from None
        self.register_buffer("planes", _planes(channels, planes))
        _refit(self.network, planes, self.planes)
        self._layers = _layers(self.network)
        self._frozen = _count(self.network, self._layers, freeze)
        for name in self._layers[: self._frozen]:
            self.network.get_submodule(name).requires_grad_(False)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 images [batch, 1, 28, 28] in [-1, 1] to logits [batch, 10]."""
        size = (self.image_size, self.image_size)
        large = nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
        factors, offsets = self.planes[..., None, None]
        logits: torch.Tensor = self.network(large * factors + offsets)
        return logits

    def train(self, mode: bool = True) -> "Pretrained":
        """As of any module, but frozen layers stay in evaluation mode."""
        super().train(mode)
        for name in self._layers[: self._frozen]:
            self.network.get_submodule(name).eval()
        return self

    def unfreeze(self) -> None:
        """From now on everything trains."""
        self._frozen = 0
        self.network.requires_grad_(True)
        self.train(self.training)

    def head_parameters(self) -> set[str]:
        """The names, among `named_parameters()`, of the last layer's weight and bias."""
        head = self._layers[-1]
        return {f"network.{head}.weight", f"network.{head}.bias"}


def _check(key: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        *others, last = map(str, allowed)
        raise ValueError(f"model.{key}={value}: must be {', '.join(others)} or {last}")


def _layers(network: nn.Module) -> list[str]:
    """The parts of a network in the order that `forward` runs them, the head last."""
    names = []
    for name, child in network.named_children():
        in_parts = name in ("features", "classifier")  # of a VGG
        names += [f"{name}.{at}" for at, _ in child.named_children()] if in_parts else [name]
    return names


def _count(network: nn.Module, layers: list[str], freeze: str) -> int:
    """How many of the layers are frozen."""
    if freeze in ("none", "all"):
        return 0 if freeze == "none" else len(layers) - 1
    # Not the first, before which there is nothing, nor the head; norms go with what they follow.
    kinds = nn.Conv2d | nn.Linear | nn.Sequential
    names = [name for name in layers[1:-1] if isinstance(network.get_submodule(name), kinds)]
    start, _, name = str(freeze).partition(":")
    if start != "until" or name not in names:
        raise ValueError(
            f"model.freeze={freeze}: must be none, all or until:NAME with NAME of "
            f"{', '.join(names)}"
        )
    return layers.index(name)


def _loaded(architecture: str, weights: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with the weights of a file, and the planes that they expect.

    Raises:
        ValueError: what is wrong with the file.
    """
    if not weights:
        raise ValueError("must be none, DEFAULT or the path of a state dict")
    own = weights == "DEFAULT"
    path = files.default(architecture) if own else Path(weights).expanduser()
    try:
        state = files.read(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}" if own else str(error)) from None
    planes = _told(state)
    state = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    with torch.device("meta"):  # nothing is drawn that the file replaces
        network = get_model(architecture, num_classes=10)
        name, first = _first(network)
        if planes is None:
            kernel = state.get(f"{name}.weight", first.weight)
            planes = _AS_THEY_ARE[:, :1] if kernel.shape[1:2] == (1,) else _IMAGENET
        _set_kernel(first, torch.empty(64, planes.shape[1], *first.kernel_size))
    head = _layers(network)[-1]
    if f"{head}.weight" not in state or state[f"{head}.weight"].shape[:1] != (10,):
        linear = nn.Linear(network.get_submodule(head).in_features, 10)
        network.set_submodule(head, linear)
        state |= {f"{head}.{name}": value for name, value in linear.state_dict().items()}
    _load(network, state, architecture)
    return network, planes


def _told(state: files.State) -> torch.Tensor | None:
    """Takes out what a run's file says of its planes; None of torchvision's."""
    planes = state.pop("planes", None)
    if planes is not None and (planes.dim() != 2 or len(planes) != 2):
        raise ValueError(f"its planes are {list(planes.shape)}, must be [2, channels]")
    return None if planes is None else planes.float()


def _load(network: nn.Module, state: files.State, architecture: str) -> None:
    """Copies weights into a network whose own are on the device `meta`."""
    own = network.state_dict()
    for name in own:
        if name.endswith("num_batches_tracked"):  # older files of torchvision's have none
            state.setdefault(name, torch.tensor(0))
    wrong = next((f"has no {name}" for name in own if name not in state), "") or next(
        (f"has {name}, which it has not" for name in state if name not in own), ""
    )
    if wrong:
        raise ValueError(f"is not of model.architecture={architecture}: {wrong}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            shapes = f"{list(state[name].shape)}, must be {list(tensor.shape)}"
            raise ValueError(f"is not of model.architecture={architecture}: {name} is {shapes}")
    copies = {
        name: state[name].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in own.items()
    }
    network.load_state_dict(copies, assign=True)


def _first(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution and its name."""
    modules = network.named_modules()
    return next((name, module) for name, module in modules if isinstance(module, nn.Conv2d))


def _set_kernel(first: nn.Conv2d, kernel: torch.Tensor) -> None:
    first.in_channels = kernel.shape[1]
    first.weight = nn.Parameter(kernel)


def _planes(channels: str, planes: torch.Tensor) -> torch.Tensor:
    """What `channels` makes of the planes that weights expect."""
    alike = bool((planes == planes[:, :1]).all())
    if channels == "sum":
        # The image and, where the planes differ, a constant.
        return planes[:, :1].clone() if alike else torch.eye(2)
    return planes[:, :1].repeat(1, 3) if alike else _IMAGENET.clone()


def _refit(network: nn.Module, planes: torch.Tensor, wanted: torch.Tensor) -> None:
    """Gives the first convolution kernels [out, Q, k, k] for other planes, by least squares.

    Kernels w on planes p are the same function of the image as w' on p' if p' w' = p w, where a
    plane is its factor and its offset. Where all planes are alike this sums w, or takes thirds.
    """
    if planes.shape == wanted.shape and torch.equal(planes, wanted):
        return
    mix = torch.linalg.pinv(wanted.double()) @ planes.double()
    _, first = _first(network)
    kernel = torch.einsum("qp,opkl->oqkl", mix, first.weight.detach().double())
    _set_kernel(first, kernel.float())
