"""Mistakes that the simulator must find: each module plants one, by a small patch to the runtime, while in `planted()`."""
