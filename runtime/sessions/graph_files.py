"""The files of one graph, from the manifest that lists them to the session that is made of them.

What is opened is what was proved: the ONNX file is read once, and the bytes that onnxruntime gets are those that are
compared with the manifest's digest. Of weights in files of their own, which onnxruntime maps by their path, the same
file is held open, digested, and found in its place again once they are mapped.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfm.bundle import HeldFile, Manifest, altered, external_locations, read_file
from tfm.errors import BundleError

from .options import DEFAULTS, Tuning
from .providers import open_session
from .shared import OpenGraph

_LARGEST = 1 << 31
"""Bytes of an ONNX file: a protobuf message ends there."""


class GraphFiles:
    """An ONNX file of a bundle and the weights beside it, read but not yet proved.

    Attributes:
        path: The ONNX file.
        names: Of it and its weights, within the bundle.
        key: Digests of it and its weights as the manifest has them: what tells it from any other graph.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        """Read a graph's file, one of the manifest's, and find its weights."""
        self._manifest, self._name = manifest, name
        self.path = manifest.folder / name
        try:
            self._content = read_file(self.path, _LARGEST)
        except OSError as error:
            raise BundleError(f"{manifest.folder}: {name} cannot be read: {error}; copy the bundle again") from error
        self._data = {location: _hold(manifest, name, location) for location in self._locations()}
        self.names = [name, *(_beside(name, location) for location in self._data)]
        self.key = " ".join([manifest.files[file].sha256 for file in self.names] + list(self._data))

    def _locations(self) -> list[str]:
        try:
            return external_locations(self._content)
        except ValueError as error:
            self._prove_content()  # where it was altered, that is what is to be said
            raise BundleError(f"{self.path} is no ONNX file: {error}; export the bundle again") from error

    def open(self, provider: str, threads: int, tuning: Tuning = DEFAULTS) -> OpenGraph:
        """Open the graph, and prove its files meanwhile."""
        # onnxruntime maps weights by their path: only where that still leads to the files held here.
        # Elsewhere their bytes are read from what is held, and given to it.
        in_place = bool(self._data) and tuning.mapped and _fits_an_option(self.path.parent) and self._is_in_place()
        read = {} if in_place else {location: file.read() for location, file in self._data.items()}
        weights = self.path.parent if in_place else read
        # Digesting takes time, as opening does: they run side by side.
        finish = _start(lambda: self.prove(read))
        try:
            session = open_session(self._content, provider, threads, tuning, source=self.path, weights=weights)
        finally:
            finish()  # where a file was altered, that says more than what onnxruntime makes of it
        # What was digested must be what was mapped, and nobody may have exchanged it in between.
        if in_place and not self._is_in_place():
            raise BundleError(f"{self.path}: its weights were replaced while they were opened; load the bundle again")
        return OpenGraph(session, tuple(self._data.values()) if in_place else (), arena=tuning.arena)

    def _is_in_place(self) -> bool:
        return all(file.is_in_place for file in self._data.values())

    def prove(self, read: dict[str, bytes] | None = None) -> None:
        """Compare the files with their digests, or in their place the weights that were read, by location."""
        self._prove_content()
        for location, file in self._data.items():
            name = _beside(self._name, location)
            content = (read or {}).get(location)
            digest = file.sha256() if content is None else hashlib.sha256(content).hexdigest()
            if digest != self._manifest.files[name].sha256:
                raise altered(self._manifest, name)

    def _prove_content(self) -> None:
        if hashlib.sha256(self._content).hexdigest() != self._manifest.files[self._name].sha256:
            raise altered(self._manifest, self._name)


def check_graphs(manifest: Manifest, precision: str | None = None) -> None:
    """Compare graphs and their weights with their digests, for those who open them by their paths.

    Args:
        manifest: The bundle's.
        precision: Whose graphs; None: all.

    Raises:
        BundleError: One was altered, cannot be read, or has weights that the manifest does not list.
    """
    for name in manifest.graphs if precision is None else [precision]:
        for path in manifest.graphs[name].values():
            GraphFiles(manifest, path).prove()


def files_of_graph(manifest: Manifest, name: str) -> list[str]:
    """List a graph's file and those of its weights, as paths within the bundle.

    Raises:
        BundleError: As `GraphFiles`.
    """
    return GraphFiles(manifest, name).names


def _beside(name: str, location: str) -> str:
    """Give the path within the bundle of what lies beside a graph."""
    return os.path.normpath(Path(name).parent / location).replace(os.sep, "/")


def _fits_an_option(folder: Path) -> bool:
    """Whether onnxruntime takes a folder as the value of an option: as UTF-8, in old versions of 1,024 bytes."""
    try:
        return len(str(folder).encode("utf-8")) < 1024
    except UnicodeEncodeError:
        return False


def _hold(manifest: Manifest, name: str, location: str) -> HeldFile:
    path = _beside(name, location)
    if path not in manifest.files or "*" in location:  # "*/_ORT_MEM_ADDR_/*" is an address in memory to onnxruntime
        raise BundleError(
            f"{manifest.folder}: {name} has weights in {location!r}, which the manifest does not list; "
            "export the bundle again"
        )
    try:
        return HeldFile(manifest.folder / path)
    except OSError as error:
        raise BundleError(f"{manifest.folder}: {path} cannot be read: {error}; copy the bundle again") from error


def _start(work: Callable[[], Any]) -> Callable[[], None]:
    """Start work in a thread beside what else is done; what is returned waits for its end, and raises its error.

    Where memory is too short for another thread, it is done here and now.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    def finish() -> None:
        if thread.ident is not None:
            thread.join()
        if raised:
            raise raised[0]

    thread = threading.Thread(target=run, name="tfm digests")
    try:
        thread.start()
    except RuntimeError:
        run()
    return finish
