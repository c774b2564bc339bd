"""One question per module: each takes a trace or a step log and gives a frozen result. Nothing here draws."""
