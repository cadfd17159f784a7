"""On the PYTHONPATH of the jobs that tests launch: torch is imported in less CPU time.

torchrun leaves out a module that registers how operators compute shapes without data, which torch's compiler uses;
torchrun itself runs no operator. Ranks load it, as their data loaders crash without it.

While torch and DeepSpeed are imported, there is no garbage collection, and none later looks at their objects: neither
in the middle nor at the end of the process. Of 2.0 s of CPU time for `import torch`, 0.6 s are spent on that.
"""

import gc
import sys
import types
from importlib.machinery import ModuleSpec

LARGE = ("torch", "deepspeed")


class QuickImport:
    """Finds the large modules as Python does, and imports them without garbage collection."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Return the specification of a large module, with a faster loader; None for all others."""
        if name not in LARGE:
            return None
        found = (finder.find_spec(name, None) for finder in sys.meta_path if finder is not QuickImport)
        spec = next((each for each in found if each), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            was_enabled = gc.isenabled()
            gc.disable()
            try:
                load(module)
            finally:
                gc.freeze()
                if was_enabled:
                    gc.enable()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, QuickImport)
if any(word.endswith(("torch.distributed.run", "/torchrun_agent.py")) for word in sys.orig_argv):
    sys.modules["torch._meta_registrations"] = types.ModuleType("torch._meta_registrations")
