"""The seed system: frames, context, aggregators, function calls and the stream.

Pure: no clock, no randomness, no input or output; what needs one of them is handed in.
"""
