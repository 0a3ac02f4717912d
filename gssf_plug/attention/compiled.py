"""torch.compile beside hooks: compiled code must notice that a metric came or went."""

import torch
import torch._dynamo.config as dynamo

__all__ = ["notice_hooks"]


def notice_hooks() -> None:
    """Let compiled code look at the hooks of modules again; the first time, forget what was compiled before.

    By default torch.compile takes the hooks of a module for fixed and runs "whichever version you first compiled" (its
    own words, `skip_nnmodule_hook_guards`), also for another model of the same class: a metric that came later would
    do nothing, and one that was merged would be forgotten on the way back.
    """
    if dynamo.skip_nnmodule_hook_guards:
        dynamo.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
