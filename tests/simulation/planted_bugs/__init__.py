"""Mistakes that the simulator must find: each module plants one, by a small patch, while in `planted()`.

RULE: which of the journal's rules it breaks (docs/simulation.md), or "ownership".
"""
