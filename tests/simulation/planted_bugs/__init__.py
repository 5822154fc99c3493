"""Mistakes that the simulator must find: each module plants one while in `planted()`, by a small patch to the runtime."""
