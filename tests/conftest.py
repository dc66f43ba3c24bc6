"""What holds for every test? Properties are tried on the same examples, however slow it is."""

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")

pytest_plugins = ["kling_expand.testing"]
