"""What the files of a model say about themselves, and whether they are sound.

Every check has a rule, a slug that ``InvalidModelFile`` carries: users can look it up, and tests can tell failures apart.
"""

from modelvault.inspect.listing import check_listing, top_level
from modelvault.inspect.model import ModelReport, inspect_file, inspect_model

__all__ = ["ModelReport", "check_listing", "inspect_file", "inspect_model", "top_level"]
