"""Devices and processes: the only code that knows of them."""
