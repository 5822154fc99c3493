"""Mistakes that the simulator must find: each module plants one, by a small patch, while in `planted()`."""
