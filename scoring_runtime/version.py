"""The runtime's own version; it is copied into images without the distribution's metadata."""

VERSION = "0.1.0"
