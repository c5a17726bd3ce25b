"""`python -m ops.simulator`: runs the simulator until it is stopped."""

from ops.simulator.cli import sim

if __name__ == "__main__":
    sim()
