"""A suite that certifies transports and stores: `pytest --thalweg-transport=myscheme://…`. See docs/conformance.md."""

from .properties import Unavailable
from .rig import InProcessRig, Rig, rig_for, with_option
from .stores.rig import StoreRig
from .suite import Target, store, transport

__all__ = ["InProcessRig", "Rig", "StoreRig", "Target", "Unavailable", "rig_for", "store", "transport", "with_option"]
