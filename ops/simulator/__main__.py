"""`python -m turnline.ops.simulator`: runs the simulator until it is stopped."""

from turnline.ops.simulator.command import sim

if __name__ == "__main__":
    sim()
