"""Registry credentials: what images are pushed with, and what devices pull them with.

Rules (DECISIONS A4):
- A device's credentials may pull, the repositories of its deployment, for a limited time; they can be revoked. The
  embedded registry and Azure's make such on request; those of any other registry are passed on as they are given.
- The device's runtime chooses credentials by registry alone, so a deployment has one for each registry.
- What is somebody's own (Docker's logins) or may do everything (a registry's admin user) is taken for devices only when
  it is asked for by name, and then said to be that.

One module is one source: `embedded`, `static`, `docker_config`, `acr`. `chain` puts them in order, `forms` writes what
they make the way those who pull take it.
"""

from __future__ import annotations

from publisher.credentials.chain import (
    Source,
    credentials_for,
    device_sources,
    embedded_credentials,
    registry_credentials,
)
from publisher.credentials.docker_config import DockerConfig
from publisher.credentials.embedded import EmbeddedCredentials
from publisher.credentials.forms import credential_id
from publisher.credentials.source import (
    DAY_S,
    CredentialSource,
    NoCredentialsError,
    PullCredential,
    first_credential,
    pull_credentials,
)
from publisher.credentials.static import GivenCredentials, StaticCredentials

__all__ = [
    "DAY_S",
    "CredentialSource",
    "DockerConfig",
    "EmbeddedCredentials",
    "GivenCredentials",
    "NoCredentialsError",
    "PullCredential",
    "Source",
    "StaticCredentials",
    "credential_id",
    "credentials_for",
    "device_sources",
    "embedded_credentials",
    "first_credential",
    "pull_credentials",
    "registry_credentials",
]
