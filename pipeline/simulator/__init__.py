"""A gateway that misbehaves on a script: real HTTP on loopback, deterministic answers, its own billing ledger.

The way of one request: ``connections`` (behind the ``port``) -> ``gateway`` (``rules``, ``gate``, fault, answer, bill) ->
``model`` -> ``chat`` or ``embeddings`` (what was asked; ``answers`` and ``structured`` make up the text) -> ``dialect``
(how it looks) -> ``wire``. ``litellm`` (and its ``pages``) and ``lumen`` say what differs from the plain OpenAI API in
``rules`` and ``dialect``; ``measured`` is what they say when they refuse. ``faults`` documents the script format.
"""

from pipeline.simulator.catalogue import Key, Model
from pipeline.simulator.faults import Faults
from pipeline.simulator.ledger import Entry, Ledger, Totals
from pipeline.simulator.server import Simulator, serve
from pipeline.simulator.settings import Settings

__all__ = ["Entry", "Faults", "Key", "Ledger", "Model", "Settings", "Simulator", "Totals", "serve"]
