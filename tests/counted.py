"""``pipeline`` as it is, but for three things that a test of power cuts needs: run as ``python counted.py SHOWN BOOT run -i ...``.

Every count of durable rows is written down in the file SHOWN at the instant from which somebody may be shown it; ``status.json``
is written fifty times a second; and the machine's boot id is BOOT, unless that is "".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pipeline.journal
import pipeline.sending
from pipeline.cli import main
from pipeline.journal import Record
from pipeline.progress import Tally


def count_in(path: str) -> None:
    """Note in this file what is counted as done."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    kept = Tally.kept

    def counted(tally: Tally, records: Sequence[Record]) -> None:
        kept(tally, records)
        os.write(fd, b"%d\n" % (tally.completed + tally.failed))

    Tally.kept = counted  # type: ignore[method-assign] # what this file is for


if __name__ == "__main__":
    shown, boot = sys.argv[1:3]
    del sys.argv[1:3]
    count_in(shown)
    pipeline.sending.SHOW_EVERY_S = pipeline.sending.STATUS_EVERY_S = 0.02
    if boot:
        pipeline.journal.boot_id = lambda: boot
    main()
