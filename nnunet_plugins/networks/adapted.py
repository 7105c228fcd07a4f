"""Any network as nnU-Net needs it: a module that a factory makes, padded, cropped, and with its output layer found.

What nnU-Net asks of a network beyond logits stands in `rows.Backbone`. Here it is added to a module that knows nothing
of it, and what cannot be added is found on PyTorch's meta device, before any training.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.rows import locate, path_of

Factory = Callable[..., nn.Module]

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)  # that are tried, where none is given
_LARGE = 96  # voxels that are enough for five halvings


class Adapted(nn.Module):
    """A module made by a factory, with what nnU-Net needs besides.

    - Images are padded with zeros at the far end to the multiple that the module takes, and the logits cropped back.
    - Of several outputs, the one that counts comes first, the others after it by their size. Training looks at all of
      them under the recipe `trainers.scales.ScalesTrainer`, and at the first one alone under others.
    - The layers whose weights depend on the number of classes stand in `decoder.seg_layers`, under which name they are
      saved; they are still the module's own.

    Args:
        body: the module.
        heads: names of those of its modules that depend on the number of classes.
        multiple: what each axis is padded to a multiple of.
        output: which of several outputs counts, and comes first.
        deep_supervision: return all outputs that the module has.
        scales: of each output that it returns in training, size over the image's per axis.
    """

    def __init__(
        self,
        body: nn.Module,
        heads: Iterable[str],
        *,
        multiple: Sequence[int],
        output: int = 0,
        deep_supervision: bool = False,
        scales: Sequence[Sequence[float]] = (),
    ) -> None:
        super().__init__()
        self.multiple, self.output = tuple(multiple), output
        self.scales = tuple(map(tuple, scales))
        # Registered first, because parameters go by the first name under which they are found.
        self.decoder = _Outputs(map(body.get_submodule, heads), deep_supervision)
        self.body = body
        self._second_names = tuple(f"body.{name}." for name in heads)
        self.register_state_dict_post_hook(_leave_out_second_names)
        self.register_load_state_dict_pre_hook(_add_second_names)

    @classmethod
    def from_plan(
        cls,
        *,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool,
        patch_size: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        factory: str | Factory,
        multiple: int | Sequence[int] | None = None,
        output: int = 0,
        **options: Any,
    ) -> "Adapted":
        """Make the module for a plan, of which only the patch's size counts.

        Args:
            input_channels: of the images.
            num_classes: of the logits.
            deep_supervision: return a list of outputs.
            patch_size: voxels per axis; their number, 2 or 3, is the dimension.
            strides: of the plan's stages; not looked at.
            kernel_sizes: likewise.
            factory: import path of a function, or itself. It is called with the keywords `input_channels`,
                `num_classes`, `dimensions` and `patch_size`, and with the options, and returns a module.
            multiple: voxels per axis that the module takes multiples of; found by trying if it is not given.
            output: which output counts, if the module returns several.
            options: for the factory.

        Raises:
            TypeError: if the factory makes no module, or that returns something else than logits.
            ValueError: if the module does not take such patches, or does not keep the size of the image.
        """
        make, name = locate(factory), path_of(factory)
        dim = len(patch_size)

        def module(classes: int) -> nn.Module:
            made = make(
                input_channels=input_channels,
                num_classes=classes,
                dimensions=dim,
                patch_size=tuple(patch_size),
                **options,
            )
            if not isinstance(made, nn.Module):
                raise TypeError(f"{name} returned {type(made).__name__}, and has to return a torch.nn.Module")
            return made

        body = module(num_classes)
        with torch.random.fork_rng():
            heads = _class_sized(body, module(num_classes + 1), name)
        trial = _Trial(body, name, input_channels, num_classes, output)
        if multiple is None:
            multiple = trial.find_multiple(dim)
        trial.multiple = (multiple,) * dim if isinstance(multiple, int) else tuple(multiple)
        scales = trial.require(patch_size)
        return cls(
            body,
            heads,
            multiple=trial.multiple,
            output=output,
            deep_supervision=deep_supervision,
            scales=scales,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map images `(N, C, *size)` to logits `(N, num_classes, *size)`, or to a list of them and smaller ones."""
        size = x.shape[2:]
        missing = [-n % multiple for n, multiple in zip(size, self.multiple, strict=True)]
        if any(missing):
            x = functional.pad(x, [width for number in reversed(missing) for width in (0, number)])
        outputs = _in_order(self.body(x), self.output)
        if not self.decoder.deep_supervision:
            return _crop(outputs[0], size)
        shares = [[n / whole for n, whole in zip(out.shape[2:], x.shape[2:], strict=True)] for out in outputs]
        return [_crop(out, _part(size, share)) for out, share in zip(outputs, shares, strict=True)]

    def output_sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the size of each output for an image's."""
        return [_part(size, scale) for scale in self.scales]


class _Outputs(nn.Module):
    """What nnU-Net looks for in a network's decoder."""

    def __init__(self, layers: Iterable[nn.Module], deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.seg_layers = nn.ModuleList(layers)


class _Trial:
    """A module's twin on the meta device, where only sizes count and nothing is computed."""

    def __init__(self, module: nn.Module, name: str, channels: int, classes: int, output: int) -> None:
        # Made there it might not be: some modules compute numbers as they are made.
        self.module, self.name, self.output = copy.deepcopy(module).to("meta").train(), name, output
        self.channels, self.classes = channels, classes
        self.multiple: tuple[int, ...] = ()
        self.reason = ""

    def find_multiple(self, dim: int) -> int:
        """Return the smallest multiple of which the module takes any size.

        Raises:
            ValueError: if it takes none that is tried.
        """
        for multiple in _MULTIPLES:
            odd = -(-_LARGE // multiple) | 1
            if all(self._outputs([multiple * number] * dim) for number in (odd, odd + 2)):
                return multiple
        raise ValueError(
            f"{self.name}: the network takes no multiple of {', '.join(map(str, _MULTIPLES))} voxels per axis and "
            f"returns logits of the same size; the last reason: {self.reason}. If it needs another multiple, give the "
            'row the option "multiple"'
        )

    def require(self, patch_size: Sequence[int]) -> list[list[float]]:
        """Return the scales of the outputs for a patch.

        Raises:
            ValueError: if the module does not take it, with how many voxels it would.
        """
        size = list(patch_size)
        if found := self._scales(size):
            return found
        reason = self.reason
        text = f"{self.name}: a patch of {'x'.join(map(str, size))} voxels does not fit the network ({reason})"
        for others in (size, [max(n, 2 * _LARGE) for n in size]):
            for axis, there in enumerate(size):
                if enough := self._enough(others, axis, there):
                    raise ValueError(f"{text}: axis {axis} has {there} and needs at least {enough}")
        raise ValueError(text)

    def _enough(self, others: Sequence[int], axis: int, there: int) -> int | None:
        """Return the fewest voxels that will do along an axis, if it is that one that has too few."""

        def fits(number: int) -> bool:
            return bool(self._scales([*others[:axis], number, *others[axis + 1 :]]))

        if fits(there):
            return None
        low, high = there, max(2 * _LARGE, 2 * there)
        if not fits(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def _scales(self, size: Sequence[int]) -> list[list[float]] | None:
        padded = [n + -n % multiple for n, multiple in zip(size, self.multiple, strict=True)]
        outputs = self._outputs(padded)
        if outputs is None:
            return None
        return [[n / whole for n, whole in zip(out.shape[2:], padded, strict=True)] for out in outputs]

    def _outputs(self, size: Sequence[int]) -> list[torch.Tensor] | None:
        """Return the outputs for a size; None if it is not taken, for a reason that is kept."""
        with torch.no_grad():
            x = torch.empty(2, self.channels, *size, device="meta")
            try:
                result = self.module(x)
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                self.reason = (str(error).splitlines() or [type(error).__name__])[0]
                return None
        outputs = _in_order(result, self.output, self.name)
        for out in outputs:
            if out.dim() != x.dim() or out.shape[:2] != (2, self.classes):
                raise TypeError(
                    f"{self.name}: the network returned {tuple(out.shape)} for images {tuple(x.shape)}; nnU-Net needs "
                    f"logits (N, {self.classes}, *size), one channel per class"
                )
        if outputs[0].shape[2:] == x.shape[2:]:
            return outputs
        self.reason = f"it returns {list(outputs[0].shape[2:])} voxels for {list(size)}"
        return None


def _in_order(result: Any, first: int, name: str = "the factory") -> list[torch.Tensor]:
    """Return a module's outputs: the one that counts, then the others from the largest on."""
    if isinstance(result, torch.Tensor):
        return [result]
    if not isinstance(result, (list, tuple)) or not all(isinstance(out, torch.Tensor) for out in result):
        raise TypeError(
            f"{name}: the network returned {type(result).__name__}; nnU-Net needs logits, or a list of them. Let the "
            "factory wrap it in a module that returns those"
        )
    outputs = list(result)
    counts = outputs.pop(first)
    return [counts, *sorted(outputs, key=lambda out: -out[0, 0].numel())]


def _part(size: Sequence[int], scale: Sequence[float]) -> tuple[int, ...]:
    """Return a smaller size, rounded as nnU-Net rounds those of its smaller truths."""
    return tuple(round(n * part) for n, part in zip(size, scale, strict=True))


def _crop(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def _class_sized(one: nn.Module, other: nn.Module, name: str) -> list[str]:
    """Return the names of the modules that hold weights whose shapes differ between two numbers of classes."""
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    keys = one.state_dict()
    if set(keys) != set(shapes):
        raise ValueError(
            f"{name}: with another number of classes the network has other weights "
            f"({sorted(set(keys) ^ set(shapes))[0]}); nnU-Net's transfer learning needs the same names"
        )
    found = [key.rpartition(".")[0] for key, value in keys.items() if value.shape != shapes[key]]
    if not found:
        raise ValueError(f"{name}: no weight of the network depends on num_classes, its output layer has to")
    if "" in found:
        raise ValueError(f"{name}: the output layer's weights have to be in a module of their own")
    return list(dict.fromkeys(found))


def _leave_out_second_names(network: Adapted, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(tuple(prefix + name for name in network._second_names))]:
        del state[key]


def _add_second_names(network: Adapted, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for number, name in enumerate(network._second_names):
        start = f"{prefix}decoder.seg_layers.{number}."
        for key in [key for key in state if key.startswith(start)]:
            state[prefix + name + key.removeprefix(start)] = state[key]
