"""A suite that certifies transports and stores: `pytest --thalweg-transport=myscheme://…`. See docs/conformance.md."""

from .properties import Unavailable
from .rig import InProcessRig, Rig, rig_for, with_option
from .suite import Target, transport

__all__ = ["InProcessRig", "Rig", "Target", "Unavailable", "rig_for", "transport", "with_option"]
