"""The file in a folder that says what its other files must hold: a manifest, or a deployment's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qgraph.artifact import MANIFEST, read_manifest
from qgraph.file_hashes import Changes, changes, sha256_of
from qgraph.manifest import FileRecord


@dataclass(frozen=True)
class Ledger:
    """Hashes of the files in a folder.

    Attributes:
        folder: The folder.
        name: The file in it that holds the hashes.
        sha256: That file's own hash.
        files: Hash and size of the others by their path inside.
    """

    folder: Path
    name: str
    sha256: str
    files: Mapping[str, FileRecord]

    def changes(self) -> Changes:
        """Compare the files with the record.

        Raises:
            ArtifactError: There are no hashes, a name leads out of the folder, or a file can't be
                read.
        """
        return changes(self.folder, self.files, but=self.name)


def read_ledger(folder: Path) -> Ledger:
    """Read the hashes of an artifact or a deployment.

    Raises:
        ArtifactError: The folder is neither, or the file is damaged.
    """
    from qgraph.deploy.record import RECORD, read_record

    if (folder / RECORD).is_file() and not (folder / MANIFEST).is_file():
        return Ledger(folder, RECORD, sha256_of(folder / RECORD), read_record(folder).files())
    manifest = read_manifest(folder)
    return Ledger(folder, MANIFEST, sha256_of(folder / MANIFEST), manifest.files)
