"""What happens while a program runs: the launcher beside it, the session inside each of its ranks.

Imports torch, numpy and the standard library only, so that it runs on a bare GPU image.
"""
