"""What holds for all tests."""

from hypothesis import settings

# A machine that is busy is no fault of an example: nothing here is timed
settings.register_profile("bygate", deadline=None)
settings.load_profile("bygate")
