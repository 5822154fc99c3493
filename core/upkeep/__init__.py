"""What is done to an app's state while no worker runs: reset, backup, restore."""
