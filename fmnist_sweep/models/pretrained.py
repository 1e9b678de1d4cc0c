"""torchvision's networks for transfer learning."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model

from fmnist_sweep.models import weights as files
from fmnist_sweep.models.cnn import check_image

ARCHITECTURES = ("resnet18", "resnet50", "vgg11_bn", "vgg16_bn")
IMAGE_SIZES = (32, 64, 224)

# A network's P input planes are affine functions of the image in [-1, 1]: their factors [P] and
# their offsets [P].
_IDENTITY = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
_IMAGENET = torch.stack([0.5 / _STD, (0.5 - _MEAN) / _STD])


class Pretrained(nn.Module):
    """A network of torchvision for other classes, initialized randomly or from a file.

    Only the last layer, the head, differs from torchvision's network. VGG keeps its two layers of
    4096 units, so that their weights can be loaded; VGG's adaptive pooling makes them work at any
    image size.

    Args:
        architecture: resnet18, resnet50 (He et al., 2016), vgg11_bn or vgg16_bn (Simonyan &
            Zisserman, 2015, with batch norm).
        image_size: side to which images are enlarged bilinearly: 32, 64 or 224. The networks halve
            it five times.
        weights: `none` for torchvision's random initialization; `DEFAULT` for torchvision's best
            ImageNet weights, downloaded once; or the path of a state dict, of a run (its model.pt)
            or of torchvision. A head of as many classes is kept; any other head is replaced by a
            new `nn.Linear`.
        channels: how a grey image is fed to kernels for three channels. `repeat` repeats the
            image. `sum` sums the first kernels over their input channels, which gives the same
            function. A file saved with either setting works with both; a one-channel kernel is
            split into three thirds.
        freeze: `none`; `all`, everything but the head; or `until:NAME`, everything that `forward`
            runs before the layer NAME. NAME is a stage of a ResNet (until:layer3 freezes conv1,
            bn1, layer1 and layer2) or, in torchvision's naming, a convolution or linear layer of a
            VGG (until:features.11).
        unfreeze_after: number of epochs after which the whole network trains; None keeps frozen
            layers frozen.
        body_lr: factor in (0, 1] on the learning rate of everything but the head.
        inputs: the shape of an image, (1 or 3 channels, height, width).
        classes: number of classes.

    The weights determine how the input is normalised: with ImageNet's mean and standard deviation
    for `DEFAULT` and for torchvision files with three channels; to [-1, 1] for `none` and for
    one-channel files in torchvision's format; as in the run for a run's file, which stores it in
    the buffer `planes`. ImageNet's means differ between channels, so that zero padding stands for a
    different grey in each channel. `sum` then needs a second, constant plane to be the same
    function.

    Frozen layers have no gradients and stay in evaluation mode: batch norm does not update its
    statistics and dropout is off.

    Raises:
        ValueError: one line with the key, its value and the allowed values.
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
        *,
        inputs: Sequence[int],
        classes: int,
    ) -> None:
        super().__init__()
        check_image(inputs)
        if inputs[0] == 3 and channels == "sum":
            raise ValueError("model.channels=sum: is for grey images; use repeat")
        _check("architecture", architecture, ARCHITECTURES)
        _check("image_size", image_size, IMAGE_SIZES)
        _check("channels", channels, ("repeat", "sum"))
        self.image_size = image_size
        self.unfreeze_after = unfreeze_after
        self.body_lr = body_lr
        if weights == "none":
            self.network, planes = get_model(architecture, num_classes=classes), _IDENTITY
        else:
            try:
                self.network, planes = _load_network(architecture, weights, classes)
            except ValueError as error:
                raise ValueError(f"model.weights={weights}: {error}") from None
        self.register_buffer("planes", _input_planes(channels, planes))
        _adapt_first_kernel(self.network, planes, self.planes)
        self._layers = _layer_names(self.network)
        self._frozen = _count_frozen(self.network, self._layers, freeze)
        for name in self._layers[: self._frozen]:
            self.network.get_submodule(name).requires_grad_(False)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 images [batch, *inputs] in [-1, 1] to logits [batch, classes]."""
        size = (self.image_size, self.image_size)
        enlarged = nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
        factors, offsets = self.planes[..., None, None]
        logits: torch.Tensor = self.network(enlarged * factors + offsets)
        return logits

    def train(self, mode: bool = True) -> "Pretrained":
        """Set the training mode, except that frozen layers stay in evaluation mode."""
        super().train(mode)
        for name in self._layers[: self._frozen]:
            self.network.get_submodule(name).eval()
        return self

    def unfreeze(self) -> None:
        """Make the whole network trainable."""
        self._frozen = 0
        self.network.requires_grad_(True)
        self.train(self.training)

    def head_parameters(self) -> set[str]:
        """Return the names of the last layer's weight and bias among `named_parameters()`."""
        head = self._layers[-1]
        return {f"network.{head}.weight", f"network.{head}.bias"}


def _check(key: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        *others, last = map(str, allowed)
        raise ValueError(f"model.{key}={value}: must be {', '.join(others)} or {last}")


def _layer_names(network: nn.Module) -> list[str]:
    """Return the names of a network's layers in the order of `forward`; the head is the last."""
    names = []
    for name, child in network.named_children():
        is_sequence = name in ("features", "classifier")  # of a VGG
        names += (
            [f"{name}.{index}" for index, _ in child.named_children()] if is_sequence else [name]
        )
    return names


def _count_frozen(network: nn.Module, layers: list[str], freeze: str) -> int:
    if freeze in ("none", "all"):
        return 0 if freeze == "none" else len(layers) - 1
    # Neither the first layer, which has no layer before it, nor the head. A norm layer is no valid
    # NAME: it belongs to the layer before it.
    types = nn.Conv2d | nn.Linear | nn.Sequential
    names = [name for name in layers[1:-1] if isinstance(network.get_submodule(name), types)]
    start, _, name = str(freeze).partition(":")
    if start != "until" or name not in names:
        raise ValueError(
            f"model.freeze={freeze}: must be none, all or until:NAME with NAME of "
            f"{', '.join(names)}"
        )
    return layers.index(name)


def _load_network(architecture: str, weights: str, classes: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with the weights of a file, and the input planes that they expect.

    Raises:
        ValueError: the file cannot be used; the message says why.
    """
    if not weights:
        raise ValueError("must be none, DEFAULT or the path of a state dict")
    is_default = weights == "DEFAULT"
    path = files.default(architecture) if is_default else Path(weights).expanduser()
    try:
        state = files.read(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}" if is_default else str(error)) from None
    planes = _pop_planes(state)
    state = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    with torch.device("meta"):  # no random initialization, which the file would replace
        network = get_model(architecture, num_classes=classes)
        name, first = _first_convolution(network)
        if planes is None:
            kernel = state.get(f"{name}.weight", first.weight)
            planes = _IDENTITY[:, :1] if kernel.shape[1:2] == (1,) else _IMAGENET
        _set_kernel(first, torch.empty(64, planes.shape[1], *first.kernel_size))
    head = _layer_names(network)[-1]
    if f"{head}.weight" not in state or state[f"{head}.weight"].shape[:1] != (classes,):
        linear = nn.Linear(network.get_submodule(head).in_features, classes)
        network.set_submodule(head, linear)
        state |= {f"{head}.{name}": value for name, value in linear.state_dict().items()}
    _assign_weights(network, state, architecture)
    return network, planes


def _pop_planes(state: files.State) -> torch.Tensor | None:
    """Remove and return the planes in a run's state dict; None for a file of torchvision's."""
    planes = state.pop("planes", None)
    if planes is not None and (planes.dim() != 2 or len(planes) != 2):
        raise ValueError(f"its planes are {list(planes.shape)}, must be [2, channels]")
    return None if planes is None else planes.float()


def _assign_weights(network: nn.Module, state: files.State, architecture: str) -> None:
    """Assign copies of the weights to a network on the device `meta`."""
    expected = network.state_dict()
    for name in expected:
        if name.endswith("num_batches_tracked"):  # missing in torchvision's older files
            state.setdefault(name, torch.tensor(0))
    mismatch = next((f"has no {name}" for name in expected if name not in state), "") or next(
        (f"has {name}, which the model lacks" for name in state if name not in expected), ""
    )
    if mismatch:
        raise ValueError(f"is not of model.architecture={architecture}: {mismatch}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            shapes = f"{list(state[name].shape)}, must be {list(tensor.shape)}"
            raise ValueError(f"is not of model.architecture={architecture}: {name} is {shapes}")
    copies = {
        name: state[name].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in expected.items()
    }
    network.load_state_dict(copies, assign=True)


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the name of the first convolution, and the convolution."""
    modules = network.named_modules()
    return next((name, module) for name, module in modules if isinstance(module, nn.Conv2d))


def _set_kernel(first: nn.Conv2d, kernel: torch.Tensor) -> None:
    first.in_channels = kernel.shape[1]
    first.weight = nn.Parameter(kernel)


def _input_planes(channels: str, planes: torch.Tensor) -> torch.Tensor:
    """Return the network's input planes for `channels` and the planes that its weights expect."""
    same = bool((planes == planes[:, :1]).all())
    if channels == "sum":
        # Different planes become the image and a constant.
        return planes[:, :1].clone() if same else torch.eye(2)
    return planes[:, :1].repeat(1, 3) if same else _IMAGENET.clone()


def _adapt_first_kernel(network: nn.Module, planes: torch.Tensor, wanted: torch.Tensor) -> None:
    """Replace the first convolution's kernel for planes [2, P] by one for planes [2, Q].

    The kernels w on planes p and w' on planes p' are the same function of the image if p' w' = p w,
    where a plane is its factor and its offset. w' is the least squares solution: if all planes are
    the same, the sum of w over its channels or thirds of it.
    """
    if planes.shape == wanted.shape and torch.equal(planes, wanted):
        return
    mix = torch.linalg.pinv(wanted.double()) @ planes.double()
    _, first = _first_convolution(network)
    kernel = torch.einsum("qp,opkl->oqkl", mix, first.weight.detach().double())
    _set_kernel(first, kernel.float())
