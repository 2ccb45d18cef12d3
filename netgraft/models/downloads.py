"""Whether pretrained weights can be had: what is not on this machine needs a network, and is refused without one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache

from netgraft.errors import RequestError

SECONDS = 2.0
"""After which a host counts as out of reach; the hub's own client tries again for most of a minute."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights, as repositories of the hub call them."""

HUB = ("hf-hub", "hf_hub")


@contextmanager
def within_reach(name: str) -> Iterator[None]:
    """Let a model's pretrained weights be fetched, or read from the cache alone where there is no network.

    Args:
        name: A timm model, or ``hf-hub:...``; of anything else nothing is known or asked.

    Raises:
        RequestError: The weights are not on this machine, and their host can't be reached.
    """
    source, _, rest = name.partition(":")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) and not rest else None
    repository = rest if source in HUB else getattr(config, "hf_hub_id", None)
    url = constants.ENDPOINT if repository else getattr(config, "url", None)
    if not url or getattr(config, "file", None) or reaches(url):
        yield
        return
    if not (_in_the_hubs_cache(repository) if repository else _in_torchs_cache(url)):
        raise RequestError(
            f"the weights of {name} are not on this machine, and {urlsplit(url).hostname} can't be reached; connect to "
            "the network, or give --teacher-weights FILE"
        )
    former = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = former


def _in_the_hubs_cache(repository: str) -> bool:
    identifier, _, revision = repository.partition("@")
    found = (try_to_load_from_cache(identifier, file, revision=revision or None) for file in FILES)
    return any(isinstance(path, str) for path in found)


def _in_torchs_cache(url: str) -> bool:
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name).exists()


def reaches(url: str) -> bool:
    """Whether a connection to a host, or to the proxy in front of it, is made in time; name servers may not answer."""
    parts = urlsplit(getproxies().get(urlsplit(url).scheme, url))
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    reached = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, timeout=SECONDS):
            reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return reached.is_set()
