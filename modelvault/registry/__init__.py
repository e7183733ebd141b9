"""The registry: the SQLite database that indexes the vault. The only package that imports SQLAlchemy and Alembic.

It holds nothing that the layout and the event log do not: ``Registry.rebuild`` makes it anew from both.
"""

from modelvault.registry.connection import RegistryDamaged, RegistryUnreadable
from modelvault.registry.database import Registry
from modelvault.registry.replay import EventNotUnderstood, History, LoggedEvent
from modelvault.registry.rows import (
    AcceptanceRow,
    BundleRow,
    CheckRow,
    Delivered,
    Direction,
    InstallRow,
    MetadataRow,
    ModelRow,
    PublishedRow,
    SmokeRow,
)

__all__ = [
    "AcceptanceRow",
    "BundleRow",
    "CheckRow",
    "Delivered",
    "Direction",
    "EventNotUnderstood",
    "History",
    "InstallRow",
    "LoggedEvent",
    "MetadataRow",
    "ModelRow",
    "PublishedRow",
    "Registry",
    "RegistryDamaged",
    "RegistryUnreadable",
    "SmokeRow",
]
