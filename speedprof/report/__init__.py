"""Reports: each shows a `Report` in its own form and measures nothing."""
