"""The training program that speedprof captures: the published speedrun's architecture, at any size."""
