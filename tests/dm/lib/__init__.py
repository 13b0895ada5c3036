"""Tools with which the suite drives device-mapper; each module has one subject."""
