"""What other nodes and packs have put on a MODEL, and what becomes of it in training.

- Weight patches and weight wrappers, and forwards that an injection puts around Linears (a Bypass LoRA), change what
  the network computes: they are trained on as they sample, and are part of the fingerprint.
- Object patches of the network, wrappers and `transformer_options` act on sampling (NAG, TeaCache, torch.compile, sage
  attention): training goes without them and says so. What the network computes in training is then the plain model's.
- Any other function in the place of one of the network's own is refused by its name.
"""

from __future__ import annotations

import functools
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType

import comfy.model_management
import comfy.utils
import torch

from ...trainer.base.errors import UserError
from . import frozen

NETWORK = "diffusion_model"
"""Name of the network within ComfyUI's model."""

_OF_THE_HOUSE = {"comfy", "comfy_api", "comfy_extras", "comfy_kitchen", "torch", "einops", "transformers"}
"""Packages whose functions may stand in ComfyUI's classes; transformers adds one to torch's when a pack makes one of
its models."""


@contextmanager
def bare(patcher) -> Iterator[None]:
    """Inside the context the network is as its file made it, whatever clone of the MODEL is loaded.

    The object patches and injections of that clone are taken out meanwhile; weights stay as they are.
    """
    with ExitStack() as stack:
        for loaded in comfy.model_management.current_loaded_models:
            if loaded.model is not None and loaded.model.is_clone(patcher):
                stack.enter_context(loaded.model.use_ejected())
        originals = dict(getattr(patcher, "object_patches_backup", {}))
        put_in = {name: comfy.utils.set_attr(patcher.model, name, own) for name, own in originals.items()}
        try:
            yield
        finally:
            for name, patch in put_in.items():
                comfy.utils.set_attr(patcher.model, name, patch)


def strip(patcher) -> str | None:
    """Take from a clone of a MODEL what acts on sampling alone; gives a sentence for the user where there is some."""
    in_network = _object_patches(patcher)
    left_out = [*in_network, *_wrappers(patcher), *_options(patcher.model_options)]
    if in_network:
        # weights inside a module that an object patch replaces were not patched with it: have ComfyUI do that again
        patcher.patches_uuid = uuid.uuid4()
    patcher.object_patches = {name: patch for name, patch in patcher.object_patches.items()
                              if not _is_in_network(name)}
    patcher.model_options = {"transformer_options": {}}
    return f"Trained without what this MODEL carries for sampling: {', '.join(left_out)}." if left_out else None


def check_forwards(network: torch.nn.Module, displaced: Mapping[torch.nn.Module, Callable | None]) -> None:
    """Raises UserError where a function of another pack computes what only ComfyUI's own can be trained through.

    Linears may have one: its gradient is tested.

    Args:
        displaced: the forward in whose place a stand-in of ours is now, of each module that has one.
    """
    for name, module in network.named_modules():
        theirs = displaced[module] if module in displaced else frozen.foreign_forward(module)
        if frozen.is_linear(module):
            theirs = None
        if theirs is None and (module._forward_hooks or module._forward_pre_hooks):
            theirs = next(iter((module._forward_hooks or module._forward_pre_hooks).values()))
        if theirs is not None:
            raise UserError(f"{name or 'The network'} ({type(module).__name__}) of this model is computed by "
                            f"{origin(theirs)}, which cannot be trained through; connect the model from before the "
                            "node that put it there, or start ComfyUI without that pack.")
    for kind in {type(module) for module in network.modules()}:
        for base in kind.__mro__[:-1]:
            for name, function in vars(base).items():
                if isinstance(function, FunctionType) and _is_foreign(function, base):
                    raise UserError(f"{base.__name__}.{name} is {origin(function)} here, which cannot be trained "
                                    "through; start ComfyUI without that pack.")


def origin(function: object) -> str:
    """Where a function comes from, such as "nag_forward of kjnodes.nodes"."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__qualname__.removesuffix('.<locals>')} of {named.__module__}"


def _is_in_network(name: str) -> bool:
    return name == NETWORK or name.startswith(f"{NETWORK}.")


def _object_patches(patcher) -> list[str]:
    """One phrase for all patches of a network that come from the same place."""
    names: dict[str, list[str]] = {}
    for name, patch in patcher.object_patches.items():
        if _is_in_network(name):
            names.setdefault(origin(patch), []).append(name.removeprefix(f"{NETWORK}."))
    return [f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''} ({place})"
            for place, found in names.items()]


def _wrappers(patcher) -> list[str]:
    """The names under which wrappers were put on a MODEL, such as "torch.compile"."""
    keys = Counter()
    for by_key in patcher.wrappers.values():
        for key, wrappers in by_key.items():
            keys.update(key or origin(wrapper) for wrapper in wrappers)
    return list(keys)


def _options(model_options: Mapping) -> list[str]:
    """What is set in a MODEL's options, and where it comes from."""
    wrapper = model_options.get("model_function_wrapper")
    found = [f"model_function_wrapper ({origin(wrapper)})"] if wrapper is not None else []
    for name, option in model_options.get("transformer_options", {}).items():
        if not (isinstance(option, (Mapping, list, tuple)) and not option):
            places = {origin(function): None for function in _functions(option)}
            found.append(f"{name} ({', '.join(places)})" if places else name)
    return found


def _functions(option: object) -> Iterator[object]:
    if isinstance(option, Mapping):
        option = list(option.values())
    if isinstance(option, (list, tuple)):
        for each in option:
            yield from _functions(each)
    elif callable(option):
        yield option


def _is_foreign(function: FunctionType, owner: type) -> bool:
    package = function.__module__.partition(".")[0] if function.__module__ else ""
    return package not in _OF_THE_HOUSE and package != owner.__module__.partition(".")[0]
