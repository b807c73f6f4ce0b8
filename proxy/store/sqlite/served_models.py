"""The models that each endpoint has served last, in the database file."""

from collections.abc import Sequence
from sqlite3 import Connection

from proxy.jobs.model import EndpointId
from proxy.jobs.served_model import Model

SERVED_MODELS_MIGRATION = """
    CREATE TABLE served_models (
        endpoint TEXT NOT NULL,
        position INTEGER NOT NULL,  -- in the list of the endpoint
        id       TEXT NOT NULL,
        base     INTEGER NOT NULL,
        card     BLOB,  -- a JSON object
        routes   TEXT NOT NULL,  -- paths of the engine, separated by spaces
        PRIMARY KEY (endpoint, position)
    ) STRICT, WITHOUT ROWID;
"""


def served_models(db: Connection) -> dict[EndpointId, list[Model]]:
    """Return the models by endpoint, each list in its order."""
    found: dict[EndpointId, list[Model]] = {}
    sql = "SELECT endpoint, id, card, base, routes FROM served_models ORDER BY endpoint, position"
    for endpoint, name, card, base, routes in db.execute(sql):
        model = Model(name, card, bool(base), frozenset(routes.split()))
        found.setdefault(EndpointId(endpoint), []).append(model)
    return found


def set_served_models(db: Connection, endpoint: EndpointId, models: Sequence[Model]) -> None:
    """Replace the models of an endpoint."""
    db.execute("DELETE FROM served_models WHERE endpoint = ?", (endpoint,))
    db.executemany(
        "INSERT INTO served_models VALUES (?, ?, ?, ?, ?, ?)",
        [
            (endpoint, position, model.id, model.base, model.card, " ".join(sorted(model.routes)))
            for position, model in enumerate(models)
        ],
    )
