"""The one list of tables, and the columns that all areas share.

Conventions: an id or a name is text; a moment is UTC ISO text with microseconds (`values.moment`), so that it
sorts as text on both databases; a structure is JSON text (`values.to_json`); a flag is an integer 0 or 1.
"""

from __future__ import annotations

from sqlalchemy import MetaData

# Constraints have names that do not depend on the database, so that a migration can name them.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
METADATA = MetaData(naming_convention=NAMING)
