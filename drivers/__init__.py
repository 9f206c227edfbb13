"""One module for each sensor family; the module's name is the driver's name."""
