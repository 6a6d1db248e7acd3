"""`fold_batch_norms`: batch norms that use running statistics become part of the convolutions before them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from hf_segkd.networks.feature_paths import maps_of


def fold_batch_norms(network: nn.Module, images: Tensor) -> int:
    """Fold each batch norm, in place, into the convolution whose output it alone reads.

    Which ones these are is seen in one run: a convolution whose output is also a feature, or is read by anything else,
    keeps its batch norm. So logits and features stay what they were, up to rounding.

    Args:
        network: A network that names its features, in evaluation mode.
        images: Some images for that run, (b, c, h, w).

    Returns:
        How many batch norms were folded.
    """
    pairs = _pairs(network, images)
    for convolution, norm in pairs:
        folded = fuse_conv_bn_eval(network.get_submodule(convolution), network.get_submodule(norm))
        network.set_submodule(convolution, folded.requires_grad_(False))
        network.set_submodule(norm, nn.Identity())
    return len(pairs)


@torch.no_grad()
def _pairs(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Paths of the convolutions that can be folded, each with that of its batch norm."""
    registered = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    alone = {path: module for path, module in network.named_modules() if registered[module] == 1}
    watch = _Watch()
    hooks = []
    for path, module in alone.items():
        if type(module) is nn.Conv2d:  # a subclass may make its weights in each forward
            hooks.append(module.register_forward_hook(watch.after_convolution(path)))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training:
            hooks.append(module.register_forward_pre_hook(watch.before_norm(path)))
    try:
        with watch:
            output = network(pixel_values=images, output_features=True)
    finally:
        for hook in hooks:
            hook.remove()
    shown = {watch.made_by.get(found) for found in maps_of([output.logits, *output.features.values()])}
    return [
        (convolution, norm)
        for convolution, norm in watch.pairs
        if watch.runs[convolution] == watch.runs[norm] == watch.readers[convolution] == 1 and convolution not in shown
    ]


class _Watch(TorchFunctionMode):
    """Sees which functions read the outputs of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by = WeakTensorKeyDictionary()  # output of a convolution -> its path
        self.readers: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.pairs: list[tuple[str, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _holds_tensors(result):  # not the question for a shape
            for found in maps_of([args, kwargs or {}]):
                if (path := self.made_by.get(found)) is not None:
                    self.readers[path] += 1
        return result

    def after_convolution(self, path: str) -> Any:
        """A forward hook for the convolution at this path."""

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.runs[path] += 1
            self.made_by[output] = path

        return hook

    def before_norm(self, path: str) -> Any:
        """A hook before the forward of the batch norm at this path."""

        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            self.runs[path] += 1
            if (convolution := self.made_by.get(args[0])) is not None:
                self.pairs.append((convolution, path))

        return hook


def _holds_tensors(result: Any) -> bool:
    return isinstance(result, Tensor) or (isinstance(result, list | tuple) and any(map(_holds_tensors, result)))
