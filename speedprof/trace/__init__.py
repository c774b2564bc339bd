"""The columnar trace: what ran where and when, and who launched it."""
