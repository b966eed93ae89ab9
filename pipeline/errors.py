"""Every error a user can meet, as a tree; each is a sentence (or a few) that says what to do next.

PipelineError                       exit
 ├── UsageError                     2    the command line
 │    ├── JobError                  2    the job file or an option: key path, what was expected
 │    ├── InputError                2    the prompt set: file, line or row
 │    ├── TemplateError             2    the prompt template: line, column, the columns there are
 │    └── RunFolderError            2    the run folder or journal: belongs to something else, too new
 │         ├── DamagedError         2    the journal is damaged, or not whole; verify: 6
 │         └── NoJournalError       2    there is no journal yet
 ├── GatewayError                   4    key, access, consent, or never reached
 ├── BudgetError                    5    out of money
 ├── LookError                      6    stopped, or found something: a person must look
 ├── IncompleteError                75   run the same command again
 │    └── LockedError               75   another run has the folder
 └── InterruptedRunError            130  Ctrl-C

Two are apart, for they never end a run: RowError is one row's own fault and becomes that row's outcome; LeaseError says
that a key cannot be shared with other runs, and the run goes on without.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of everything a user may see without a traceback; ``exit_code`` as in the command-line contract."""

    exit_code = 1


class UsageError(PipelineError):
    """The command cannot mean anything as given."""

    exit_code = 2


class JobError(UsageError):
    """The job (file, environment and options together) is wrong; lists every problem with its key path."""


class InputError(UsageError):
    """The input cannot be read as it should; names file and line."""


class TemplateError(UsageError):
    """The template cannot be compiled, or names what the rows do not have."""


class RunFolderError(UsageError):
    """The run folder or its journal cannot be used for this job."""


class DamagedError(RunFolderError):
    """The journal is damaged, or lacks what it once had."""


class NoJournalError(RunFolderError):
    """There is no journal yet, or nothing in it."""


class GatewayError(PipelineError):
    """The gateway refuses this key, model or user, or was never reached."""

    exit_code = 4


class BudgetError(PipelineError):
    """Money is spent."""

    exit_code = 5


class LookError(PipelineError):
    """Something is off that only a person can judge."""

    exit_code = 6


class IncompleteError(PipelineError):
    """Work is left; the same command goes on."""

    exit_code = 75


class LockedError(IncompleteError):
    """Another run works in this folder."""


class InterruptedRunError(PipelineError):
    """Stopped by Ctrl-C; resumable."""

    exit_code = 130


class RowError(Exception):
    """One row's own fault, found before it was sent: ``code`` and ``message`` go into its outcome."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class LeaseError(Exception):
    """A key's lease file cannot be had, or not any more: the run warns and goes on as if it were alone."""
