"""ASE databases in SQLite are tables, and nothing that computes rows: a view of a few bytes could have no end."""

from __future__ import annotations

from pathlib import Path

from pimlip_zoo.errors import InputError

_BEGINS = b"SQLite format 3\x00"


def check_tables(path: Path) -> None:
    """Refuse a database in which something is computed: views, triggers, virtual tables, generated columns.

    Args:
        path: a file that is there, of any format; of all others nothing is said.

    Raises:
        InputError: naming what is no plain table.
    """
    with path.open("rb") as file:
        if file.read(len(_BEGINS)) != _BEGINS:
            return
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
            tables = [name for kind, name, _ in found if kind == "table"]
            computed = [name for kind, name, _ in found if kind not in ("table", "index")]
            computed += [name for _, name, sql in found if str(sql).upper().startswith("CREATE VIRTUAL")]
            for table in tables:
                columns = database.execute("SELECT hidden FROM pragma_table_xinfo(?)", (table,))
                if table not in computed and any(hidden for (hidden,) in columns):
                    computed.append(table)
    except sqlite3.Error as error:
        raise InputError(f"is no database that can be read: {error}", file=path) from error
    if computed:
        raise InputError(
            f"{computed[0]!r} is no plain table: what is in it would be computed, perhaps without end",
            file=path,
            hint="copy the rows into a new database with ASE",
        )
