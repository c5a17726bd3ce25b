"""Found by the workers of some drills: applies what their environment asks for."""  # noqa: INP001  no package

from turnline.ops.chaos import clocks, sabotage, stalling

clocks.apply_from_environment()
sabotage.apply_from_environment()
stalling.apply_from_environment()
