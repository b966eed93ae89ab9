"""A job and its run folder, opened together: files, template, journal, feed. What run, export and verify start from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import IncompleteError, InputError, JobError, NoJournalError, RunFolderError
from pipeline.gateways import OpenAI, dialect_of
from pipeline.ground import folders
from pipeline.ground.disk import cannot_write, unwritable
from pipeline.ground.visible import listed
from pipeline.job import Job
from pipeline.journal import FILE_NAME, Journal, Lock, sentences, whole
from pipeline.moved import is_elsewhere, taken_along
from pipeline.owner import check_owner, job_of
from pipeline.progress.status_file import shown_in
from pipeline.records import EMBEDDINGS
from pipeline.sink import Layout, layout
from pipeline.source import InputFile, chunks, column_names, find, matches, place
from pipeline.template import Images, Template, spec_digest
from pipeline.workspace.feed import Feed, bad_lines, mark_of
from pipeline.workspace.footing import Footing

FILES_PEEKED = 32  # whose columns the template is checked against before the index pass
SPOOL = "stdin.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Everything a command needs to work on one run folder. ``columns`` are those of the first rows.

    ``moved``: the input is not where it was indexed, and only its rows can tell whether it is the same.
    """

    job: Job
    folder: Path
    journal: Journal
    files: list[InputFile]
    columns: list[str]
    id_column: str | None
    prompt: str | None
    template: Template
    feed: Feed
    dialect: OpenAI
    spec: str
    moved: bool = False
    ground: Footing | None = None

    @property
    def footing(self) -> Footing:
        """What a run stands on (of a workspace opened for writing)."""
        if self.ground is None:
            raise RuntimeError("this workspace was opened for reading")
        return self.ground

    @property
    def vectors(self) -> bool:
        """Whether the answers are vectors."""
        return self.job.request.endpoint == "embeddings"

    def name_of(self, custom_id: str, path: str, line: int) -> str:
        """What a person finds a row by: its id, or where it stands if that would be a fingerprint."""
        file = next((file for file in self.files if str(file.path) == path), None)
        return custom_id if self.id_column is not None or file is None else place(file, line)

    def layout(self) -> Layout:
        """The results' columns, from all columns the indexed input has. Raises ``JobError`` for a clash."""
        output = self.job.output
        columns = self.journal.index().columns() or self.columns
        return layout(
            columns=columns, keep=output.keep, prefix=output.prefix, id_column=self.id_column, vectors=self.vectors
        )


def make_folder(job: Job, *, say: Callable[[str], None] = lambda _: None) -> None:
    """The job's run folder, there and private. Raises ``UsageError`` when it cannot be made, or the results not written.

    ``say`` is told where the output's folder is not there yet: its path may be mistyped.
    """
    _check_writable(job.output.path)
    folder, parent = job.run_folder, job.output.path.parent
    is_new = not parent.exists()
    if folder.is_symlink() and not folder.exists():
        raise RunFolderError(
            f"the run folder {folder} is a link to {os.path.realpath(folder)}, where there is nothing: make that folder, or "
            "have its disk mounted, or give another --run-dir"
        )
    try:
        if not (folder / FILE_NAME).exists():
            folders.make_folder(folder, mode=0o700)
    except OSError as exc:
        why = RunFolderError(f"cannot make the run folder {folder}: {exc.strerror}; give another with --run-dir")
        raise unwritable(folder, exc, what="the run folder", otherwise=why) from exc
    if is_new:
        say(f"The output's folder {parent} was not there: it {'is' if parent.exists() else 'will be'} made.")


def _check_writable(output: Path) -> None:
    """A place for results that cannot be written must show before they are paid for."""
    try:
        if output.is_symlink():  # it is followed, not replaced
            output = Path(os.path.realpath(output))
        is_folder = output.is_dir()
        parent = next(folder for folder in output.parents if folder.exists())
    except OSError as exc:
        raise JobError(f"output.path: {output} cannot be written: {exc.strerror}") from exc
    if is_folder:
        raise JobError(f"output.path: {output} is a folder; name a file in it")
    if not parent.is_dir():
        raise JobError(f"output.path: {output} cannot be written: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise JobError(f"output.path: {output} cannot be written: no permission to write in {parent}")


@contextmanager
def opened(job: Job, *, slots: int, adopt: bool) -> Iterator[Workspace]:
    """Lock a job's run folder, which is there, and open its workspace for writing.

    ``adopt`` lets a folder that was made for another input take this one, or go on without rows that it has lost. Raises
    ``LockedError`` while a run works there, and any ``UsageError`` the job, the input, the template or the folder deserve.
    """
    folder = job.run_folder
    with Lock(folder) as lock:
        path = folder / FILE_NAME
        new = not path.exists()
        shown = 0 if adopt else shown_in(folder)
        if new:
            whole.check_kept(path, shown, None)  # before there is an empty one
        files = _input_files(job, folder)
        with closing(Journal.open(folder, slots=slots)) as journal:
            whole.check_kept(path, shown, journal.db)
            if lock.copied:
                whole.check_pages(journal.db, path)
            lock.is_whole()
            with sentences(path), closing(Footing(journal)) as footing:
                check_owner(journal, job, new=new, adopt=adopt)
                yield replace(_assemble(job, folder, journal, files), ground=footing)


@contextmanager
def opened_for_reading(
    folder: Path, *, input_path: str | None = None, without_input: bool = False, shown: int = 0
) -> Iterator[Workspace]:
    """Open what a run folder holds, as its last run left it; ``input_path`` when the input has moved.

    Raises ``DamagedError`` where fewer rows are done than the ``shown`` ones.
    """
    with closing(_read(folder, shown)) as journal:
        whole.check_kept(journal.path, shown, journal.db)
        with sentences(journal.path):
            job = job_of(journal)
            moved = input_path is not None
            if is_elsewhere(job, folder):
                moved, job = True, taken_along(job, folder)
            if input_path is not None:
                job = job.model_copy(
                    update={"input": job.input.model_copy(update={"path": str(Path(input_path).absolute())})}
                )
            files = [] if without_input else _files_again(job, folder)
            if moved and files:
                journal.input_moved([(str(file.path), mark_of(file)) for file in files])
            yield replace(_assemble(job, folder, journal, files), moved=moved)


def _read(folder: Path, shown: int) -> Journal:
    try:
        return Journal.read(folder)
    except NoJournalError:
        whole.check_kept(folder / FILE_NAME, shown, None)
        raise


def _assemble(job: Job, folder: Path, journal: Journal, files: list[InputFile]) -> Workspace:
    check_apart(job.output.path, job.input.path, files)
    columns = _first_columns(files) if files else journal.index().columns()
    id_column = job.input.id
    if id_column is None and "custom_id" in columns:
        id_column = "custom_id"
    if id_column is not None and id_column not in columns:
        raise JobError(f"input.id: the input has no column {id_column!r}; its columns are: {listed(columns)}")
    prompt = job.request.prompt_text()
    settings: dict[str, Any] = {
        "family": job.preset.family,
        "model": job.model,
        "prompt": prompt,
        "system": job.request.system,
        "params": job.request.params,
        "replace_model": job.request.replace_model,
    }
    asked = job.request
    dialect = dialect_of(
        job.preset.family,
        model_is_the_rows=job.model is None,
        client_retries=not job.gateway.proxy_retries,
        unset_key=job.unset_key(),
    )
    settings["endpoint"] = asked.endpoint
    if asked.endpoint == "embeddings" and EMBEDDINGS not in dialect.endpoints:
        raise JobError(f'request.endpoint: {job.gateway.preset} has no embeddings; it has "chat" only')
    images = None
    if asked.images:
        images = Images(asked.images, most=asked.max_images, most_bytes=asked.max_image_bytes)
    template = Template(**settings, columns=columns, images=images, endpoints=dialect.endpoints)
    return Workspace(
        job=job,
        folder=folder,
        journal=journal,
        files=files,
        columns=columns,
        id_column=id_column,
        prompt=prompt,
        template=template,
        feed=Feed(journal, files, template, id_column=id_column),
        dialect=dialect,
        spec=spec_digest(
            **settings,
            id=id_column,
            kind=template.kind,
            images=[asked.images, asked.max_images, asked.max_image_bytes],
            version=1,
        ),
    )


def check_apart(output: Path, source: str, files: list[InputFile]) -> None:
    """Results among the prompts would replace them, or be read as prompts the next time. Raises ``JobError``."""
    is_input = os.path.realpath(output) in {os.path.realpath(file.path) for file in files}
    if is_input or _would_be_found(output, source):
        raise JobError(f"the output {output} lies in the input {source}; put the results somewhere else")


def _would_be_found(output: Path, source: str) -> bool:
    folder = Path(source)
    if folder.is_dir():
        return output.is_relative_to(folder)
    return matches(output.parts, folder.parts)


def _files_again(job: Job, folder: Path) -> list[InputFile]:
    try:
        return _input_files(job, folder, spool=False)
    except InputError as exc:
        raise InputError(f"{exc}; if the input has moved, say where it is now with -i FILE") from exc


def _input_files(job: Job, folder: Path, *, spool: bool = True) -> list[InputFile]:
    if job.input.path != "-":
        return find(job.input.path, base=Path.cwd())
    path = folder / SPOOL
    if spool:
        _spool(path)
    if not path.exists():
        raise InputError("standard input was empty; pipe JSON lines into: pipeline run -i - ...")
    return find(str(path), base=folder)


def _spool(path: Path) -> None:
    """Keep what comes on standard input; nothing there (a terminal, /dev/null) means the one kept before."""
    if sys.stdin is None or sys.stdin.isatty():
        return
    piped = iter(_piped, b"")
    first = next(piped, None)
    if first is None:
        return
    try:
        with folders.AtomicFile(path) as file:  # synced: the answers are worth nothing without their prompts
            file.stream.write(first)
            file.stream.writelines(piped)
    except OSError as exc:
        raise IncompleteError(cannot_write(path, exc, what="what came on standard input to")) from exc


def _piped() -> bytes:
    try:
        return sys.stdin.buffer.read(1 << 16)
    except OSError as exc:
        raise InputError(f"cannot read standard input: {exc.strerror}; nothing was sent") from exc


def _first_columns(files: list[InputFile]) -> list[str]:
    columns: dict[str, None] = {}
    problems: list[InputError] = []
    for file in files[:FILES_PEEKED]:
        names = column_names(file)
        if names is not None:
            columns.update(dict.fromkeys(names))
            continue
        first = next(iter(chunks(file)), None)
        for _, data in first.rows(on_error=problems.append) if first is not None else ():
            columns.update(dict.fromkeys(data))
    if problems and not columns:  # else the index pass names them all
        raise bad_lines(problems)
    if not any(True for file in files for _ in chunks(file)):
        raise InputError(f"the input has no rows: {', '.join(str(file.path) for file in files[:3])}")
    return list(columns)
