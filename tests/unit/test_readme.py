"""What the README shows is what the program prints."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
# The tables that follow are shown by the command itself.
FIRST_LEFT_OUT = "Collectives, ms per traced step, mean over ranks"


def test_the_console_output_shown_is_that_of_the_sample():
    shown = (ROOT / "README.md").read_text().split("```")
    printed = (ROOT / "reports/samples/h200-2ranks/console.txt").read_text()
    beginning, heading, _ = printed.partition(FIRST_LEFT_OUT)
    assert heading
    lines = [line.rstrip() for line in beginning.rstrip().splitlines()]
    assert "\n" + "\n".join(lines) + "\n" in shown
