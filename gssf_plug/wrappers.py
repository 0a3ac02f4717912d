"""What stands around a model or its parts, and the paths of the plain model.

DDP, FSDP, DataParallel, `torch.compile` (also of parts: accelerate's `compile_regions`), checkpoint wrappers and PEFT
put a module around another and a name into every path below it.
"""

from torch import nn

__all__ = ["INSERTED", "plain_modules", "plain_path", "unwrap"]

# Names that wrappers put into the paths of what they hold: FSDP, torch.compile, checkpoint_wrapper.
INSERTED = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def unwrap(model: nn.Module) -> nn.Module:
    """The plain model inside DDP, FSDP, DataParallel, `torch.compile` and PEFT, nested in any order."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        elif _is_parallel(model):
            model = next(model.children())
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def plain_path(path: str) -> str:
    """The path, of a module or a parameter, without the names that wrappers put in."""
    return ".".join(part for part in path.split(".") if part not in INSERTED)


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the plain model by its path there; of a wrapper and what it wraps, the wrapper."""
    found: dict[str, nn.Module] = {}
    for name, module in unwrap(model).named_modules(remove_duplicate=False):
        # outer modules come first, so a wrapper is found before what it wraps
        found.setdefault(plain_path(name), module)
    return found


def _is_parallel(model: nn.Module) -> bool:
    """A wrapper of torch that holds one model and nothing else: DDP, DataParallel, FSDP, checkpoint_wrapper."""
    children = [name for name, _ in model.named_children()]
    return type(model).__module__.startswith("torch.") and children in (["module"], *([name] for name in INSERTED))
