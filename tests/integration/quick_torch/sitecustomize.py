"""On the PYTHONPATH of the jobs that tests launch: leave out a module of torch that takes 40 % of its start.

The module registers how operators compute shapes without data, which torch's compiler uses. Agents and ranks of the
tests compile nothing. A torchrun starts in 1.2 s of CPU time with it, in 2.0 s otherwise; the tests start hundreds.
"""

import sys
import types

sys.modules["torch._meta_registrations"] = types.ModuleType("torch._meta_registrations")
