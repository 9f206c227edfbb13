"""bygate: an edge gateway for a city's sensors."""

__version__ = "0.1.0"
