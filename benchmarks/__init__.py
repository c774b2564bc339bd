"""Side-by-side measurements; docs/log.md records what they gave."""
