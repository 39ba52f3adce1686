"""How a connection to NATS is made: the graph's settings and the environment's secrets, in nats-py's words."""

import os
import ssl
from typing import Any

from components.graph.schema import Nats


def connection_options(settings: Nats) -> dict[str, Any]:
    """Return nats-py's connection options for `settings` and the secrets in the environment."""
    options: dict[str, Any] = {}
    if token := os.environ.get("PENSTOCK_NATS_TOKEN"):
        options["token"] = token
    if user := os.environ.get("PENSTOCK_NATS_USER"):
        options["user"] = user
        options["password"] = os.environ.get("PENSTOCK_NATS_PASSWORD", "")
    if settings.credentials_file:
        options["user_credentials"] = settings.credentials_file
    if settings.nkey_seed_file:
        options["nkeys_seed"] = settings.nkey_seed_file
    if settings.tls_ca_file or settings.url.startswith("tls://"):
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        if settings.tls_cert_file:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
        options["tls"] = context
    return options
