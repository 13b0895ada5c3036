"""Small tools with which the suite drives device-mapper; every module has one subject."""
