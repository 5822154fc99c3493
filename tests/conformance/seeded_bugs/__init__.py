"""Drivers and stores with one realistic bug each. Whoever writes a suite must show that it catches them."""
