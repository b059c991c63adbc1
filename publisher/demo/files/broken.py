"""A scoring script with a fault that shows only where it runs: for the demo's roll-back."""

from pathlib import Path


def init():
    """Read a file that nobody shipped."""
    Path("/var/azureml-app/calibration.csv").read_text()


def run(data):
    """Never reached."""
    return data
