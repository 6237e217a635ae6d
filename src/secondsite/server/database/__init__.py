"""The server's database: one set of tables, on SQLite or PostgreSQL.

An area of the server adds `tables_<area>.py` (typed tables on `metadata.METADATA`) and one revision of the
schema in `migrations/versions/NNNN_<area>.py` on the newest one there is; `tests/unit/server/database` holds
both to each other, on both databases. Code is given a `Database` and opens short transactions on it:

    with database.read() as connection:   # one consistent picture
        row = connection.execute(select(jobs).where(jobs.c.id == job)).one_or_none()
    with database.write() as connection:  # the only writer: what it reads stays true until it ends
        connection.execute(insert(audit).values(...))
"""
