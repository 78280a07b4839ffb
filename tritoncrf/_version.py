"""Which release is this? Read by the build without importing torch."""

VERSION = "0.1.0"
