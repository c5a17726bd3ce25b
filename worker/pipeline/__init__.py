"""The seed system: frames, context, aggregators, function calls and the stream; pure."""
