"""Kept captures in traces/samples and the reports that must come out of them, in reports/samples."""
